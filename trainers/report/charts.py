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


# where a name may stand next to its dot: a direction each, tried nearest first
_SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
_LETTER, _LINE, _GAP = 6.4, 12, 7  # units of the picture: a letter, a line of text, dot to name


class Plane(NamedTuple):
    """Robust over clean accuracy of a table's trainers, in units of the picture that shows it."""

    title: str
    robust: str  # the attack on the y axis
    dots: list[dict]  # name, kind, place, ends of the intervals, place of the name
    x: list[tuple[float, int]]  # ticks: place and percent
    y: list[tuple[float, int]]
    width: int = 520
    height: int = 330


def build_planes(tables: Iterable[Table]) -> list[Plane]:
    """Return a plane for every table of one test in which two trainers were attacked alike."""
    return [plane for table in tables if not table.across and (plane := _plane(table))]


def _plane(table: Table) -> Plane | None:
    rows = [row for row in table.rows if _shots(row) == max(map(_shots, _same(table, row)))]
    attacks = list(zip(table.figures[1:], table.first["attacks"], strict=True))
    white_box = [figure for figure, attack in attacks if attack["target"] == "end_to_end"]
    if len({row.trainer for row in rows}) < 2 or not white_box:
        return None
    strongest, signature = min(white_box, key=lambda f: sum(_mean(row, f[1])[0] for row in rows))
    found = [(row, _mean(row, None), _mean(row, signature)) for row in rows]
    (left, right), (low, high) = (_span([f[i] for f in found]) for i in (1, 2))
    width, height = Plane._field_defaults["width"] - 56, Plane._field_defaults["height"] - 56

    def x(value: float) -> float:
        return 42 + width * (min(max(value, left), right) - left) / (right - left)

    def y(value: float) -> float:
        return 12 + height * (high - min(max(value, low), high)) / (high - low)

    dots, taken = [], [(x(c) - 4, y(r) - 4, x(c) + 4, y(r) + 4) for _, (c, _), (r, _) in found]
    for row, (clean, wide), (robust, tall) in sorted(found, key=lambda f: -f[2][0]):
        kind = "attacked" if row.train_threat else "clean" if row.shots else "untrained"
        bars = [x(clean - wide), x(clean + wide), y(robust - tall), y(robust + tall)]
        place = _place(row.name, x(clean), y(robust), taken, 42 + width)
        values = [layout.cell(row.accuracies(which)) for which in (None, signature)]
        dot = {"name": row.name, "kind": kind, "at": (x(clean), y(robust)), "bars": bars}
        dots.append(dot | {"text": place, "values": "clean {}, robust {}".format(*values)})
    ticks = [
        [(f(v), v) for v in range(a, b + 1, 10)] for f, a, b in ((x, left, right), (y, low, high))
    ]
    return Plane(layout.title(table), strongest, dots, *ticks)


def _same(table: Table, row: Row) -> list[Row]:
    return [other for other in table.rows if other.trainer == row.trainer]


def _shots(row: Row) -> float:
    return float("inf") if row.shots == -1 else row.shots or 0


def _mean(row: Row, signature) -> tuple[float, float]:
    mean, half = statistics.mean_interval(row.accuracies(signature))
    return mean, half or 0.0


def _span(values: list[tuple[float, float]]) -> tuple[int, int]:
    """Return the tens around all means, and around intervals of up to 10 points."""
    low = min(mean - min(half, 10) for mean, half in values)
    high = max(mean + min(half, 10) for mean, half in values)
    low, high = max(0, 10 * int(low // 10)), min(100, 10 * int(-(-high // 10)))
    return (low, high) if low < high else (max(0, low - 10), min(100, high + 10))


def _place(name: str, x: float, y: float, taken: list[tuple], right: float) -> tuple[float, float]:
    """Return where a name starts, and its base line: the nearest free place at its dot."""
    wide = _LETTER * len(name)
    boxes = []
    for ring in range(1, 5):
        for across, down in _SIDES:
            start = x + across * ring * _GAP - wide * (1 - across) / 2
            top = y + down * ring * _LINE * 0.9 - _LINE / 2
            if start >= 42 and start + wide <= right + 12:
                boxes.append((start, top, start + wide, top + _LINE))
    free = (box for box in boxes if not any(_overlap(box, other) for other in taken))
    box = next(free, boxes[0] if boxes else (42, y - _LINE, 42 + wide, y))
    taken.append(box)
    return box[0], box[3] - 3


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


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
    for (
        table
    ) in tables:  # one by one: a conflict in one table must not suppress the charts of others
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
