"""The curves of a page: over shots, over eps, steps and restarts, over what ablations vary."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..utils import errors
from . import ablations as sweeps
from . import curves, layouts
from .curves import SHOTS, Panel
from .gallery import png_uri
from .tables import Table

LIMIT = 40  # charts of one page
_EPOCHS = "OPTIM.MAX_EPOCH"  # which some methods choose by the shots


@dataclass
class Chart:
    """One panel, not drawn yet."""

    section: str
    panel: Panel
    key: str

    @property
    def title(self) -> str:
        """What is drawn, in one line."""
        figure = f", {self.panel.only}" if self.panel.only else ""
        return f"{layouts.title(self.panel.table)}{figure}"

    @property
    def text(self) -> str:
        """The picture in words, for who does not see it."""
        names = ", ".join(curve.name for curve in self.panel.curves)
        return f"Accuracy in percent over {self.key}: {names}"

    def draw(self) -> str:
        """Return the picture as a data URI."""
        out = io.BytesIO()
        curves.save(out, [self.panel], self.key, captions=False)
        return png_uri(out.getvalue())


def build_charts(
    records: Mapping[Path, dict], tables: Iterable[Table]
) -> tuple[list[Chart], list[str]]:
    """Return every chart that two comparable runs make, the few-shot ones first.

    Returns:
        the charts, and notes on runs that are in none of a table's curves over a setting which
        others have, or that contradict one another. Where nothing varies there is nothing to say.
    """
    tables = list(tables)
    found = [_few_shot(tables), _swept(records), _ablations(tables)]
    notes = dict.fromkeys(note for _, told in found for note in told)
    return [chart for charts, _ in found for chart in charts], list(notes)


def _panels(table: Table, key: str, along: Iterable[str] = ()) -> tuple[list[Panel], list[str]]:
    """Return the panels of a table and what its own notes do not say; none where nothing varies."""
    try:
        panels, notes = curves.build_panels([table], key, along)
    except curves.NothingVaries:
        return [], []
    except errors.UserError as error:
        panels, notes = [], [str(error)]
    where = f"curves over {key}: {layouts.title(table)}"
    return panels, [f"{where}: {note}" for note in notes if note not in table.notes]


def _few_shot(tables: list[Table]) -> tuple[list[Chart], list[str]]:
    charts, notes = [], []
    for table in tables:  # one by one: twins in one table must not cost the others their charts
        if table.first["protocol"] != "few_shot":
            continue
        along = [_EPOCHS] if any(_EPOCHS in row.config for row in table.rows) else []
        panels, told = _panels(table, SHOTS, along)
        if along and not panels:
            panels, again = _panels(table, SHOTS)
            told = again if panels else told + again
        charts += [Chart("Over shots", p, "shots") for p in curves.per_figure(panels)]
        notes += told
    return charts, notes


def _swept(records: Mapping[Path, dict]) -> tuple[list[Chart], list[str]]:
    charts, notes = [], []
    for axis, title in sweeps.AXES.items():
        try:
            panels, _ = sweeps.build_panels(records, axis)
        except curves.NothingVaries:
            continue
        for panel in panels:  # whose notes leave out the attacks that nobody varied
            charts.append(Chart("Over the test attack", panel, title))
            where = f"curves over {axis}: {layouts.title(panel.table)}"
            told = (n for n in panel.table.notes if not n.startswith("self-check"))  # tables' own
            notes += [f"{where}: {note}" for note in told]
    return charts, notes


def _ablations(tables: list[Table]) -> tuple[list[Chart], list[str]]:
    """Draw each trainer over every setting of its own in which its runs differ."""
    charts, notes = [], []
    for table in tables:
        for trainer in sorted({row.trainer for row in table.rows if row.shots}):
            rows = [row for row in table.rows if row.trainer == trainer]
            untrained = [row for row in table.rows if not row.shots]
            node = f"TRAINER.{trainer.upper()}."
            keys = {key for row in rows for key in row.config if key.startswith(node)}
            alone = Table(table.first, table.attacks, untrained + rows)
            for key in sorted(keys):
                if len({row.config.get(key) for row in rows}) > 1:
                    panels, told = _panels(alone, key)
                    charts += [Chart("Ablations", panel, key) for panel in panels]
                    notes += told
    return charts, notes
