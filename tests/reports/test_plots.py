"""The figures: what they are drawn from, no text on text, nothing outside, the same bytes twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from reports.figures import front_and_curves as plots
from reports.figures import parts_and_scores as bars
from reports.figures.front_and_curves import Plot, curve_plot, front_plot, front_points, smooth
from reports.figures.labels import overlap
from reports.figures.parts_and_scores import dots_plot, memory_bars, parts_plot
from reports.records.report_runs import Context
from reports.tables import bench
from reports.tables.cost import peaks_of
from results.bench import Bench
from results.schema import Record
from results.store import read_single

Make = Callable[..., Record]
Grid = Callable[..., list[Record]]
ROOT = Path(__file__).resolve().parents[2]
TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
MAKERS = (front_plot, curve_plot, parts_plot, dots_plot)


@dataclass
class Drawn:
    """One figure as drawn: itself, and every text that reached the canvas, with its box and font size."""

    figure: Figure
    texts: list[tuple[str, Bbox, float]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Drawn]]:
    """Collect the figures that are drawn instead of writing them."""
    found: list[Drawn] = []
    plain = Text.draw

    def note(self: Text, renderer: RendererBase) -> None:
        plain(self, renderer)
        if found and self.get_visible() and self.get_text().strip():
            found[-1].texts.append(
                (self.get_text(), Text.get_window_extent(self, renderer), float(self.get_fontsize()))
            )

    def keep(name: str, title: str, caption: str, build: Callable[[], Figure]) -> Plot:
        figure = build()
        found.append(Drawn(figure, []))
        FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
        return Plot(name, title, caption, {}, figure)

    monkeypatch.setattr(Text, "draw", note)
    monkeypatch.setattr(plots, "draw", keep)
    monkeypatch.setattr(bars, "draw", keep)
    with mpl.rc_context(plots.STYLE):
        yield found


def mixed_grid(make_grid: Grid, make_record: Make) -> list[Record]:
    """Return a grid with unknown methods, broken runs and missing ones."""
    records = make_grid(
        methods=("full", "lora", "dora", "galore", "gradnormlorp", "a-rather-long-method-name", "relora")
    )
    records = [r for r in records if not (r.plan.task in ("rte", "wnli") and r.plan.method == "lora" and r.plan.seed)]
    return [
        *records,
        make_record("rte", "lora", 1, status="diverged"),
        make_record("rte", "lora", 2, status="out_of_memory"),
    ]


@pytest.mark.parametrize("make", MAKERS)
def test_no_text_covers_text_or_leaves_the_figure(
    drawn: list[Drawn], make_grid: Grid, make_record: Make, make: Callable[[Context], Plot | None]
) -> None:
    make(Context(mixed_grid(make_grid, make_record), "micro", 8))
    (one,) = drawn
    assert len(one.texts) > 8
    canvas = one.figure.bbox
    for text, box, size in one.texts:
        assert min(box.x0, box.y0) >= -1, f"{text!r} is cut"
        assert max(box.x1 - canvas.x1, box.y1 - canvas.y1) <= 1, f"{text!r} is cut"
        assert size >= 7.5, f"{text!r} is too small"
    for (first, box, _), (second, other, _) in combinations(one.texts, 2):
        assert overlap(box.padded(-1), other.padded(-1)) == 0, f"{first!r} covers {second!r}"


@pytest.mark.parametrize("make", MAKERS)
def test_same_records_same_bytes(make_grid: Grid, make: Callable[[Context], Plot | None]) -> None:
    # An average to draw is one over all tasks; the others need no more than two.
    records = make_grid(tasks=TASKS if make is front_plot else ("cola", "rte"))
    with mpl.rc_context({"font.size": 22, "xtick.major.size": 20, "lines.dash_capstyle": "round"}):
        first = make(Context(records, "micro", 8))
    second = make(Context(records[::-1], "micro", 8))
    assert first == second
    assert first is not None
    assert first.png.startswith(b"\x89PNG")
    assert b"<svg" in first.svg
    assert "not the paper's numbers" in first.caption


def test_front_points_take_the_highest_peak_and_mark_the_front(make_grid: Grid) -> None:
    context = Context(make_grid(), "micro", 8)
    points = {point.method: point for point in front_points(context)}
    runs = context.runs.query("method == 'galore' and task in @context.convention.names")
    assert points["galore"].peak_bytes == runs["tracked_peak_bytes"].max()
    assert points["lora"].on_front
    assert points["full"].on_front
    assert not points["dora"].on_front
    assert points["full"].sd is not None


def test_methods_without_average_or_memory_are_named_not_drawn(drawn: list[Drawn], make_grid: Grid) -> None:
    records = make_grid(methods=("full", "lora")) + make_grid(methods=("dora",), measured=False)
    front_plot(Context(records, "micro", 8))
    words = " ".join(text for text, *_ in drawn[0].texts).replace("\n", " ")
    assert "Not shown, no average or no measured peak: DoRA" in words


def test_methods_without_a_measured_peak_are_named_below_its_parts(drawn: list[Drawn], make_grid: Grid) -> None:
    records = make_grid(methods=("full", "lora"), tasks=("rte",))
    parts_plot(Context(records + make_grid(methods=("dora",), tasks=("rte",), measured=False), "micro", 8))
    words = " ".join(text for text, *_ in drawn[0].texts).replace("\n", " ")
    assert "Not shown, no measured peak: DoRA." in words


def test_the_front_takes_peaks_of_the_tasks_that_all_were_measured_on(make_grid: Grid) -> None:
    records = make_grid(methods=("full", "lora")) + make_grid(methods=("dora",), tasks=("cola",))
    records += make_grid(methods=("dora",), tasks=TASKS[1:], measured=False)
    context = Context(records, "micro", 8)
    cola = context.runs[context.runs["task"] == "cola"].groupby("method")["tracked_peak_bytes"].max()
    assert {point.method: point.peak_bytes for point in front_points(context)} == cola.to_dict()
    assert peaks_of(context, context.methods, context.counted).note.startswith("Peak: the highest of CoLA; ")


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_an_average_over_too_few_seeds_is_not_drawn(make_grid: Grid, seeds: tuple[int, ...]) -> None:
    assert front_points(Context(make_grid(seeds=seeds), "micro", 8))
    assert front_plot(Context(make_grid(seeds=seeds), "micro", 8)) is None


def test_figures_without_their_values_are_not_made(make_grid: Grid) -> None:
    context = Context(make_grid(tasks=("rte",), measured=False, curve=False), "micro", 8)
    assert [make(context) is None for make in MAKERS] == [True, True, True, False]


def test_bars_add_up_to_the_tracked_peak(make_grid: Grid) -> None:
    context = Context(make_grid(tasks=("rte",)), "micro", 8)
    found = memory_bars(context)
    assert [(bar.method, bar.refresh) for bar in found if bar.refresh] == [("galore", True), ("gradnormlorp", True)]
    for bar in found:
        name = "refresh_peak_total_bytes" if bar.refresh else "step_peak_total_bytes"
        total = context.runs.loc[context.runs["method"] == bar.method, name].iloc[0]
        assert bar.total_bytes == total
    galore = next(bar for bar in found if bar.method == "galore")
    assert galore.parts["Bases"] == 70_000
    assert galore.parts["Optimizer state"] == 900_000


def test_line_of_the_constant_prediction_only_if_recorded(drawn: list[Drawn], make_grid: Grid) -> None:
    records = make_grid(tasks=("rte", "cola"))
    dots_plot(Context(records, "micro", 8))
    dots_plot(Context([_with_constant(record, {"validation/accuracy": 0.5}) for record in records], "micro", 8))
    without, given = (sum(line.get_linestyle() == "--" for ax in one.figure.axes for line in ax.lines) for one in drawn)
    assert (without, given) == (0, 1)


def _with_constant(record: Record, scores: dict[str, float | None]) -> Record:
    assert record.data is not None
    return record.model_copy(update={"data": record.data.model_copy(update={"constant_scores": scores})})


@pytest.mark.parametrize("make", MAKERS)
def test_every_axis_has_a_title(drawn: list[Drawn], make_grid: Grid, make: Callable[[Context], Plot | None]) -> None:
    make(Context(make_grid(tasks=("rte", "cola", "mrpc", "qqp") if make is not front_plot else TASKS), "micro", 8))
    axes = drawn[0].figure.axes
    rows, columns = {round(ax.get_position().y0, 2) for ax in axes}, {round(ax.get_position().x0, 2) for ax in axes}
    # Panels share the title of their row and column, where it stands at the edge.
    assert len([ax for ax in axes if ax.get_xlabel()]) >= len(columns)
    named = [ax for ax in axes if ax.get_ylabel() or any(label.get_text().isalpha() for label in ax.get_yticklabels())]
    assert len(named) >= len(rows)


def test_the_line_of_a_card_stands_where_it_can_be_reached(make_grid: Grid) -> None:
    def lines(total: int) -> list[float]:
        bar = bars.Bar("full", "Full", False, {"Weights": total})
        figure = bars.stacked([bar], "t", "u", "f")
        return [float(line.get_xdata()[0]) for line in figure.axes[0].lines]  # type: ignore[index, arg-type]

    assert lines(30 * 1024**3) == [24.0]
    assert lines(20 * 1024**3) == lines(10**6) == []


def test_a_dashed_line_over_a_solid_one_for_methods_that_agree(drawn: list[Drawn], make_grid: Grid) -> None:
    context = Context(make_grid(methods=("lora", "dora"), tasks=("rte",), seeds=(0,)), "micro", 8)
    curve_plot(context)
    styles = [line.is_dashed() for line in drawn[0].figure.axes[0].lines]
    assert styles == [False, True]
    assert [look.dashed for look in context.looks.values()] == [False, True]


def test_a_figure_has_three_formats_and_itself(make_grid: Grid) -> None:
    plot = parts_plot(Context(make_grid(tasks=("rte",)), "micro", 8))
    assert plot is not None
    assert {form: content[:4] for form, content in plot.files.items()} == {
        "png": b"\x89PNG", "svg": b"<?xm", "pdf": b"%PDF",
    }  # fmt: skip
    assert isinstance(plot.figure, Figure)


def test_smoothing_keeps_a_constant_and_halves_nothing() -> None:
    line = pd.Series([1.0] * 100)
    assert smooth(line).tolist() == [1.0] * 100
    assert smooth(pd.Series([3.0])).tolist() == [3.0]
    wave = pd.Series([0.0, 1.0] * 50)
    assert smooth(wave).iloc[10:90].between(0.3, 0.7).all()


def test_the_names_in_the_benchs_figure_are_readable(drawn: list[Drawn], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "draw", plots.draw)
    bench.bench_plot(read_single(ROOT / "results" / "reference" / "bench.json", Bench))
    (one,) = drawn
    canvas = one.figure.bbox
    for text, box, _ in one.texts:
        assert min(box.x0, box.y0) >= -1, f"{text!r} is cut"
        assert max(box.x1 - canvas.x1, box.y1 - canvas.y1) <= 1, f"{text!r} is cut"
    for axes in one.figure.axes:
        slanted = [label for label in axes.get_xticklabels() if label.get_rotation()]
        places = [axes.transData.transform((label.get_position()[0], 1.0))[0] for label in slanted]
        for label, here, there in zip(slanted, places, places[1:], strict=False):
            lines = len(label.get_text().split("\n"))
            needed = lines * label.get_fontsize() * one.figure.dpi / 72
            between = (there - here) * math.sin(math.radians(label.get_rotation()))
            assert between >= needed, f"{label.get_text()!r} runs into the next name"
        assert axes.get_xlabel()
        assert axes.get_ylabel()
    words = [text for text, *_ in one.texts]
    assert "target" in words
    assert any("cores, torch" in text for text in words)
    level = [(text, box) for text, box, _ in one.texts if "\n" not in text]
    for (first, box), (second, other) in combinations(level, 2):
        assert overlap(box.padded(-1), other.padded(-1)) == 0, f"{first!r} covers {second!r}"
