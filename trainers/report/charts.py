"""The curves of a page: over shots, over eps, steps and restarts, over what ablations vary."""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..utils import errors
from . import curves, drawing, layout
from .curves import SHOTS, Panel
from .pictures import png_uri
from .tables import Table, differing

LIMIT = 40  # charts of one page
_EPOCHS = "OPTIM.MAX_EPOCH"  # which some methods choose by the shots


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

    These are on runs that are in none of a table's curves over a setting which others have, or that
    contradict one another; there are none where nothing varies.
    """
    tables = list(tables)
    found = [*_few_shot(tables), *_over_attacks(records), *_ablations(tables)]
    notes = dict.fromkeys(note for _, stated in found for note in stated)
    return [chart for charts, _ in found for chart in charts], list(notes)


def _panels(table: Table, key: str, along: Iterable[str] = ()) -> tuple[list[Panel], list[str]]:
    """Return the panels of a table and notes that its own lack; none where nothing varies."""
    try:
        panels, notes = curves.build_panels([table], key, along)
    except curves.NothingVaries:
        return [], []
    except errors.UserError as error:
        panels, notes = [], [str(error)]
    where = f"curves over {key}: {layout.title(table)}"
    return panels, [f"{where}: {note}" for note in notes if note not in table.notes]


def _few_shot(tables: list[Table]) -> Iterator[tuple[list[Chart], list[str]]]:
    for table in tables:  # one by one: twins in one table must not cost the others their charts
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
    """Draw each trainer over every setting of its own in which its runs differ."""
    for table in tables:
        untrained = [row for row in table.rows if row.shots == 0]
        for trainer in sorted({row.trainer for row in table.rows if row.shots}):
            rows = [row for row in table.rows if row.trainer == trainer]
            alone = Table(table.tests, table.protocol, rows=untrained + rows, data=table.data)
            for key in differing(rows):
                if key.startswith(f"TRAINER.{trainer.upper()}."):
                    panels, notes = _panels(alone, key)
                    yield [Chart("Ablations", panel, key) for panel in panels], notes
