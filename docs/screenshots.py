"""Make docs/images anew from documented commands: ``make screenshots``, ten minutes.

With names of pictures only those: ``PYTHONPATH=tests .venv/bin/python docs/screenshots.py demo``.
"""

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from browser import NONE, browsing, opened
from playwright.sync_api import Browser

IMAGES = Path(__file__).with_name("images")
CALL = (sys.executable, "-c", "from tidesim.cli import main; main()")
HIDE = """shown => document.querySelectorAll("section").forEach(
  section => section.hidden = !shown.includes(section.querySelector("h2").textContent))"""
DONE, CHECK_FAILED = 0, 1  # a validation that misses its tolerances is a page, too


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Some sections, by their headings, of a page that commands write.

    Attributes
    ----------
    commands : str
    page : str
    sections : tuple of str
    until : str
        The element at which the picture ends; by default the last of these sections.
    """

    commands: str
    page: str
    sections: tuple[str, ...]
    until: str = "section:visible >> nth=-1"


PICTURES = {
    "demo": Picture(
        commands="tidesim demo --out .",
        page="report.html",
        sections=("How stable routing is", "Time by refresh interval", "Policies compared"),
        until="#figure-2",
    ),
    "regimes": Picture(
        commands="""
        tidesim regimes tide-tiny-mixed --hardware a100-40gb-pcie4-xeon48 --budget 16 --sizes llada2.0-mini --out regimes.html
        """,
        page="regimes.html",
        sections=("Map", "Machines on the map"),
    ),
    "plan": Picture(
        commands="""
        tidesim trace synth --model llada2.0-mini --requests 8 --gen-length 256 --out m.parquet
        tidesim plan --model llada2.0-mini --trace m.parquet --hardware all --target-tokens-per-s 20 --out plan.html
        """,
        page="plan.html",
        sections=("How fast", "What it costs"),
        until="#figure-2",
    ),
    "validate": Picture(
        commands="""
        tidesim hardware measure --model tide-tiny --link-gb-per-s 0.2 --seconds 40 --out box.toml
        tidesim solve tide-tiny-mixed --hardware box.toml --budget 16 --out schedule.json
        tidesim validate schedule.json tide-tiny-mixed --hardware box.toml --link-gb-per-s 0.2 --repeats 3 --out validate.html
        """,
        page="validate.html",
        sections=("Runs", "Step by step"),
    ),
}


def take(browser: Browser, name: str, picture: Picture) -> None:
    """Run the commands of a picture in a folder of their own and save what the page shows."""
    with TemporaryDirectory() as folder:
        for line in picture.commands.strip().splitlines():
            _, *arguments = shlex.split(line)
            status = subprocess.run([*CALL, *arguments], cwd=folder, check=False).returncode
            if status not in (DONE, CHECK_FAILED):
                sys.exit(f"{name}: {line.strip()} ended with status {status}")
        with opened(browser, Path(folder) / picture.page) as it:
            it.page.evaluate(HIDE, picture.sections)
            box = it.page.locator(picture.until).bounding_box()
            assert box is not None
            size = {"x": 0, "y": 0, "width": 1200, "height": box["y"] + box["height"] + 16}
            it.page.screenshot(path=IMAGES / f"{name}.png", full_page=True, clip=size)


def main(names: list[str]) -> None:
    """Take the pictures of these names, or all."""
    with browsing() as browser:
        if browser is None:
            sys.exit(NONE)
        for name in names or PICTURES:
            take(browser, name, PICTURES[name])


if __name__ == "__main__":
    main(sys.argv[1:])
