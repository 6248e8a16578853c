"""The charts of a page: robust over clean accuracy, and curves over shots, attacks and settings."""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..utils import errors, statistics
from . import curves, drawing, layout
from .curves import SHOTS, Panel
from .pictures import png_uri
from .tables import Row, Table, differing

LIMIT = 40  # charts of one page
_EPOCHS = "OPTIM.MAX_EPOCH"  # which some methods choose by the shots


class Plane(NamedTuple):
    """Robust over clean accuracy of a table's trainers; accuracies are (mean, half interval)."""

    title: str
    attack: str  # heading of the attack of the y axis
    dots: list[dict]  # name, kind (attacked, clean, untrained), x, y, and the figures in words
    x: tuple[int, int]  # limits of the axes in percent
    y: tuple[int, int]


def build_planes(tables: Iterable[Table]) -> list[Plane]:
    """Return a plane for every table of one test in which two trainers were attacked alike."""
    return [plane for table in tables if not table.across and (plane := _plane(table))]


def _plane(table: Table) -> Plane | None:
    shots = {row.trainer: set[float]() for row in table.rows}
    for row in table.rows:
        shots[row.trainer].add(_shots(row))
    rows = [row for row in table.rows if _shots(row) == max(shots[row.trainer])]
    attacks = zip(table.figures[1:], table.first["attacks"], strict=True)
    white_box = [figure for figure, attack in attacks if attack["target"] == "end_to_end"]
    if len(shots) < 2 or not white_box:
        return None
    name, signature = min(white_box, key=lambda f: sum(_mean(row, f[1])[0] for row in rows))
    dots = []
    for row in rows:
        kind = "attacked" if row.train_threat else "clean" if row.shots else "untrained"
        words = [layout.cell(row.accuracies(which)) for which in (None, signature)]
        dots.append({"name": row.name, "kind": kind, "words": "clean {}, robust {}".format(*words)})
        dots[-1] |= {"x": _mean(row, None), "y": _mean(row, signature)}
    limits = (_limits([dot[axis] for dot in dots]) for axis in ("x", "y"))
    return Plane(layout.title(table), name, dots, *limits)


def _shots(row: Row) -> float:
    return float("inf") if row.shots == -1 else row.shots or 0


def _mean(row: Row, signature) -> tuple[float, float]:
    mean, half = statistics.mean_interval(row.accuracies(signature))
    return mean, half or 0.0


def _limits(values: list[tuple[float, float]]) -> tuple[int, int]:
    """Return the tens around all means, and around intervals of up to 10 points."""
    low = min(mean - min(half, 10) for mean, half in values) // 10 * 10
    high = -(-max(mean + min(half, 10) for mean, half in values) // 10) * 10
    return max(0, int(low) - 10 * (low == high)), min(100, int(high) + 10 * (low == high))


class Chart(NamedTuple):
    """One panel, not drawn yet."""

    section: str
    panel: Panel
    key: str

    def draw(self) -> dict[str, str]:
        """Return its title, what it shows in words, and the picture as a data URI."""
        figure = f", {self.panel.only}" if self.panel.only else ""
        names = ", ".join(curve.name for curve in self.panel.curves)
        out = io.BytesIO()
        drawing.save(out, [self.panel], self.key, captions=False)
        return {
            "title": f"{layout.title(self.panel.table)}{figure}",
            "text": f"Accuracy in percent over {self.key}: {names}",
            "picture": png_uri(out.getvalue()),
        }


def build_charts(
    records: Mapping[Path, dict], tables: Iterable[Table]
) -> tuple[list[Chart], list[str]]:
    """Return every chart that two comparable runs make, the few-shot ones first, and notes.

    A note names runs of a table that are in no curve over a setting that others vary, or that
    contradict one another. Without a varying setting there is no chart and no note.
    """
    tables = list(tables)
    found = [*_few_shot(tables), *_over_attacks(records), *_ablations(tables)]
    notes = dict.fromkeys(note for _, stated in found for note in stated)
    return [chart for charts, _ in found for chart in charts], list(notes)


def _panels(table: Table, key: str, along: Iterable[str] = ()) -> tuple[list[Panel], list[str]]:
    """Return a table's panels, and notes that it does not have itself; none if nothing varies."""
    try:
        panels, notes = curves.build_panels([table], key, along)
    except curves.NothingVaries:
        return [], []
    except errors.UserError as error:
        panels, notes = [], [str(error)]
    where = f"curves over {key}: {layout.title(table)}"
    return panels, [f"{where}: {note}" for note in notes if note not in table.notes]


def _few_shot(tables: list[Table]) -> Iterator[tuple[list[Chart], list[str]]]:
    # one by one: a conflict in one table must not suppress the charts of others
    for table in tables:
        if table.protocol != "few_shot":
            continue
        along = [_EPOCHS] if any(_EPOCHS in row.config for row in table.rows) else []
        panels, notes = _panels(table, SHOTS, along)
        if along and not panels:
            panels, again = _panels(table, SHOTS)
            notes = again if panels else notes + again
        yield [Chart("Over shots", p, "shots") for p in curves.per_figure(panels)], notes


def _over_attacks(records: Mapping[Path, dict]) -> Iterator[tuple[list[Chart], list[str]]]:
    for axis, title in curves.AXES.items():
        with contextlib.suppress(curves.NothingVaries):
            for panel in curves.attack_panels(records, axis)[0]:
                where = f"curves over {axis}: {layout.title(panel.table)}"
                notes = [note for note in panel.table.notes if not note.startswith("self-check")]
                stated = [f"{where}: {note}" for note in notes + panel.notes]
                yield [Chart("Over the test attack", panel, title)], stated


def _ablations(tables: list[Table]) -> Iterator[tuple[list[Chart], list[str]]]:
    """Draw each trainer over every setting of its node in which its runs differ."""
    for table in tables:
        untrained = [row for row in table.rows if row.shots == 0]
        for trainer in sorted({row.trainer for row in table.rows if row.shots}):
            rows = [row for row in table.rows if row.trainer == trainer]
            alone = Table(table.tests, table.protocol, rows=untrained + rows, data=table.data)
            for key in differing(rows):
                if key.startswith(f"TRAINER.{trainer.upper()}."):
                    panels, notes = _panels(alone, key)
                    yield [Chart("Ablations", panel, key) for panel in panels], notes
