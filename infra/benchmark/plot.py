"""The main measurement as a picture: an SVG of bars, Meterhouse beside the bare pass-through, with their ratio.

Not here: the direct upstream, beside which no bar would be tall enough to be read.
"""

from benchmark.report import Cell

WIDTH, HEIGHT = 760, 330
TOP, BOTTOM, LEFT = 70, 60, 30
BAR, GAP, GROUP_GAP = 40, 6, 28
COLORS = {"pass-through": "#9aa5b1", "meterhouse": "#2f6f8f"}
NAMES = {"json": "JSON answers", "stream": "streams of 20 tokens"}
STYLE = "font-family:system-ui,sans-serif;font-size:12px;fill:#1f2933"


def draw(cells: list[Cell]) -> str:
    """Draw answers per second by kind and number of connections; each kind has a scale of its own."""
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            'aria-label="Answers per second">'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 24, "Answers per second on one core; the ratio to the bare pass-through below", "start", 15),
    ]
    for index, (name, color) in enumerate(COLORS.items()):
        x = LEFT + index * 130
        parts.append(f'<rect x="{x}" y="36" width="12" height="12" fill="{color}"/>')
        parts.append(_text(x + 18, 46, name, "start"))
    for index, kind in enumerate(NAMES):
        shown = [cell for cell in cells if cell.kind == kind and cell.target in COLORS]
        if shown:
            parts += _draw_panel(shown, LEFT + index * (WIDTH - LEFT) // 2)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw_panel(cells: list[Cell], left: int) -> list[str]:
    most = max(cell.rate for cell in cells) or 1.0
    floor = HEIGHT - BOTTOM
    parts = []
    x = left
    for connections in sorted({cell.connections for cell in cells}):
        group = [cell for cell in cells if cell.connections == connections]
        middle = x + (len(group) * (BAR + GAP) - GAP) / 2
        for cell in group:
            height = (floor - TOP - 20) * cell.rate / most
            parts.append(
                f'<rect x="{x}" y="{floor - height:.1f}" width="{BAR}" height="{height:.1f}" '
                f'fill="{COLORS[cell.target]}"/>'
            )
            parts.append(_text(x + BAR / 2, floor - height - 5, f"{cell.rate:,.0f}"))
            x += BAR + GAP
        ratio = next((cell.ratio for cell in group if cell.target == "meterhouse"), None)
        label = f"{connections} connection{'s' if connections > 1 else ''}"
        parts.append(_text(middle, floor + 16, label))
        if ratio is not None:
            parts.append(_text(middle, floor + 33, f"{ratio:.2f}", size=14))
        x += GROUP_GAP
    parts.append(f'<line x1="{left}" y1="{floor}" x2="{x - GROUP_GAP}" y2="{floor}" stroke="#52606d"/>')
    parts.append(_text(left, HEIGHT - 8, NAMES[cells[0].kind], "start", 13))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 12) -> str:
    style = STYLE.replace("font-size:12px", f"font-size:{size}px")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{style}">{text}</text>'
