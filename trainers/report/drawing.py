"""Curves drawn as PNG: means over seeds with their 95 % t-interval, a panel below another."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..utils import io as files
from ..utils import statistics
from . import layout
from .curves import Curve, Panel, label

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#444444")
REFERENCE = "#8c959f"  # zero-shot CLIP
_STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))  # clean, first attack, ...
_QUIET, _TEXT = "#57606a", "#24292f"
_WIDTH, _PANEL, _SIDE = 6.6, 3.7, 3.6  # inches of a panel's axes, and of the legend
_BANDS = 5  # curves; more bands could not be distinguished
_LINE = 0.135  # inches of a line of the caption
_LEGEND, _CAPTION = 36, 132  # characters of a line


def draw(path, panels: list[Panel], key: str) -> Path:
    """Draw the panels into a PNG file; UserError where it cannot be written."""
    with files.atomic_write(Path(path)) as temporary:
        save(temporary, panels, key)
    return Path(path)


def save(out, panels: list[Panel], key: str, *, captions: bool = True) -> None:
    """Draw the panels as PNG into a path or a binary file object.

    Without captions, the page shows a panel's title and facts (:func:`facts_of`) itself.
    """
    facts = [facts_of(panel) if captions else [] for panel in panels]
    texts = [[part for line in own for part in textwrap.wrap(line, _CAPTION)] for own in facts]
    heights = [_PANEL + 1.15 + _LINE * len(lines) for lines in texts]  # inches
    width, height = _WIDTH + _SIDE, sum(heights)
    figure = Figure(figsize=(width, height), facecolor="white")
    top = height
    for panel, lines, own in zip(panels, texts, heights, strict=True):
        bottom = (top - 0.45 - _PANEL) / height
        axes = figure.add_axes((0.65 / width, bottom, _WIDTH / width, _PANEL / height))
        _draw_panel(axes, panel, key, titled=captions)
        look = {"fontsize": 7, "color": _QUIET, "linespacing": 1.25, "parse_math": False}
        below = -0.58 / _PANEL
        axes.text(0, below, "\n".join(lines), transform=axes.transAxes, va="top", **look)
        top -= own
    figure.savefig(out, format="png", dpi=150, bbox_inches="tight", pad_inches=0.15)


def facts_of(panel: Panel) -> list[str]:
    """Return what the reader of a panel needs to compare it."""
    rows = [row for curve in panel.curves for row in curve.rows.values()]
    counts = {len(row.runs) for row in rows}
    seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))
    shots, trained = {row.shots_label for row in rows}, {row.trained_with for row in rows}
    facts = [f"shots: {v}" for v in shots if len(shots) == 1]  # the axis or the names say the rest
    facts += [f"trained with: {v}" for v in trained if len(trained) == 1]
    lines = layout.caption(panel.table)
    lines[-1] = f"{lines[-1]}; n = {seeds}"
    return [*lines[:2], *([", ".join(facts)] if facts else []), *lines[2:]]


def _draw_panel(axes, panel: Panel, key: str, *, titled: bool) -> None:
    values, numeric = panel.values, panel.numeric
    places = {value: value if numeric else i for i, value in enumerate(values)}
    highest = 0.0
    for i, curve in enumerate(panel.curves):
        aside = 0.0 if numeric else 0.12 * (i - (len(panel.curves) - 1) / 2)  # side by side
        x = [places[value] + aside for value in curve.rows]
        for j, (_, signature) in enumerate(panel.figures):
            rows = curve.rows.values()
            points = [statistics.mean_interval(row.accuracies(signature)) for row in rows]
            means, halves = np.array([(mean, half or 0.0) for mean, half in points]).T
            low, high = means - halves, means + halves
            # two seeds have a huge interval, which must not flatten the curves
            highest = max(highest, min(high.max(), means.max() + 10))
            colour = _colour(panel, curve, i, j)
            line, marker = _look(panel, i, j)
            line = line if numeric else "none"  # no values exist between two categories
            look = {"linestyle": line, "marker": marker, "markersize": 5, "lw": 1.7, "zorder": 3}
            edge = {"markeredgecolor": "white", "markeredgewidth": 0.7}
            bars = {"fmt": "none", "ecolor": to_rgba(colour, 0.75), "elinewidth": 1, "capsize": 2.5}
            axes.plot(x, means, color=colour, **look, **edge)
            axes.errorbar(x, means, yerr=halves, zorder=2, **bars)
            if numeric and len(panel.curves) <= _BANDS:
                axes.fill_between(x, low, high, color=colour, alpha=0.13, lw=0, zorder=1)
    for row in panel.references:
        for j, (_, signature) in enumerate(panel.figures):
            mean, _ = statistics.mean_interval(row.accuracies(signature))
            highest = max(highest, mean)
            line = _STYLES[j % len(_STYLES)][0]
            axes.axhline(mean, color=REFERENCE, linestyle=line, lw=1, zorder=0)
    title = _plain(layout.title(panel.table)) if titled else ""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=9)
    axes.set_xlabel(_plain(key), fontsize=9.5, color=_QUIET)
    figure = f"{panel.only}, " if panel.only else ""
    axes.set_ylabel(_plain(f"{figure}accuracy in %"), fontsize=9.5, color=_QUIET)
    axes.set_ylim(0, min(100, highest * 1.06 + 2))
    gaps = np.diff(values) if numeric and values[0] > 0 else np.ones(1)
    if gaps.max() > 4 * gaps.min():  # values such as 1 2 4 8 16 would crowd on a linear axis
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    axes.set_xticks(list(places.values()), [_plain(label(value)) for value in values])
    if not numeric:
        axes.margins(x=0.12)
    axes.tick_params(labelsize=9, colors=_QUIET, length=3)
    axes.grid(axis="y", color="#e6e8eb", lw=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color="#b6bcc4")
    _legend(axes, panel)


def _colour(panel: Panel, curve: Curve, i: int, j: int) -> str:
    """Return the colour of a curve, or of a figure where there is one curve only."""
    if len(panel.curves) == 1:
        return COLOURS[j % len(COLOURS)]
    return REFERENCE if curve.undefended else COLOURS[i % len(COLOURS)]


def _look(panel: Panel, curve: int, figure: int) -> tuple[str, str]:
    """Return dash and marker: by figure, or by curve if there is only one figure."""
    return _STYLES[(curve // len(COLOURS) if panel.only else figure) % len(_STYLES)]


def _legend(axes, panel: Panel) -> None:
    """Draw the legend on the right: colours are curves, dashes are figures."""
    alone = len(panel.curves) == 1
    handles = []

    def entry(text: str, **look) -> None:
        handles.append(Line2D([], [], label=_wrapped(text), markersize=5, **look))

    for i, curve in enumerate([] if alone else panel.curves):
        line, marker = _look(panel, i, 0) if panel.only and panel.numeric else ("-", "")
        look = {"linestyle": line, "marker": marker, "lw": 1.7 if marker else 4}
        entry(curve.name, color=_colour(panel, curve, i, 0), **look)
    for row in panel.references:
        entry(row.name, color=REFERENCE, lw=1)
    if handles and not panel.only:
        handles.append(Line2D([], [], lw=0, label=" "))
    for j, (name, _) in enumerate([] if panel.only and not alone else panel.figures):
        line, marker = _STYLES[j % len(_STYLES)]
        line = line if panel.numeric or panel.references else "none"
        colour = _colour(panel, panel.curves[0], 0, j) if alone else _TEXT
        entry(name, color=colour, linestyle=line, marker=marker, lw=1.7)
    title = _wrapped(panel.curves[0].name) if alone else None
    place = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0.0}
    look = {"fontsize": 8.5, "title_fontsize": 9, "labelcolor": _TEXT, "labelspacing": 0.6}
    axes.legend(handles=handles, title=title, frameon=False, alignment="left", **place, **look)


def _plain(text: str) -> str:
    """Escape dollar signs, which matplotlib would read as formulae."""
    return text.replace("$", r"\$")


def _wrapped(text: str) -> str:
    return _plain("\n".join(textwrap.wrap(text, _LEGEND, break_on_hyphens=False)))
