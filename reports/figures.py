"""Figures as SVG text: curves, improvements, phase times. Their colours are known, so that a page can retheme them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reports.curves import AXES, Curve
from reports.diversity import Projection, thinned
from reports.results import Line, Metric, Results
from reports.tables import PHASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#1b1b19", "#d9d6cf"
ARM_COLOURS = ("#0b62a4", "#c8501e", "#1f8a5f", "#a8438f", "#9a7400", "#4a8fc0", "#6b6b66")
PHASE_COLOURS = ("#2f6f9f", "#c79a3b", "#7d8f4e", "#b5573c", "#a3a29c")
DASHES = ("-", (0, (4, 1.6)), (0, (1, 1.4)), (0, (5, 1.5, 1, 1.5)))
"""After the colours have run out, the next arms take them again with the next dash."""
WIDTH = 3.6
"""Inches; a figure fills a telephone's width, where its letters are then 12 pixels high, and a third of a desktop's."""


POINTS = 400
"""Most images of an arm in a plot of images: each is an element of the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How an arm is drawn, in every figure."""

    colour: str
    dash: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure."""

    name: str
    """Of its file, without suffix."""
    title: str
    caption: str
    svg: str


def draw(
    results: Results, curves: Sequence[Curve], projection: Projection | None, order: Sequence[str]
) -> list[Drawing]:
    """Return all figures that the records have numbers for; `order` is the arms' labels, which fixes their colours."""
    styles = {label: _style(index) for index, label in enumerate(order)}
    with _look():
        drawings = [_improvement(metric, results.lines, styles) for metric in results.metrics if _has(metric, results)]
        if curves:
            drawings += [_against(axis, curves, styles) for axis in AXES]
        timed = [line for line in results.lines if line.seconds]
        if timed:
            drawings.append(_phases(timed))
        if projection is not None:
            drawings += [_embedding(projection, at, styles) for at in range(1, len(projection.arms))]
    return drawings


def _improvement(metric: Metric, lines: Sequence[Line], styles: Mapping[str, Style]) -> Drawing:
    """Draw the paired improvement over the base with its interval, an arm a row."""
    gains = [(line.label, score.gain) for line in lines if (score := line.scores.get(metric.name)) and score.gain]
    figure, axes = _figure(0.75 + 0.27 * len(gains))
    axes.axvline(0, color=INK, linewidth=0.8)
    for row, (label, gain) in enumerate(gains):
        colour = styles[label].colour
        if gain.known:
            axes.plot([gain.low, gain.high], [row, row], color=colour, linewidth=1.8, solid_capstyle="butt")
        axes.plot([gain.mean], [row], "o", color=colour, markersize=5)
    axes.set_yticks(range(len(gains)), [_shortened(label) for label, _ in gains])
    axes.set_ylim(len(gains) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(f"improvement of {metric.name} ({metric.unit['unit']})")
    role = "trained on" if metric.trained else "held out"
    kinds = "; ".join(dict.fromkeys(gain.kind for _, gain in gains))
    return _drawing(figure, f"improvement-{_filename(metric.name)}", f"{metric.name}, {role}", f"Line: {kinds}.")


def _against(axis: str, curves: Sequence[Curve], styles: Mapping[str, Style]) -> Drawing:
    """Draw training reward against one cost axis."""
    labels = [_shortened(curve.label) + ("" if curve.finished else " (unfinished)") for curve in curves]
    ncols = 2 if max(map(len, labels)) <= 16 else 1
    figure, axes = _figure(2.4 + 0.17 * -(-len(curves) // ncols))
    for curve, label in zip(curves, labels, strict=True):
        style = styles[curve.label]
        marker = "o" if len(curve.mean) == 1 else None
        line = {"color": style.colour, "linestyle": style.dash, "marker": marker, "linewidth": 1.5}
        axes.plot(curve.x[axis], curve.mean, label=label, **line)
        if curve.seeds > 1:
            axes.fill_between(curve.x[axis], curve.low, curve.high, color=style.colour, alpha=0.16, linewidth=0)
    axes.grid(axis="y")
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel("training reward")
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=5, integer=axis == "iterations")
    figure.legend(loc="outside lower left", ncols=ncols, frameon=False)
    seeds = sorted({curve.seeds for curve in curves})
    count = " or ".join(map(str, seeds))
    band = f"mean over {count} seeds; band: lowest to highest seed" if seeds[-1] > 1 else "one seed"
    return _drawing(
        figure, f"reward-{axis.replace('_', '-')}", f"Reward against {axis.replace('_', ' ')}", f"Line: {band}."
    )


def _phases(lines: Sequence[Line]) -> Drawing:
    """Draw the median seconds of each phase, stacked, an arm a row."""
    figure, axes = _figure(1.2 + 0.32 * len(lines))
    names = {name for line in lines for name in line.seconds or {}} - {"total"}
    order = [*(phase for phase in PHASES if phase in names), *sorted(names - set(PHASES))]
    left = [0.0] * len(lines)
    for index, phase in enumerate(order):
        seconds = [(line.seconds or {}).get(phase, 0.0) for line in lines]
        colour = PHASE_COLOURS[index % len(PHASE_COLOURS)]
        axes.barh(range(len(lines)), seconds, left=left, height=0.62, color=colour, label=phase)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    axes.set_yticks(range(len(lines)), [_shortened(line.label) for line in lines])
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("seconds an iteration")
    figure.legend(loc="outside lower left", ncols=3, frameon=False, handlelength=1, columnspacing=1)
    caption = (
        "Median of each phase over iterations, the first dropped, and over seeds; the total's need not be their sum."
    )
    return _drawing(figure, "phases", "Iteration time by phase", caption)


def _embedding(projection: Projection, at: int, styles: Mapping[str, Style]) -> Drawing:
    """Draw the images of the reference and of one other arm on the axes that all arms share."""
    figure, axes = _figure(3.3)
    reference, (label, _) = projection.arms[0][0], projection.arms[at]
    for name, points in (projection.arms[0], projection.arms[at]):
        x, y = thinned(points, POINTS).T
        marker = {"color": styles[name].colour, "markersize": 3.2, "alpha": 0.55, "markeredgewidth": 0}
        axes.plot(x, y, "o" if name == reference else "D", label=_shortened(name), **marker)
    everything = np.concatenate([points for _, points in projection.arms])
    low, high = everything.min(axis=0), everything.max(axis=0)
    pad = 0.04 * (high - low) + 1e-9
    axes.set(xlim=(low[0] - pad[0], high[0] + pad[0]), ylim=(low[1] - pad[1], high[1] + pad[1]))
    axes.locator_params(nbins=5)
    first, second = (f"principal axis, {share:.0%} of variance" for share in projection.explained)
    axes.set_xlabel(f"first {first}")
    axes.set_ylabel(f"second {second}")
    ncols = 2 if max(len(reference), len(label)) <= 16 else 1
    figure.legend(loc="outside lower left", ncols=ncols, frameon=False, markerscale=1.8, handletextpad=0.2)
    caption = "A point is an image; the axes are the principal ones of all arms' features together."
    if any(len(points) > POINTS for _, points in projection.arms):
        caption += f" {POINTS} images an arm are shown, evenly taken."
    return _drawing(figure, f"embedding-{at}", f"{label} beside {reference}", caption)


def _figure(height: float) -> tuple[Figure, Axes]:
    # Without pyplot: no global state, no display, nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_axisbelow(True)
    return figure, axes


def _drawing(figure: Figure, name: str, title: str, caption: str) -> Drawing:
    import matplotlib as mpl

    out = io.StringIO()
    # Identifiers of clip paths are hashes; the salt keeps them the same from run to run and apart between figures.
    with mpl.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing, transparent=True)
    return Drawing(name=name, title=title, caption=caption, svg=out.getvalue())


@contextmanager
def _look() -> Iterator[None]:
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.use_mathtext": False,
        "axes.unicode_minus": True,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "grid.color": FAINT,
        "grid.linewidth": 0.7,
        "legend.fontsize": 9,
    }
    with mpl.rc_context(settings):
        yield


def _style(index: int) -> Style:
    turn, colour = divmod(index, len(ARM_COLOURS))
    return Style(colour=ARM_COLOURS[colour], dash=DASHES[turn % len(DASHES)])


def _has(metric: Metric, results: Results) -> bool:
    scores = (line.scores.get(metric.name) for line in results.lines)
    return any(score is not None and score.gain is not None for score in scores)


def _shortened(label: str) -> str:
    # matplotlib reads dollars as mathematics.
    short = label if len(label) <= 26 else f"{label[:16]}…{label[-9:]}"
    return short.replace("$", r"\$")


def _filename(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in name)
