"""Forms (``multipart/form-data``, RFC 7578): read strictly, and written anew.

Invariant: pure. What goes upstream is written here from the parts that were read, so that no provider can read another
field, or another value of one, than the one that was checked. A body is looked at as a whole; its length is bounded
before it gets here.
"""

import re
from collections.abc import Iterable

from meterhouse.asked import FormPart
from meterhouse.errors import Malformed, UnsupportedMedia

MAX_PARTS = 64
MAX_HEAD_BYTES = 2_048
_BOUNDARY = re.compile(r"""(?:^|;)\s*boundary=(?:"(?P<quoted>[^"]{1,70})"|(?P<bare>[^\s;"]{1,70}))\s*(?:;|$)""")
_BOUNDARY_TEXT = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]*[0-9A-Za-z'()+_,\-./:=?]")
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}(?:\[\])?")
_PARAMETER = re.compile(r';\s*(?P<name>[a-z]+\*?)=(?:"(?P<quoted>[^"]*)"|(?P<bare>[^\s;"]+))\s*', re.IGNORECASE)
_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(?:;\s*[\w-]+=[\w.+-]+)*")
_END = b"\r\n\r\n"


def read_form(body: bytes, content_type: str) -> list[FormPart]:
    """Return the parts of a form, in their order.

    Raises:
        UnsupportedMedia: The content type is no form's.
        Malformed: The body is no form, or has a name twice that is no list's.
    """
    delimiter = b"--" + _boundary_of(content_type)
    if not body.startswith(delimiter + b"\r\n"):
        raise _no_form("it does not begin with its boundary")
    # What is before the first boundary, the fields, the end. Without a bound, boundaries alone would be millions.
    pieces = (b"\r\n" + body).split(b"\r\n" + delimiter, MAX_PARTS + 2)
    if len(pieces) - 2 > MAX_PARTS:
        raise _no_form(f"it has more than {MAX_PARTS} fields")
    if pieces[-1] not in {b"--", b"--\r\n"}:
        raise _no_form("it does not end with its boundary")
    parts = [_read_part(piece) for piece in pieces[1:-1]]
    names = [part.name for part in parts if not part.name.endswith("[]")]
    for name in names:
        if names.count(name) > 1:
            raise Malformed(f"The form has '{name}' more than once.", param=name)
    return parts


def write_form(parts: Iterable[FormPart], boundary: str) -> bytes:
    """Return the body of a form; the boundary must be one that nobody can guess."""
    pieces: list[bytes] = []
    for part in parts:
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="{part.name}"'
        if part.filename is not None:
            head += f'; filename="{part.filename}"'
        if part.content_type is not None:
            head += f"\r\ncontent-type: {part.content_type}"
        pieces += [head.encode(), _END, part.content, b"\r\n"]
    return b"".join([*pieces, f"--{boundary}--\r\n".encode()])


def _boundary_of(content_type: str) -> bytes:
    kind, _, parameters = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise UnsupportedMedia("This endpoint takes a form: send multipart/form-data, as the SDKs do with a file.")
    found = _BOUNDARY.search(";" + parameters)
    boundary = (found["quoted"] or found["bare"]) if found else ""
    if not _BOUNDARY_TEXT.fullmatch(boundary):
        raise _no_form("its content type names no boundary")
    return boundary.encode()


def _read_part(piece: bytes) -> FormPart:
    head, separator, content = piece.partition(_END)
    if not separator or not head.startswith(b"\r\n") or len(head) > MAX_HEAD_BYTES:
        raise _no_form("a field has no head")
    headers: dict[str, str] = {}
    for line in head.removeprefix(b"\r\n").split(b"\r\n"):
        name, colon, value = str(line, "utf-8", "replace").partition(":")
        if not colon or name.lower() in headers or not value.isprintable():
            raise _no_form("a field has a head that cannot be read")
        headers[name.lower()] = value.strip()
    parameters = _parameters(headers.get("content-disposition", ""))
    name = parameters.get("name", "")
    if not _NAME.fullmatch(name):
        raise _no_form("a field has no name, or one that no field of this API has")
    filename = parameters.get("filename", parameters.get("filename*"))
    kind = headers.get("content-type")
    if kind is not None and not _TYPE.fullmatch(kind):
        raise _no_form(f"the field '{name}' has a content type that is none")
    return FormPart(name, content, filename, kind)


def _parameters(disposition: str) -> dict[str, str]:
    kind, _, rest = disposition.partition(";")
    rest = ";" + rest
    if kind.strip().lower() != "form-data":
        raise _no_form("a field has no content-disposition: form-data")
    parameters: dict[str, str] = {}
    position = 0
    while position < len(rest):
        found = _PARAMETER.match(rest, position)
        if found is None or found["name"].lower() in parameters:
            raise _no_form("a field has a content-disposition that cannot be read")
        value = found["quoted"] if found["quoted"] is not None else found["bare"]
        # A backslash is read by some as an escape and by others as itself.
        parameters[found["name"].lower()] = value.replace("\\", "_")
        position = found.end()
    return parameters


def _no_form(why: str) -> Malformed:
    return Malformed(f"The request body is not a form that can be read: {why}.", code="invalid_form")
