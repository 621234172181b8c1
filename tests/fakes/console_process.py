"""``meterhouse console`` as a process of its own, and the browser that looks at it (Debian's Chromium)."""

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect

from fakes.daemon import free_port
from fakes.gateway import http_request

START_SECONDS = 40
WAIT_MS = 15_000
WIDE = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}


class ConsoleProcess:
    """``with ConsoleProcess(gateway_url, log_path) as console:``; ready when it begins."""

    def __init__(self, gateway_url: str, log_path: Path, *options: str) -> None:
        self.bind = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.bind}"
        self.log_path = log_path
        self._options = ("--url", gateway_url, "--bind", self.bind, *options)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [str(Path(sys.executable).parent / "meterhouse"), "console", *self._options]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, self.log_path.read_text()
            assert time.monotonic() < deadline, "the console did not start"
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)

    def _answers(self) -> bool:
        try:
            self.request("GET", "/")
        except OSError:
            return False
        return True

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def request(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one plain HTTP request, without a browser."""
        return http_request(self.url, method, path, body, key="", headers=headers)


def launch_browser(playwright: Playwright) -> Browser:
    """Start Chromium without a window."""
    expect.set_options(timeout=WAIT_MS)
    path = shutil.which("chromium")
    assert path, "the Debian package chromium is missing"
    # As root, as in a container, its own sandbox cannot be set up.
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])


class Visitor:
    """One browser session: what it saw go wrong, and whom it asked."""

    def __init__(self, browser: Browser, console: ConsoleProcess, **options: Any) -> None:
        self.console = console
        self.context: BrowserContext = browser.new_context(**{"viewport": WIDE, **options})
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=console.url)
        self.context.set_default_timeout(WAIT_MS)
        self.page: Page = self.context.new_page()
        self.asked: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._note)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def sign_in(self, secret: str) -> Self:
        """Sign in as a person does."""
        self.page.goto(self.console.url)
        self.page.get_by_label("Admin key").fill(secret)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("navigation").wait_for()
        return self

    def go(self, name: str) -> Page:
        """Open a page by its place and wait until it is there."""
        self.page.goto(f"{self.console.url}/#/{name}")
        self.page.locator("main h1").wait_for()
        return self.page

    def _note(self, message: Any) -> None:
        # A status of an answer is said by the page in words; a breach of the content policy must never happen.
        if message.type == "error" and "the server responded with a status" not in message.text:
            self.faults.append(message.text)
