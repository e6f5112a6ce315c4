"""A headless Chromium that opens pages as a reader would, and notes what they ask for and say."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
NONE = f"no browser: playwright has none of its own, and none of {', '.join(NAMES)} is installed"
# A chart lays itself out anew a moment after its page changes.
SETTLED = """async () => {
  const settled = plot => Math.abs(
    plot.querySelector(".main-svg")?.getBoundingClientRect().width - plot.clientWidth) <= 1;
  const end = Date.now() + 20000;
  while (![...document.querySelectorAll(".js-plotly-plot")].every(settled)) {
    if (Date.now() > end) throw Error("a chart is not as wide as its place");
    await new Promise(done => setTimeout(done, 20));
  }
}"""


@dataclass(frozen=True)
class Opened:
    """A page, what it asked for, and its warnings, errors and uncaught exceptions."""

    name: str
    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def show(self, *, width: int = 1200, height: int = 900, **media: str) -> Page:
        """Give the page a size and what `Page.emulate_media` takes; by default a light screen."""
        self.page.emulate_media(**({"media": "screen", "color_scheme": "light"} | media))
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.evaluate(SETTLED)
        return self.page

    def _note(self, kind: str, text: str) -> None:
        if kind in {"warning", "error"}:
            self.complaints.append(f"{kind}: {text}")


def find(playwright: Playwright) -> str | None:
    """Return the browser to start: that of CHROMIUM, playwright's own or the system's."""
    own = os.environ.get("CHROMIUM") or playwright.chromium.executable_path
    return next(filter(None, map(shutil.which, (own, *NAMES))), None)


@contextmanager
def browsing() -> Iterator[Browser | None]:
    """Start a browser; None where there is none."""
    with sync_playwright() as playwright:
        path = find(playwright)
        if path is None:
            yield None
            return
        with playwright.chromium.launch(executable_path=path) as browser:
            yield browser


@contextmanager
def opened(browser: Browser, path: Path, *, phone: bool = False) -> Iterator[Opened]:
    """Open a page without a network; on a phone, a finger scrolls."""
    size = {"width": 390, "height": 844} if phone else {"width": 1200, "height": 900}
    context = browser.new_context(offline=True, viewport=size, has_touch=phone, is_mobile=phone)
    with context:
        found = Opened(path.stem, context.new_page())
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("console", lambda message: found._note(message.type, message.text))
        found.page.goto(path.absolute().as_uri())
        found.page.evaluate(SETTLED)
        yield found
