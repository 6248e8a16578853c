"""Accuracy over one setting, drawn from the ``record.json`` files of finished runs.

    python -m advprompt curves output/ablations/naptuning_depth \
        --over TRAINER.NAPTUNING.PROMPT_DEPTH --out curve.png
    python -m advprompt curves output/shapes --over eps    # or steps, restarts: of the test attack
    python -m advprompt curves output/shapes --over DATASET.NUM_SHOTS --per-figure --out shots.png

One panel per group of comparable runs, which are the tables of ``advprompt report``: panels never
mix threat models, backbones, data or test subsets. Runs that differ in another setting are another
line. Points are means over seeds with their 95 % t-interval.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..utils import errors, statistics
from ..utils import io as files
from ..utils.entry import run_tool
from . import command as report
from . import layouts
from .tables import Row, Table

SHOTS = "DATASET.NUM_SHOTS"
# a setting -> what a row holds of it a second time
_SAME = {"OPTIM.MAX_EPOCH": {"epochs"}}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#444444")
_STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))  # clean, first attack, ...
_QUIET, _REFERENCE = "#57606a", "#8c959f"
_WIDTH, _PANEL = 6.6, 3.7  # inches of a panel's axes
_BANDS = 5  # curves; the bands of more than that would only make mud
_LINE = 0.135  # inches of a line below it
_LEGEND, _CAPTION = 36, 132  # characters of a line


class NothingVaries(errors.UserError):
    """No two comparable runs differ in what a curve is drawn over."""


@dataclass
class Curve:
    """Rows of the report that differ in the setting on the x axis alone."""

    rows: dict[float | str, Row]  # value -> row, in the order of the axis
    name: str = ""
    undefended: bool = False  # drawn in grey


@dataclass
class Panel:
    """The curves of one table, and the rows the setting means nothing to (zero-shot)."""

    table: Table
    curves: list[Curve] = field(default_factory=list)
    references: list[Row] = field(default_factory=list)
    only: str = ""  # the one figure it shows, clean or an attack's heading; else all

    @property
    def figures(self) -> list[tuple[str, tuple | None]]:
        """The figures shown: name, and the signature that finds it in a record."""
        return [f for f in layouts.figures_of(self.table) if self.only in ("", f[0])]

    @property
    def values(self) -> list[float | str]:
        """Every value on the x axis, in order."""
        return ordered(value for curve in self.curves for value in curve.rows)

    @property
    def numeric(self) -> bool:
        """Whether the x axis is one of numbers."""
        return all(isinstance(value, float) for value in self.values)


def value_of(row: Row, key: str) -> float | str | None:
    """Return a row's setting as a number where it is one (``4/255`` counts as 4), else as text.

    None where the row does not know the setting.
    """
    if key == SHOTS:
        return {0: None, -1: "all"}.get(row.shots, float(row.shots))
    if key not in row.config:
        return None
    value = json.loads(row.config[key])
    if isinstance(value, (bool, list, dict)) or value is None:
        return row.config[key]
    try:
        return float(value.removesuffix("/255") if isinstance(value, str) else value)
    except ValueError:
        return value or '""'


def ordered(values: Iterable[float | str]) -> list[float | str]:
    """Sort numbers; leave texts in the order they came, behind the numbers."""
    values = list(dict.fromkeys(values))
    numbers = sorted(value for value in values if isinstance(value, float))
    return numbers + [value for value in values if isinstance(value, str)]


def _settings(row: Row, left_out: set[str]) -> dict[str, str]:
    """Return what identifies a row's curve: every setting but those on the x axis."""
    settings = {key: text for key, text in row.config.items() if key not in left_out}
    if SHOTS not in left_out:
        settings["shots"] = row.shots_label
    if not any(key.startswith("ATTACK.TRAIN.") for key in left_out):
        settings["trained with"] = row.trained_with
    return settings


def build_panels(
    tables: Iterable[Table], key: str, along: Iterable[str] = ()
) -> tuple[list[Panel], list[str]]:
    """Sort the rows of tables into curves over the setting ``key``.

    Args:
        tables: of :func:`~.tables.build_tables`.
        key: a config key such as ``TRAINER.ADVPT.N_CTX``.
        along: keys that change together with it and start no other curve.

    Returns:
        the panels with a curve of at least two values, and notes on everything left out.

    Raises:
        NothingVaries: no two comparable rows differ in ``key`` alone.
        UserError: no row knows ``key``, or two rows of a curve have the same value.
    """
    tables = list(tables)
    known = {SHOTS}.union(*(row.config for table in tables for row in table.rows))
    for name in (key, *along):
        if name not in known:
            hint = errors.nearest(name, known)  # or hundreds of keys, where none is near
            raise errors.UserError(
                f"no completed record has a setting '{name}' that tells its runs apart"
                f"{'.' + hint if hint.endswith('?') else ''}"
            )
    left_out = {key, *along}.union(*(_SAME.get(name, ()) for name in (key, *along)))
    panels, notes, seen = [], [], []
    for table in tables:
        groups = defaultdict(list)
        panel = Panel(table)
        for row in table.rows:
            if row.shots == 0:
                panel.references.append(row)
            elif value_of(row, key) is None:
                notes.append(f"left out: {row.full_name} does not know {key}")
            else:
                groups[row.trainer, json.dumps(_settings(row, left_out))].append(row)
        for rows in groups.values():
            curve = _curve(rows, key)
            seen += curve.rows
            if len(curve.rows) > 1:
                panel.curves.append(curve)
            else:
                only = f"{key}={label(*curve.rows)} alone"
                notes.append(f"left out: {rows[0].full_name}, which was run with {only}")
        if panel.curves:
            _name_curves(panel.curves, left_out)
            panels.append(panel)
            notes += table.notes
    if not panels:
        raise NothingVaries(
            f"no two comparable runs differ in {key} alone (found: "
            f"{', '.join(map(label, ordered(seen))) or 'zero-shot runs'}); curves need the same "
            "data, backbone, test attacks and other settings at two values, see --along"
        )
    return panels, notes


def per_figure(panels: Iterable[Panel]) -> list[Panel]:
    """Return a panel per figure instead of one for all: for many curves."""
    return [
        Panel(panel.table, panel.curves, panel.references, name)
        for panel in panels
        for name, _ in panel.figures
    ]


def _curve(rows: list[Row], key: str) -> Curve:
    by_value = {}
    for row in rows:
        value = value_of(row, key)
        if value in by_value:
            twins = f"'{by_value[value].full_name}' and '{row.full_name}'"
            raise errors.UserError(
                f"{twins} both have {key}={label(value)} on one curve; leave the setting that "
                "tells them apart out of --along, or give the folder of one of them"
            )
        by_value[value] = row
    return Curve({value: by_value[value] for value in ordered(by_value)})


def _name_curves(curves: list[Curve], left_out: set[str]) -> None:
    """Name trainers, and in brackets the settings in which curves of one trainer differ."""
    same = defaultdict(list)
    for curve in curves:
        row = next(iter(curve.rows.values()))
        same[row.trainer].append((curve, _settings(row, left_out)))
    for trainer, twins in same.items():
        keys = sorted(set().union(*(settings for _, settings in twins)))
        told = [
            key
            for key in keys
            if len({settings.get(key) for _, settings in twins}) > 1
            and not key.startswith("ATTACK.TRAIN.")  # told by 'trained with'
        ]
        for curve, settings in twins:
            parts = (f"{_short(key)}={settings.get(key, 'unset')}" for key in told)
            curve.name = f"{trainer} ({', '.join(parts)})" if told else trainer


def _short(key: str) -> str:
    """Drop the trainer's node, which its name tells: ``TRAINER.CAPT.ALPHA`` is ``ALPHA``."""
    return key.split(".", 2)[2] if key.startswith("TRAINER.") and key.count(".") > 1 else key


def label(value: float | str) -> str:
    """Write a value on the axis."""
    return f"{value:g}" if isinstance(value, float) else value


# --- drawing --------------------------------------------------------------------------------------


def draw(path, panels: list[Panel], key: str) -> Path:
    """Draw the panels below one another into a PNG file.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    with files.atomic_write(path) as temporary:
        save(temporary, panels, key)
    return path


def save(out, panels: list[Panel], key: str, *, captions: bool = True) -> None:
    """Draw the panels below one another as PNG into a path or a binary file object.

    Args:
        captions: write above and below each panel what it shows; without, that is left to the
            page around it (:func:`facts_of`).
    """
    texts = [caption(panel) if captions else [] for panel in panels]
    heights = [_PANEL + 1.15 + _LINE * len(lines) for lines in texts]  # inches
    height = sum(heights)
    figure = Figure(figsize=(_WIDTH + 3.6, height), facecolor="white")
    FigureCanvasAgg(figure)
    top = height
    for panel, lines, own in zip(panels, texts, heights, strict=True):
        box = (0.65, top - 0.45 - _PANEL, _WIDTH, _PANEL)
        axes = figure.add_axes(
            (box[0] / (_WIDTH + 3.6), box[1] / height, _WIDTH / (_WIDTH + 3.6), _PANEL / height)
        )
        _draw_panel(axes, panel, key, titled=captions)
        below = -0.58 / _PANEL
        axes.text(
            0,
            below,
            "\n".join(lines),
            transform=axes.transAxes,
            va="top",
            fontsize=7,
            color=_QUIET,
            linespacing=1.25,
            parse_math=False,
        )
        top -= own
    figure.savefig(out, format="png", dpi=150, bbox_inches="tight", pad_inches=0.15)


def caption(panel: Panel) -> list[str]:
    """Return what the reader of a panel needs to compare it, in lines that fit below it."""
    return [part for line in facts_of(panel) for part in textwrap.wrap(line, _CAPTION)]


def facts_of(panel: Panel) -> list[str]:
    """Return what the reader of a panel needs to compare it."""
    rows = [row for curve in panel.curves for row in curve.rows.values()]
    counts = {len(row.runs) for row in rows}
    seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))
    lines = layouts.caption(panel.table)
    lines[-1] = f"{lines[-1]}; n = {seeds}"
    facts = []  # what differs is told by the axis or the names
    for name, values in (
        ("shots", {row.shots_label for row in rows}),
        ("trained with", {row.trained_with for row in rows}),
    ):
        facts += [f"{name}: {value}" for value in values if len(values) == 1]
    if facts:
        lines.insert(2, ", ".join(facts))
    return lines


def _draw_panel(axes, panel: Panel, key: str, *, titled: bool) -> None:
    values, figures = panel.values, panel.figures
    numeric = panel.numeric
    places = {value: value if numeric else i for i, value in enumerate(values)}
    alone = len(panel.curves) == 1  # then colours are free to tell clean from attacked
    highest = 0.0
    for i, curve in enumerate(panel.curves):
        aside = 0.0 if numeric else 0.12 * (i - (len(panel.curves) - 1) / 2)  # side by side
        x = [places[value] + aside for value in curve.rows]
        for j, (_, signature) in enumerate(figures):
            colour = _COLOURS[(j if alone else i) % len(_COLOURS)]
            colour = _REFERENCE if curve.undefended and not alone else colour
            points = [
                statistics.mean_interval(row.accuracies(signature)) for row in curve.rows.values()
            ]
            means = [mean for mean, _ in points]
            halves = [half or 0.0 for _, half in points]
            low = [mean - half for mean, half in zip(means, halves, strict=True)]
            high = [mean + half for mean, half in zip(means, halves, strict=True)]
            # two seeds have a huge interval, which must not flatten the curves
            highest = max(highest, *means, min(max(high), max(means) + 10))
            line, marker = _look(panel, i, j)
            line = line if numeric else "none"  # nothing lies between two categories
            axes.plot(
                x,
                means,
                linestyle=line,
                marker=marker,
                color=colour,
                markersize=5,
                lw=1.7,
                markeredgecolor="white",
                markeredgewidth=0.7,
                zorder=3,
            )
            if numeric and len(panel.curves) <= _BANDS:
                axes.fill_between(x, low, high, color=colour, alpha=0.13, lw=0, zorder=1)
            axes.errorbar(
                x,
                means,
                yerr=halves,
                fmt="none",
                ecolor=colour,
                elinewidth=1,
                capsize=2.5,
                alpha=0.75,
                zorder=2,
            )
    for row in panel.references:
        for j, (_, signature) in enumerate(figures):
            mean, _ = statistics.mean_interval(row.accuracies(signature))
            highest = max(highest, mean)
            line = _STYLES[j % len(_STYLES)][0]
            axes.axhline(mean, color=_REFERENCE, linestyle=line, lw=1, zorder=0)

    if titled:
        title = _plain(layouts.title(panel.table))
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=9)
    axes.set_xlabel(_plain(key), fontsize=9.5, color=_QUIET)
    figure = f"{panel.only}, " if panel.only else ""
    axes.set_ylabel(_plain(f"{figure}accuracy in %"), fontsize=9.5, color=_QUIET)
    axes.set_ylim(0, min(100, highest * 1.06 + 2))
    if numeric and _is_geometric(values):
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
    _legends(axes, panel, [name for name, _ in figures], alone)


def _look(panel: Panel, curve: int, figure: int) -> tuple[str, str]:
    """Return dash and marker: by figure, or by curve where one figure stands alone."""
    return _STYLES[(curve // len(_COLOURS) if panel.only else figure) % len(_STYLES)]


def _legends(axes, panel: Panel, figures: list[str], alone: bool) -> None:
    """Say which colour is which curve and which dash is which figure, to the right."""
    handles = []
    if not alone:
        for i, curve in enumerate(panel.curves):
            colour = _REFERENCE if curve.undefended else _COLOURS[i % len(_COLOURS)]
            line, marker = _look(panel, i, 0) if panel.only and panel.numeric else ("-", "")
            look = {"linestyle": line, "marker": marker, "lw": 1.7 if marker else 4}
            text = _wrapped(curve.name)
            handles.append(Line2D([], [], color=colour, markersize=5, label=text, **look))
    for row in panel.references:
        handles.append(Line2D([], [], color=_REFERENCE, lw=1, label=_wrapped(row.name)))
    if handles and not panel.only:
        handles.append(Line2D([], [], lw=0, label=" "))
    for j, name in enumerate([] if panel.only and not alone else figures):
        line, marker = _STYLES[j % len(_STYLES)]
        colour = _COLOURS[j % len(_COLOURS)] if alone else "#24292f"
        if not panel.numeric and not panel.references:
            line = "none"
        handles.append(
            Line2D(
                [],
                [],
                color=colour,
                linestyle=line,
                marker=marker,
                lw=1.7,
                markersize=5,
                label=_wrapped(name),
            )
        )
    axes.legend(
        handles=handles,
        title=_wrapped(panel.curves[0].name) if alone else None,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        borderaxespad=0.0,
        frameon=False,
        fontsize=8.5,
        title_fontsize=9,
        labelcolor="#24292f",
        labelspacing=0.6,
        alignment="left",
    )


def _is_geometric(values: list[float]) -> bool:
    """Tell whether values such as 1 2 4 8 16 would crowd on a linear axis."""
    gaps = [b - a for a, b in zip(values, values[1:], strict=False)]
    return values[0] > 0 and max(gaps) > 4 * min(gaps)


def _plain(text: str) -> str:
    """Keep matplotlib from reading dollars as formulae."""
    return text.replace("$", r"\$")


def _wrapped(text: str) -> str:
    return _plain("\n".join(textwrap.wrap(text, _LEGEND, break_on_hyphens=False)))


def main(argv: list[str]) -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(prog="curves", description=__doc__.partition("\n")[0])
    parser.add_argument("roots", nargs="+", metavar="FOLDER", help="output folders, searched whole")
    parser.add_argument(
        "--over",
        required=True,
        metavar="KEY",
        help="the setting on the x axis; eps, steps or restarts: of the test attack",
    )
    parser.add_argument(
        "--along",
        nargs="+",
        default=[],
        metavar="KEY",
        help="settings that change together with it",
    )
    parser.add_argument(
        "--per-figure",
        action="store_true",
        help="a panel for clean and for each attack, for many lines",
    )
    parser.add_argument("--out", default="curve.png", metavar="FILE")
    args = parser.parse_args(argv)
    from . import ablations as sweeps  # which draws with this module

    if args.over in sweeps.AXES:
        if args.along:
            raise errors.UserError(
                f"--along {args.along[0]} goes with config keys; over {args.over} everything else "
                "that differs is another line or panel, so leave --along out"
            )
        records, remarks = report.load(args.roots)
        panels, notes = sweeps.build_panels(records, args.over)
        title = sweeps.AXES[args.over]
    else:
        tables, remarks = report.load_tables(args.roots)
        panels, notes = build_panels(tables, args.over, args.along)
        title = args.over
    panels = per_figure(panels) if args.per_figure else panels
    print(f"wrote {draw(args.out, panels, title)}")
    for note in notes + remarks:
        print(f"note: {note}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_tool(main))
