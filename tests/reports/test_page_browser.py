"""The page in a real browser: click, sort, filter, hover, switch; nothing is asked from outside, nothing complains.

With GNLORP_SCREENSHOTS=FOLDER the documents' pictures are written there: the page of the committed records.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from reports.averages.convention import convention_of
from reports.averages.glue import switchboard
from reports.page.html import page_html
from reports.paper.write import Paper, paper
from reports.records.peft_results import read_foreign
from reports.records.reading import gather
from reports.stats.significance import front_probability
from reports.tables.cost import peaks_of
from reports.tables.standing import averages_of
from results.published import published_cells
from results.schema import EQUAL_MEMORY, DataPlan, Evaluation, ModelPlan, Record
from results.store import write_record

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]


def why_not() -> str | None:
    """Return why no browser can be driven here, None if one can."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed (pip install playwright; its browsers are not needed)"
    return None if chromium() else f"no Chromium on this machine (any of {', '.join(NAMES)}, or GNLORP_CHROMIUM)"


def chromium() -> str | None:
    """Return the path of a Chromium."""
    return os.environ.get("GNLORP_CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Visit:
    """One open page with everything that it complained about and asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def started() -> Iterator[Any]:
    """Yield a running headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visiting(
    browser: Any, path: Path, width: int = 1280, height: int = 900, scheme: str = "light", touch: bool = False
) -> Iterator[Visit]:
    """Yield the page at `path`, ready; any network beyond that one file is cut off and noted."""
    options = {"viewport": {"width": width, "height": height}, "color_scheme": scheme, "has_touch": touch}
    context = browser.new_context(**options, reduced_motion="reduce")
    context.set_default_timeout(10_000)
    visit = Visit(context.new_page())
    visit.page.on("console", lambda m: visit.complaints.append(m.text) if m.type in ("error", "warning") else None)
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.page.on("request", lambda request: visit.requests.append(request.url))
    try:
        visit.page.goto(path.as_uri())
        visit.page.wait_for_selector("html[data-ready]", timeout=20_000)
        yield visit
    finally:
        context.close()


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

Make = Callable[..., Record]
Grid = Callable[..., list[Record]]
ROOT = Path(__file__).resolve().parents[2]
NASTY = "</script><img src=x onerror=alert(1)> \u2028 & <b>"


def page_of(made: Paper, path: Path) -> Path:
    """Write the page alone."""
    html = page_html(made.gathered, made.papers, made.published, made.groups, made.foreign)
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Yield one Chromium for all tests."""
    with started() as running:
        yield running


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_grid: Grid, make_record: Make) -> Paper:
    """Return a store with everything that can stand in one: two profiles, two suites, trouble of each kind."""
    store = tmp_path_factory.mktemp("store")
    official = {"model": ModelPlan(name="roberta-base", source="hub"), "epochs": 30.0, "steps": 4680,
                "batch_size": 16, "learning_rate": 5e-4, "targets": "attention+mlp",
                "data": DataPlan(source="hub", name="glue", max_length=512)}  # fmt: skip
    records = make_grid()
    records += make_grid(methods=("full", "lora"), tasks=("rte", "cola"), profile="small")
    records += [make_record("rte", "galore", s, "small", measured=False) for s in range(3)]
    records += [make_record("rte", "dora", 0, "small", status="diverged", parts={"error": NASTY})]
    records += [make_record("rte", "lora", s, "paper", score=0.79 + 0.002 * s, **official) for s in range(3)]
    for method, base in (("full", 20.0), ("lora", 30.0)):
        for seed in range(3):
            last = Evaluation(step=60, epoch=None, rows={}, metrics={"validation/perplexity": base + seed})
            parts = {"evaluations": [last], "main_metric": "validation/perplexity"}
            records.append(make_record("c4", method, seed, score=0.5, suite="c4", parts=parts))
    for method in ("full", "lora"):
        for at, (rate, rest) in enumerate([(1e-3, 1e-2), (1e-2, 1e-3), (1e-2, 1e-2)]):
            last = Evaluation(
                step=60, epoch=None, rows={}, metrics={"held_out/perplexity": 30.0 + at, "held_out/loss": 3.4 + at}
            )
            parts = {"evaluations": [last], "main_metric": "held_out/perplexity"}
            records.append(
                make_record("c4", method, 0, score=0.5, status="diverged" if at == 2 else "ok", suite="c4", parts=parts,
                            purpose="tuning", learning_rate=rate, rest_learning_rate=rest)
            )  # fmt: skip
    for record in records:
        write_record(store, record)
    write_record(store / "again", make_record())
    (store / "again" / "else.json").write_text("{}")
    foreign = read_foreign([Path(__file__).with_name("peft_result.json")])
    return paper(gather([store]), published_cells(), foreign)


@pytest.fixture(scope="module")
def path(made: Paper, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of that store."""
    return page_of(made, tmp_path_factory.mktemp("page") / "index.html")


@pytest.fixture
def visit(browser: Any, path: Path) -> Iterator[Visit]:
    """Yield the page, at the micro profile; a complaint or a request to anywhere fails the test."""
    with visiting(browser, path) as found:
        choose(found, "profile", "micro")
        yield found
        assert found.complaints == []
        assert {url for url in found.requests if not url.startswith("file://")} == set()
        assert len(set(found.requests)) == 1


def choose(visit: Visit, name: str, value: str) -> None:
    """Pick a value of a filter."""
    visit.page.select_option(f"#filter-{name}", value)


def column(visit: Visit, section: str, index: int) -> list[str]:
    """Return the texts of one column of a section's first table, top to bottom."""
    rows = visit.page.locator(f"#{section} .scroll").first.locator("tbody tr")
    return [rows.nth(i).locator("th, td").nth(index).inner_text().strip() for i in range(rows.count())]


def test_every_section_is_filled(visit: Visit) -> None:
    for name in ("conclusions", "front", "scores", "tuning", "curves", "parts", "refresh", "papers", "other", "runs"):
        assert visit.page.locator(f"#{name} .body > *").count() > 0, name
    assert visit.page.locator("#front .point").count() == 5
    assert visit.page.locator("#curves figure").count() == 9
    assert visit.page.locator("#summary").inner_text() == "166 runs, 5 methods"


def test_a_head_sorts_both_ways_and_says_so(visit: Visit) -> None:
    head = visit.page.locator("#scores thead th", has_text="RTE")
    for down in (True, False):
        head.locator("button").click()
        values = [float(text.split()[0]) for text in column(visit, "scores", 8)]
        assert len(values) == 5
        assert values == sorted(values, reverse=down)
        assert head.get_attribute("aria-sort") == ("descending" if down else "ascending")
    visit.page.locator("#scores thead th", has_text="Method").locator("button").click()
    names = column(visit, "scores", 0)
    assert names == sorted(names, key=str.lower)


def test_methods_and_tasks_filter_every_section(visit: Visit) -> None:
    visit.page.locator('.toggle[data-method="lora"]').click()
    assert "LoRA" not in column(visit, "scores", 0)
    assert visit.page.locator("#front .point").count() == 4
    assert visit.page.locator('.toggle[data-method="lora"]').get_attribute("aria-pressed") == "false"
    choose(visit, "task", "rte")
    heads = visit.page.locator("#scores thead th").all_inner_texts()
    assert [head.strip() for head in heads] == ["Method", "RTE"]
    assert visit.page.locator("#curves figure").count() == 1
    assert set(column(visit, "runs", 3)) == {"RTE"}


def test_the_profile_filters_and_micro_is_marked(visit: Visit) -> None:
    assert "Never the paper's numbers" in visit.page.locator("#front").inner_text()
    choose(visit, "profile", "small")
    assert "Never the paper's numbers" not in visit.page.locator("#front").inner_text()
    choose(visit, "suite", "c4")
    assert "lower is better" in visit.page.locator("#front").inner_text()


def test_scores_and_averages_are_those_of_the_python_tables(visit: Visit, made: Paper) -> None:
    (group,) = [g for g in made.groups if (g.suite, g.profile) == ("glue", "micro")]
    assert group.context is not None
    board = switchboard(group.context)
    names = [group.context.title(method) for method in group.context.methods]
    for changes in ({}, {"mrpc": "accuracy"}, {"mrpc": "accuracy", "tasks": 8, "epoch": "best", "stsb": "mean"}):
        for name, value in changes.items():
            visit.page.select_option(f"#choice-{name}", str(value))
        want = board.averages[board.conventions.index(convention_of(group.context.entry, **changes))]
        shown = dict(zip(column(visit, "scores", 0), column(visit, "scores", 10), strict=True))
        for name, found in zip(names, want.values(), strict=True):
            assert shown[name] == f"{100 * found.summary.mean:.1f} ± {100 * found.summary.sd:.1f}"  # type: ignore[operator]
    ranges = visit.page.locator("#scores .strip .range").all_inner_texts()
    means = {
        m: [100 * mean for row in board.averages if (mean := row[m].summary.mean) is not None]
        for m in group.context.methods
    }
    assert ranges == [f"{min(values):.1f} to {max(values):.1f}" for values in means.values()]


def test_the_chance_of_the_front_agrees_with_the_python_table(visit: Visit, made: Paper) -> None:
    (group,) = [g for g in made.groups if (g.suite, g.profile) == ("glue", "micro")]
    found = peaks_of(group.context, group.context.methods, group.context.counted)
    peaks = {m: float(peak) for m, peak in found.of.items()}
    want = front_probability(peaks, averages_of(group.context))
    for method, chance in want.items():
        label = visit.page.locator(f'#front .point[data-method="{method}"]').get_attribute("aria-label")
        shown = label.split("chance of being on it: ")[1].split(" %")[0]
        assert shown == (">99" if 0.995 <= chance < 1 else "<1" if 0 < chance < 0.005 else f"{100 * chance:.0f}")


def test_trials_are_drawn_and_open_their_run(visit: Visit) -> None:
    assert "No trials of these methods" in visit.page.locator("#tuning").inner_text()
    choose(visit, "suite", "c4")
    assert visit.page.locator("#tuning .panels figure").count() == 2
    assert visit.page.locator("#tuning .trial").count() == 6
    assert visit.page.locator("#tuning .trial path.error").count() == 2
    shown = dict(zip(column(visit, "tuning", 0), column(visit, "tuning", 5), strict=True))
    assert shown == {"Full training": "3.4000", "LoRA": "3.4000"}
    assert set(column(visit, "tuning", 8)) == {"no trial"}
    assert "Trials" in visit.page.locator("#tuning").inner_text()
    visit.page.locator("#tuning .trial").last.click()
    assert "tuning" in visit.page.locator("#drawer").inner_text()
    visit.page.locator("#drawer .close").click()


def test_the_budget_moves_the_answer(visit: Visit) -> None:
    slider = visit.page.locator("#budget")
    assert visit.page.locator("#front .point.dim").count() == 0
    best = visit.page.locator("#front .best").inner_text()
    slider.focus()
    visit.page.keyboard.press("Home")
    assert visit.page.locator("#front .best").inner_text() == "Nothing fits."
    assert visit.page.locator("#front .point.dim").count() == 5
    visit.page.keyboard.press("End")
    assert visit.page.locator("#front .best").inner_text() == best
    visit.page.keyboard.press("ArrowLeft")
    assert visit.page.locator("#front .point.dim").count() == 1


def test_hovering_a_point_tells_its_numbers(visit: Visit) -> None:
    assert visit.page.locator("#tip").is_hidden()
    visit.page.locator('#front .point[data-method="galore"]').hover()
    text = visit.page.locator("#tip").inner_text()
    assert text.startswith("GaLore")
    assert "n = 3" in text
    assert "peak" in text
    visit.page.mouse.move(2, 2)
    assert visit.page.locator("#tip").is_hidden()


def test_a_published_cell_tells_source_status_and_verdict(visit: Visit) -> None:
    cell = visit.page.locator("#papers tbody tr", has_text="LoRA").first.locator("td", has_text="79.06")
    cell.hover()
    text = visit.page.locator("#tip").inner_text()
    assert "verdict: undecided" in text
    assert "ours: 79.20 ± 0.20 (n=3)" in text
    assert "GaLore, arXiv 2403.03507, Table 4 (paper full text)" in text
    cell.click()
    assert "reaches over an end of the margin" in visit.page.locator("#drawer").inner_text()
    assert visit.page.locator("#drawer tbody tr", has_text="paper").count() >= 3


def test_an_unknown_cell_says_why(visit: Visit) -> None:
    visit.page.locator("#papers tbody tr", has_text="GradNormLoRP").locator("td").first.hover()
    text = visit.page.locator("#tip").inner_text()
    assert "verdict: not published" in text
    assert "only the abstract was found" in text


def test_tables_of_papers_switch(visit: Visit) -> None:
    visit.page.locator("#papers .tabs button", has_text="C4, perplexity").click()
    assert visit.page.locator("#papers thead th", has_text="350M").count() == 1
    assert "142.53" in visit.page.locator("#papers").inner_text()


def test_a_run_opens_with_environment_and_provenance_and_closes(visit: Visit) -> None:
    visit.page.locator("#runs tbody tr").first.click()
    drawer = visit.page.locator("#drawer")
    text = drawer.inner_text()
    for part in ("Environment and code", "0123456789abcdef", "Example CPU", "Provenance", "micro language", "Record:"):
        assert part in text, part
    visit.page.keyboard.press("Escape")
    assert drawer.is_hidden()
    visit.page.locator("#scores tbody td").first.click()
    drawer.locator("tbody tr").nth(1).click()
    assert "seed 1" in drawer.locator("h2").inner_text()
    assert "run=" in visit.page.url
    drawer.get_by_text("← back").click()
    assert drawer.locator("tbody tr").count() == 3
    assert "run=" not in visit.page.url
    drawer.locator(".close").click()
    assert drawer.is_hidden()


def test_the_keyboard_alone_is_enough(visit: Visit) -> None:
    page = visit.page
    page.reload()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    choose(visit, "profile", "micro")
    row = page.locator("#runs tbody tr").first
    row.focus()
    page.keyboard.press("Enter")
    assert page.locator("#drawer").is_visible()
    page.keyboard.press("Escape")
    head = page.locator("#scores thead button").nth(1)
    head.focus()
    page.keyboard.press("Space")
    assert page.locator("#scores thead th").nth(1).get_attribute("aria-sort") == "descending"
    page.locator('#front .point[data-method="full"]').focus()
    page.keyboard.press("Enter")
    assert "Full fine-tuning" in page.locator("#drawer h2").inner_text()


def test_the_theme_switches_and_follows_the_system(browser: Any, path: Path, visit: Visit) -> None:
    def background(page: Any) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = background(visit.page)
    visit.page.locator("#theme").click()
    assert (visit.page.locator("#theme").get_attribute("data-now"), background(visit.page)) == ("light", light)
    visit.page.locator("#theme").click()
    dark = background(visit.page)
    assert dark != light
    with visiting(browser, path, scheme="dark") as other:
        assert background(other.page) == dark
        other.page.locator("#theme").click()
        assert background(other.page) == light


def test_a_method_has_one_colour_everywhere(visit: Visit) -> None:
    places = "#front .point[data-method=galore] polygon, #curves polyline[data-method=galore]"
    rows = "#scores tbody tr, #runs tbody tr, #refresh tbody tr, #papers tbody tr"
    fills = visit.page.evaluate(
        """([places, rows]) => [...document.querySelectorAll(places),
            ...[...document.querySelectorAll(rows)].filter((row) => row.innerText.startsWith('GaLore'))
                .map((row) => row.querySelector('.mark polygon'))].map((node) => getComputedStyle(node).stroke)""",
        [places, rows],
    )
    assert len(fills) > 9
    assert set(fills) == {"rgb(0, 158, 115)"}


def test_lines_bear_the_marks_of_their_methods(visit: Visit) -> None:
    shapes = visit.page.locator("#curves figure").first.locator(".spot")
    assert shapes.count() == 4 * 5
    assert len(set(shapes.evaluate_all("(nodes) => nodes.map((node) => node.style.fill)"))) == 5


def test_shares_of_nearly_all_are_not_all(visit: Visit, tmp_path: Path, browser: Any, path: Path) -> None:
    html = path.read_text().replace("\nstart();\n", "\nstart();\nwindow.percent = percent;\n")
    (tmp_path / "open.html").write_text(html)
    with visiting(browser, tmp_path / "open.html") as seen:
        shown = seen.page.evaluate("[0, 0.05, 0.6, 50, 99.4, 99.6, 99.95, 100].map(percent)")
    assert shown == ["0 %", "<1 %", "1 %", "50 %", "99 %", ">99 %", ">99 %", "100 %"]


@pytest.mark.parametrize("width", [360, 768])
def test_narrow_screens_do_not_scroll_sideways(browser: Any, path: Path, width: int) -> None:
    with visiting(browser, path, width, 740, touch=True) as narrow:
        assert narrow.page.evaluate("document.documentElement.scrollWidth") <= width
        assert narrow.page.locator("#front .point").count() > 0
        narrow.page.locator("#runs tbody tr").first.tap()
        assert narrow.page.locator("#drawer").bounding_box()["width"] <= width
        assert narrow.complaints == []


def test_trouble_is_shown_as_what_it_is(visit: Visit) -> None:
    choose(visit, "profile", "small")
    assert "GaLore (memory not measured)" in visit.page.locator("#front").inner_text() or "memory not measured" in (
        visit.page.locator("#parts").inner_text()
    )
    assert "diverged 1/3, not run 2/3" in visit.page.locator("#scores").inner_text()
    assert "not run" in visit.page.locator("#scores").inner_text()
    visit.page.select_option("#status", "diverged")
    visit.page.locator("#runs tbody tr").first.click()
    assert "<img src=x" in visit.page.locator("#drawer").inner_text()
    assert visit.page.locator("img").count() == 0
    visit.page.keyboard.press("Escape")
    visit.page.locator("#other summary", has_text="What was left out").click()
    text = visit.page.locator("#other").inner_text()
    assert "same plan as" in text
    assert "not a record of a run" in text


def test_foreign_runs_are_marked(visit: Visit) -> None:
    text = visit.page.locator("#other").inner_text()
    assert "Foreign: result files of another suite" in text
    assert "DoRA (peft)" in text
    assert "peft" not in visit.page.locator("#scores").inner_text()


def test_runs_are_searched(visit: Visit) -> None:
    visit.page.fill("#search", "galore wnli")
    assert visit.page.locator("#run-count").inner_text().startswith("3 of ")
    assert set(column(visit, "runs", 0)) == {"GaLore"}


def test_the_address_keeps_the_choice_over_a_reload(visit: Visit) -> None:
    page = visit.page
    page.locator('.toggle[data-method="lora"]').click()
    choose(visit, "task", "rte")
    page.select_option("#choice-epoch", "best")
    page.locator("#scores thead button").nth(1).click()
    page.fill("#search", "galore")
    page.locator("#runs tbody tr").first.click()
    texts = {name: page.locator(f"#{name}").inner_text() for name in ("scores", "front", "runs", "drawer")}
    page.reload()
    page.wait_for_selector("html[data-ready]")
    for name, text in texts.items():
        assert page.locator(f"#{name}").inner_text() == text, name
    assert page.locator("#filter-task").input_value() == "rte"
    assert page.locator("#choice-epoch").input_value() == "best"


def test_an_address_that_names_nothing_known_opens_as_usual(browser: Any, path: Path) -> None:
    with visiting(browser, path) as usual:
        text = usual.page.locator("#scores").inner_text()
        usual.page.goto(
            f"{path.as_uri()}#suite=x&rank=y&task=z&off=w&epoch=v&sort.scores=u&run=t&at=s&budget=-1&paper=r"
        )
        usual.page.reload()
        usual.page.wait_for_selector("html[data-ready]")
        assert usual.page.locator("#scores").inner_text() == text
        assert usual.complaints == []


def saved(visit: Visit, section: str, kind: str) -> bytes:
    """Press the first button of a section that saves as `kind` and return the file."""
    with visit.page.expect_download() as waiting:
        visit.page.locator(f"#{section} .save", has_text=kind).first.click()
    assert waiting.value.suggested_filename.endswith(f".{kind.lower()}")
    return Path(waiting.value.path()).read_bytes()


def test_a_table_is_saved_as_csv_in_the_order_shown(visit: Visit) -> None:
    visit.page.locator("#scores thead th", has_text="RTE").locator("button").click()
    frame = pd.read_csv(io.BytesIO(saved(visit, "scores", "CSV")))
    assert list(frame["Method"]) == column(visit, "scores", 0)
    assert [f"{mean:.1f} ± {sd:.1f}" for mean, sd in zip(frame["RTE"], frame["RTE, sd"], strict=True)] == column(
        visit, "scores", 8
    )
    assert set(frame["Average, seeds"]) == {3}


def test_a_figure_is_saved_as_svg_and_png(visit: Visit) -> None:
    for section in ("front", "curves", "parts"):
        root = ElementTree.fromstring(saved(visit, section, "SVG"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        words = " ".join(root.itertext())
        assert "var(" not in ElementTree.tostring(root, encoding="unicode")
        assert "GLUE, profile micro" in words
        assert saved(visit, section, "PNG").startswith(b"\x89PNG")
    assert "Peak memory of a training step" in " ".join(ElementTree.fromstring(saved(visit, "front", "SVG")).itertext())


def test_the_average_is_not_cut_at_1280(visit: Visit) -> None:
    room, needed = visit.page.evaluate(
        "(({ clientWidth, scrollWidth }) => [clientWidth, scrollWidth])(document.querySelector('#scores .scroll'))"
    )
    assert needed <= room


@pytest.fixture(scope="module")
def settings_page(tmp_path_factory: pytest.TempPathFactory, make_grid: Grid) -> Path:
    """Return a page with three settings of one method, one of them on a single task."""
    folder = tmp_path_factory.mktemp("settings")
    records = make_grid() + make_grid(methods=("lora",), method_config={"rank": 8, "alpha": 32.0})
    records += make_grid(methods=("gradnormlorp",), tasks=("rte",), state_bits=8, per_layer=True)
    for record in records:
        write_record(folder / "store", record)
    return page_of(paper(gather([folder / "store"]), published_cells()), folder / "settings.html")


ROWS = [
    "Full fine-tuning", "LoRA, alpha 16", "LoRA, alpha 32", "DoRA", "GaLore",
    "GradNormLoRP, 8 bit, per-layer updates", "GradNormLoRP, 32 bit",
]  # fmt: skip


def test_settings_are_rows_in_every_section_and_the_address(browser: Any, settings_page: Path) -> None:
    with visiting(browser, settings_page) as seen:
        page = seen.page
        assert column(seen, "scores", 0) == ROWS
        assert page.locator("#front .point").count() == 6
        marks = page.evaluate(
            "() => [...document.querySelectorAll('#curves polyline.line')].map((node) => node.style.stroke)"
        )
        assert len(set(marks)) == 7
        page.locator(".toggle", has_text="LoRA, alpha 32").click()
        page.locator(".toggle", has_text="GradNormLoRP, 8 bit").click()
        left = [name for name in ROWS if "alpha 32" not in name and "8 bit" not in name]
        assert column(seen, "scores", 0) == left
        page.reload()
        page.wait_for_selector("html[data-ready]")
        assert column(seen, "scores", 0) == left
        page.fill("#search", "lora, alpha 16")
        assert page.locator("#run-count").inner_text().startswith("27 of ")
        assert seen.complaints == []


def test_rows_of_lists_hide_over_a_reload(browser: Any, tmp_path: Path, make_grid: Grid) -> None:
    records = make_grid(methods=("full", "lora"), tasks=("rte",))
    records += make_grid(methods=("lora",), tasks=("rte",), recompute=("norms", "mlp"))
    records += make_grid(methods=("lora",), tasks=("rte",), variant='of "two" kinds', recompute=("loss",))
    for record in records:
        write_record(tmp_path / "store", record)
    page = page_of(paper(gather([tmp_path / "store"]), published_cells()), tmp_path / "rows.html")
    with visiting(browser, page) as seen:
        toggles = seen.page.locator(".toggle")
        assert toggles.count() == 4
        for at in (1, 2, 3):
            toggles.nth(at).click()
        assert column(seen, "scores", 0) == ["Full fine-tuning"]
        seen.page.reload()
        seen.page.wait_for_selector("html[data-ready]")
        assert column(seen, "scores", 0) == ["Full fine-tuning"]
        assert seen.complaints == []


def test_a_record_is_a_link_where_its_path_leads_to_it(
    browser: Any, tmp_path: Path, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(tmp_path / "here" / "50 % #1", make_record())
    write_record(tmp_path / "there", make_record(seed=1))
    monkeypatch.chdir(tmp_path / "here")
    made = paper(gather([tmp_path / "here", tmp_path / "there"]), published_cells())
    html = page_html(made.gathered, made.papers, made.published, made.groups, made.foreign, link="../")
    (tmp_path / "here" / "out").mkdir()
    page = tmp_path / "here" / "out" / "index.html"
    page.write_text(html, encoding="utf-8")
    with visiting(browser, page) as seen:
        rows = seen.page.locator("#runs tbody tr")
        assert rows.count() == 2
        links = {}
        for at in range(2):
            rows.nth(at).click()
            links[seen.page.locator("#drawer h2").inner_text()] = seen.page.locator("#drawer .file a").evaluate_all(
                "(nodes) => nodes.map((node) => node.href)"
            )
            seen.page.keyboard.press("Escape")
        near, far = (links[f"LoRA, RTE, seed {seed}"] for seed in (0, 1))
        assert far == []
        (path,) = made.gathered.found[0].file.parent.iterdir()
        assert near == [path.resolve().as_uri()]


@pytest.mark.parametrize("width", [360, 1280])
def test_rows_with_long_names_cut_nothing(browser: Any, settings_page: Path, width: int) -> None:
    with visiting(browser, settings_page, width, 900) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        if width == 1280:
            frame, average = (
                seen.page.locator(f"#scores {part}").first.bounding_box() for part in (".scroll", "tbody td.pin")
            )
            assert average["x"] + average["width"] <= frame["x"] + frame["width"] + 1


def test_a_front_over_one_seed_is_hollow_and_says_so(browser: Any, tmp_path: Path, make_grid: Grid) -> None:
    for record in make_grid(seeds=(0,)):
        write_record(tmp_path / "one", record)
    page = page_of(paper(gather([tmp_path / "one"]), published_cells()), tmp_path / "one.html")
    with visiting(browser, page) as one:
        told = one.page.locator("#front").inner_text()
        assert "The average is not drawn: fewer than 3 seeds are shared" in told
        assert one.page.locator("#front .point").count() == 0
        assert one.page.locator("#scores .strip").count() == 0
        choose(one, "task", "rte")
        marks = ".point :is(rect, polygon, circle[r='7'])"
        fills = one.page.evaluate(
            "(marks) => [...document.querySelectorAll(marks)].map((node) => node.style.fill)", f"#front {marks}"
        )
        assert len(fills) == 5
        assert set(fills) == {"var(--card)"}
        assert "one seed cannot say what lies on the front" in one.page.locator("#front").inner_text()
        assert "no order of the methods may be concluded" in one.page.locator("#conclusions").inner_text()
        assert one.complaints == []


def test_an_empty_store_opens(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with visiting(
        browser, page_of(paper(gather([tmp_path / "none"]), published_cells()), tmp_path / "e.html")
    ) as empty:
        assert "No records" in empty.page.locator("#main").inner_text()
        assert "62.24" in empty.page.locator("#papers").inner_text()
        assert empty.complaints == []


def test_the_committed_records_open_and_are_photographed(browser: Any, tmp_path: Path) -> None:
    made = paper(gather([ROOT / "results" / "reference"]), published_cells())
    page = page_of(made, tmp_path / "index.html")
    shots = {"page-light": (1280, 860, "light"), "page-dark": (1280, 860, "dark"), "page-phone": (390, 844, "light")}
    for name, (width, height, scheme) in shots.items():
        with visiting(browser, page, width, height, scheme) as seen:
            choose(seen, "suite", "c4")
            choose(seen, "profile", "small")
            seen.page.evaluate("document.activeElement.blur()")
            shot = tmp_path / f"{name}.png"
            seen.page.screenshot(path=shot)
            assert shot.stat().st_size > 10_000
            # No name of the list runs into its score.
            rows = "[...document.querySelectorAll('#front .fits li')]"
            assert seen.page.evaluate(f"{rows}.length") == 7
            wide = "[...row.children].some((node) => node.scrollWidth > node.clientWidth + 1)"
            assert seen.page.evaluate(f"{rows}.filter((row) => {wide}).map((row) => row.innerText)") == []
            # The control, which trains no matrix, does not stretch the axis of their rates.
            marks = seen.page.locator("#tuning .panels svg").first.locator("text").all_text_contents()
            assert marks.count("0.001") == 2
            assert seen.complaints == []
            assert {url for url in seen.requests if not url.startswith("file://")} == set()
            if folder := os.environ.get("GNLORP_SCREENSHOTS"):
                shutil.copy(shot, folder)


def test_equal_memory_is_chosen_beside_the_rank_and_kept_in_the_address(
    browser: Any, tmp_path: Path, make_grid: Grid
) -> None:
    for record in make_grid() + make_grid(methods=("full", "lora"), variant=EQUAL_MEMORY):
        write_record(tmp_path / "store", record)
    equal = page_of(paper(gather([tmp_path / "store"]), published_cells()), tmp_path / "equal.html")
    with visiting(browser, equal) as seen:
        page = seen.page
        assert page.locator("#filter-variant option").all_inner_texts() == ["tokens", "memory"]
        assert len(column(seen, "scores", 0)) == 5
        page.locator("#filter-variant").select_option("equal memory")
        assert column(seen, "scores", 0) == ["Full fine-tuning", "LoRA"]
        assert "they order nothing" in page.locator("#front").inner_text()
        assert "front of score" not in page.locator("#conclusions .lines").nth(1).inner_text()
        runs = page.locator("#run-count").inner_text()
        assert runs.startswith("54 of ")
        page.reload()
        page.wait_for_selector("html[data-ready]")
        assert column(seen, "scores", 0) == ["Full fine-tuning", "LoRA"]
        assert page.locator("#run-count").inner_text() == runs
        assert seen.complaints == []
