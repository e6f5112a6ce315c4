"""Every page in a real browser: it draws, sorts, reads in light, dark and print, and stays offline."""

import re
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from browser import NONE, Opened, browsing, opened
from measuring import trial_like
from playwright.sync_api import Browser, Page

import tidesim
from tidesim import cli
from tidesim.demo import demo_prompts, run_demo
from tidesim.hardware import load_profile
from tidesim.model_spec import load_model_spec
from tidesim.report.html import Section, Table, write_report
from tidesim.report.style import PALETTE
from tidesim.report.validate_page import write_validate_page
from tidesim.simulate import prepare, run
from tidesim.trace.io import load_trace, save_trace
from tidesim.trace.passes import Trace
from tidesim.validate import validate

pytestmark = pytest.mark.slow

MACHINE, SIZES = "a100-40gb-pcie4-xeon48", "llada2.0-mini"
# In an order in which each command finds what it reads; a page has the name of its file.
LINES = """
trace stats t.parquet --lags 1,2 --plot stats.html
simulate t.parquet A100 --policy tide --interval 4 --timeline run.json
report run.json --steps 0:2 --out timeline.html
solve t.parquet A100 --no-judge --formulation free --out schedule.json
schedule show schedule.json --out schedule.html
whatif t.parquet A100 --policy tide --interval 4 --set link.h2d_bytes_per_s=x1.5 --steps 0:1 --out whatif.html
regimes t.parquet A100 --intervals 2 --out regimes.html
sensitivity t.parquet A100 --intervals 2 --out sensitivity.html
plan --model llada2.0-mini --trace t.parquet --hardware PLANNED --memory 3.45,all --formulation uniform --target-tokens-per-s 100 --workers 1 --out plan.html
"""
PLANNED = f"{MACHINE},rtx4060-8gb-pcie4x8-laptop,jetson-agx-thor-128gb-unified"
HOLDS = {
    "stats": (4, 0),
    "timeline": (1, 1),
    "schedule": (1, 2),
    "whatif": (3, 2),
    "regimes": (1, 2),
    "sensitivity": (1, 1),
    "plan": (3, 5),
    "demo": (4, 1),
    "validate": (4, 5),
}  # page: charts, tables
COUNTS = {"layer", "denoise step of a block", "slots", "hit rate", "residents"}  # have no unit
A4_PIXELS = 703  # what margins of 12 mm leave of its width
MISSING = {"", "–"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as found:
        if found is None:
            pytest.skip(NONE)
        yield found


@pytest.fixture(scope="module")
def folder(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every page, of short traces."""
    folder = tmp_path_factory.mktemp("pages")
    trace = load_trace("tide-tiny-mixed")
    short = {info.split: info.request for info in trace.meta.requests}
    trace = trace.only(short.values())
    save_trace(trace, folder / "t.parquet")
    a100 = f"--hardware {MACHINE} --budget 16 --sizes {SIZES}"
    with chdir(folder):
        for line in LINES.strip().splitlines():
            cli.app(
                line.replace("A100", a100).replace("PLANNED", PLANNED).split(),
                standalone_mode=False,
            )
    demo = run_demo(
        folder / "demo", stage=lambda _: None, watch=lambda *_: None, prompts=demo_prompts()
    )
    demo.report.rename(folder / "demo.html")
    _write_validation(folder / "validate.html", trace.only([short["heldout"]]))
    return folder


def _write_validation(path: Path, trace: Trace) -> None:
    """Write the page of a validation, in which simulations stand for the real machine."""
    rng, trials = np.random.default_rng(1), []
    for policy in ("tide", "lru", "previous-step"):
        case = prepare(
            trace, load_profile(MACHINE), policy=policy, budget=16, sizes=load_model_spec(SIZES),
            interval=4 if policy == "tide" else None,
        )  # fmt: skip
        passes = tuple(case.passes())
        factor = rng.normal(1.05, 0.05, size=(3, len(passes)))
        result = run(case, keep_records=True)
        trials.append(trial_like(result, passes, name=f"{policy} B=16", factor=factor, repeats=3))
    write_validate_page(path, validate(trials), skipped={"fiddler B=16": "there is no time"})


@pytest.fixture(scope="module", params=HOLDS)
def it(request: pytest.FixtureRequest, browser: Browser, folder: Path) -> Iterator[Opened]:
    with opened(browser, folder / f"{request.param}.html") as found:
        yield found


def plots(page: Page, script: str) -> list:
    """Return what a function of JavaScript says of every chart."""
    return page.evaluate(
        f"[...document.querySelectorAll('.js-plotly-plot')].map({script})",
    )


# ── charts ───────────────────────────────────────────────────────────────────────────────────────


def test_every_chart_draws_what_it_holds_and_is_named_for_those_who_hear_it(it: Opened) -> None:
    page = it.show()

    drawn = plots(
        page,
        """plot => [
          plot.data.filter(one => one.visible !== false
            && (one.z || one.x || one.y).some(value => value !== null)).length,
          plot.querySelectorAll(".scatterlayer :is(path.js-line, .point, .textpoint text), "
            + ".barlayer .point path, .heatmaplayer image").length,
        ]""",
    )
    names = page.locator("[role=img]").evaluate_all("all => all.map(one => one.ariaLabel)")

    assert len(drawn) == len(names) == HOLDS[it.name][0]
    assert all(0 < held <= marks for held, marks in drawn)
    assert all(names)


def test_every_axis_has_a_title_and_a_unit_where_it_is_a_quantity(it: Opened) -> None:
    axes = plots(
        it.show(),
        """plot => Object.entries(plot._fullLayout).filter(([key]) => /^[xy]axis[0-9]*$/.test(key))
          .map(([key, axis]) => [axis.type, plot.layout[key].title?.text || plot.layout.annotations.find(
            above => above.yref === "paper" && above.y === axis.domain[1])?.text])""",
    )

    for kind, title in (axis for chart in axes for axis in chart):
        assert title
        assert kind == "category" or title in COUNTS or re.search(r"\(.+\)", title), title


def test_resources_and_policies_have_their_colours_everywhere(it: Opened) -> None:
    """Marks are named by their trace, or by the axis of a bar that lies."""
    marks = plots(
        it.show(),
        """plot => plot.data.flatMap(one => one.marker?.color === undefined ? [] :
          Array.isArray(one.marker.color)
            ? one.y.map((name, n) => [name.split(" τ=")[0], one.marker.color[n]])
            : [[one.name, one.marker.color]])""",
    )

    for chart in marks:
        others = [
            (name, color) for name, color in chart if name in PALETTE and color != PALETTE[name]
        ]
        assert [color for _, color in others] in ([], [PALETTE["schedule"]]), others


# ── tables ───────────────────────────────────────────────────────────────────────────────────────

CELLS = "all => all.map(row => [...row.cells].map(cell => [cell.dataset.value, cell.textContent]))"


def _rank(cell: list[str | None]) -> tuple[int, float]:
    value, text = cell
    if value is not None:
        return 0, float(value)
    return (2 if text in MISSING else 1), 0.0


def test_every_table_sorts_by_every_heading_with_what_is_missing_last(it: Opened) -> None:
    page = it.show()
    tables = page.locator("table").all()

    assert len(tables) == HOLDS[it.name][1]
    for table in tables:
        assert table.locator("caption").text_content()
        rows = table.locator("tbody tr")
        before = rows.evaluate_all(CELLS)
        for column, head in enumerate(table.locator("th[scope=col]").all()):
            orders = []
            for said, sign in (("ascending", 1), ("descending", -1)):
                head.get_by_role("button").click()
                assert head.get_attribute("aria-sort") == said
                assert table.locator("[aria-sort]").count() == 1
                after = rows.evaluate_all(CELLS)
                keys = [_rank(row[column]) for row in after]
                assert keys == sorted(keys, key=lambda key: (key[0], sign * key[1]))
                assert sorted(after, key=str) == sorted(before, key=str)
                orders.append([row[column][1] for row in after if _rank(row[column])[0] == 1])
            assert orders[0] == orders[1][::-1]


def test_a_table_sorts_by_keyboard_numbers_before_text_and_the_total_stays(
    browser: Browser, tmp_path: Path
) -> None:
    rows = [["τ=16", 9.0], ["τ=2", 10], ["all", -1e-3], ["lru", None], ["dali", "never"]]
    rows += [["fiddler", float("nan")]]
    table = Table(columns=["name", "value"], rows=rows, total=["sum", 5.0])
    write_report(tmp_path / "t.html", title="t", sections=[Section("s", table=table)], footer=[])
    orders = []

    with opened(browser, tmp_path / "t.html") as it:
        names = it.page.locator("tr td:first-child")
        for key in ("Tab", "Enter", "Enter", "Tab", "Space", "Space"):
            it.page.keyboard.press(key)
            orders.append(names.all_text_contents())

    start, by_name, back, _, by_value, downwards = orders
    assert start == ["τ=16", "τ=2", "all", "lru", "dali", "fiddler", "sum"]
    assert by_name == ["all", "dali", "fiddler", "lru", "τ=2", "τ=16", "sum"]
    assert back == [*by_name[-2::-1], "sum"]
    assert by_value == ["all", "τ=16", "τ=2", "dali", *by_value[4:6], "sum"]
    assert downwards == ["τ=2", "τ=16", "all", "dali", *downwards[4:6], "sum"]


# ── where it is read ─────────────────────────────────────────────────────────────────────────────


def test_the_footer_says_where_the_numbers_come_from(it: Opened) -> None:
    text = it.page.locator("footer").inner_text()

    assert re.search("captured|synthetic|imported|measured|published|simulated", text)
    assert re.search("[0-9a-f]{64}", text)
    assert f"tidesim: {tidesim.__version__}" in text


# Every text that is shown: whether it stands in a chart, its colour, size in pixels, and whether
# its chart cuts it. Text on marks has the marks behind it and is left out.
TEXTS = """[...document.querySelectorAll("body *")].filter(
  one => !one.closest("caption, script, .hoverlayer, .modebar, .scatterlayer, .bartext-inside") && one.checkVisibility()
    && [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim())
).map(one => {
  const style = getComputedStyle(one), chart = one.closest(".main-svg"), box = one.getBoundingClientRect();
  const frame = chart?.getBoundingClientRect();
  return {
    text: one.textContent, chart: chart !== null, color: chart ? style.fill : style.color,
    pixels: parseFloat(style.fontSize),
    cut: chart !== null && (box.left < frame.left - 1 || box.right > frame.right + 1
      || box.top < frame.top - 1 || box.bottom > frame.bottom + 1),
  };
})"""


def _luminance(color: str) -> float:
    """Return the relative luminance of ``rgb(r, g, b)``: WCAG 2.2."""
    srgb = np.array([int(part) / 255 for part in re.findall(r"\d+", color)[:3]])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_text_reads_on_light_and_dark_pages(it: Opened) -> None:
    papers = []
    for scheme in ("light", "dark"):
        page = it.show(color_scheme=scheme)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        papers.append(_luminance(paper))

        texts = page.evaluate(TEXTS)

        assert sum(one["chart"] for one in texts) > 5
        for one in texts:
            assert _contrast(one["color"], paper) >= (3 if one["chart"] else 4.5), one
            assert not one["cut"], one
    assert papers[0] > 0.9
    assert papers[1] < 0.1


def test_a_phone_shows_everything_without_scrolling_sideways(it: Opened) -> None:
    page = it.show(width=390, height=844)

    texts = page.evaluate(TEXTS)

    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert min(one["pixels"] for one in texts) >= 12
    assert [one["text"] for one in texts if one["cut"]] == []


def test_a_finger_on_a_chart_may_scroll_the_page(browser: Browser, folder: Path) -> None:
    with opened(browser, folder / "stats.html", phone=True) as it:
        taken = plots(
            it.page,
            """plot => {
              const place = plot.querySelector(".nsewdrag"), box = place.getBoundingClientRect();
              const touch = new Touch({ identifier: 1, target: place, clientX: box.x + 9, clientY: box.y + 9 });
              const how = { bubbles: true, cancelable: true, touches: [touch], changedTouches: [touch] };
              const free = place.dispatchEvent(new TouchEvent("touchstart", how));
              place.dispatchEvent(new TouchEvent("touchend", { ...how, touches: [] }));
              return !free;
            }""",
        )

    assert taken == [False] * 4


def test_a_page_prints_whole(it: Opened) -> None:
    most = """(of, side) => Math.max(...[...document.querySelectorAll(of)].map(
      one => one.getBoundingClientRect()[side]))"""
    page = it.show()
    page.evaluate(
        f"addEventListener('beforeprint', () => window.widest = ({most})('.main-svg', 'width'))"
    )

    page.pdf(prefer_css_page_size=True, format="A4")

    assert 0 < page.evaluate("window.widest") <= A4_PIXELS
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": A4_PIXELS, "height": 1000})
    assert page.evaluate(f"({most})('.main-svg, table, p', 'right')") <= A4_PIXELS
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


# Last, because it is about all that was done to the page above.
def test_nothing_leaves_the_page_and_it_complains_of_nothing(it: Opened) -> None:
    assert [url for url in it.requests if not url.startswith("data:")] == [it.page.url]
    assert it.complaints == []
