"""Labels beside points without overlaps: try places around each point and take the least bad one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

DISTANCES = (9, 16, 26, 40, 58)
ANGLES = (0, 180, 45, -45, 135, -135, 90, -90, 20, -20, 160, -160, 65, -65, 115, -115)
LEADER_FROM = 20


@dataclass(frozen=True)
class Label:
    """A text to put beside (x, y) in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


def renderer_of(axes: Axes) -> RendererBase:
    """Return an Agg renderer of the axes' figure: positions are measured on it whatever is written later."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer: RendererBase = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    return renderer


def overlap(first: Bbox, second: Bbox) -> float:
    """Return the area that two boxes share, in square pixels."""
    shared = Bbox.intersection(first, second)
    return 0.0 if shared is None else float(shared.width * shared.height)


def place_labels(axes: Axes, labels: Sequence[Label], obstacles: Sequence[Bbox], size: float = 10) -> list[Text]:
    """Write every label near its point and return the texts.

    Args:
        obstacles: boxes in pixels that text must not cover (markers, error bars, other text).

    Each label, from left to right, goes where it covers the fewest pixels of obstacles and of labels placed before,
    stays inside the axes, and is near; a label further away gets a thin line to its point.
    """
    renderer = renderer_of(axes)
    taken = list(obstacles)
    texts: list[Text] = []
    for label in sorted(labels, key=lambda item: (item.x, item.y)):
        best = min(_spots(), key=lambda spot: _cost(axes, label, spot, size, taken, renderer))
        text = _write(axes, label, best, size, leader=math.hypot(*best) >= LEADER_FROM)
        taken.append(_extent(text, renderer))
        texts.append(text)
    return texts


def _spots() -> list[tuple[float, float]]:
    return [(r * math.cos(math.radians(a)), r * math.sin(math.radians(a))) for r in DISTANCES for a in ANGLES]


def _write(axes: Axes, label: Label, spot: tuple[float, float], size: float, leader: bool) -> Annotation:
    dx, dy = spot
    arrow = {"arrowstyle": "-", "color": "#8A8A8A", "linewidth": 0.8, "shrinkA": 1, "shrinkB": 5} if leader else None
    return axes.annotate(
        label.text, (label.x, label.y), xytext=spot, textcoords="offset points", fontsize=size, color=label.colour,
        ha="left" if dx > 1 else "right" if dx < -1 else "center",
        va="bottom" if dy > 6 else "top" if dy < -6 else "center", arrowprops=arrow,
    )  # fmt: skip


def _extent(text: Text, renderer: RendererBase) -> Bbox:
    return Text.get_window_extent(text, renderer).padded(2)


def _cost(
    axes: Axes, label: Label, spot: tuple[float, float], size: float, taken: Sequence[Bbox], renderer: RendererBase
) -> float:
    trial = _write(axes, label, spot, size, leader=False)
    trial.update_positions(renderer)
    box = _extent(trial, renderer)
    trial.remove()
    inside = overlap(box, axes.get_window_extent(renderer))
    outside = float(box.width * box.height) - inside
    covered = sum(overlap(box, other) for other in taken)
    return 10 * outside + 5 * covered + math.hypot(*spot)
