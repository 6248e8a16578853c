"""The curves of a page: over shots, over eps, steps and restarts, over what ablations vary."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import core, curves, layouts, sweeps
from .curves import SHOTS, Panel
from .gallery import png_uri
from .tables import Table

errors = importlib.import_module(f"{core.__name__}.errors")

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


def build_charts(records: Mapping[Path, dict], tables: Iterable[Table]) -> list[Chart]:
    """Return every chart that two comparable runs make, the few-shot ones first."""
    tables = list(tables)
    return [*_few_shot(tables), *_swept(records), *_ablations(tables)]


def _panels(build, *args) -> list[Panel]:
    """Return the panels, or none where nothing varies."""
    try:
        return build(*args)[0]
    except errors.UserError:
        return []


def _few_shot(tables: list[Table]) -> list[Chart]:
    tables = [table for table in tables if table.first["protocol"] == "few_shot"]
    charts = []
    for table in tables:  # one by one: twins in one table must not cost the others their charts
        panels = _panels(curves.build_panels, [table], SHOTS, [_EPOCHS])
        panels = panels or _panels(curves.build_panels, [table], SHOTS)
        charts += [Chart("Over shots", p, "shots") for p in curves.per_figure(panels)]
    return charts


def _swept(records: Mapping[Path, dict]) -> list[Chart]:
    return [
        Chart("Over the test attack", panel, title)
        for axis, title in sweeps.AXES.items()
        for panel in _panels(sweeps.build_panels, records, axis)
    ]


def _ablations(tables: list[Table]) -> list[Chart]:
    """Draw each trainer over every setting of its own in which its runs differ."""
    charts = []
    for table in tables:
        for trainer in sorted({row.trainer for row in table.rows if row.shots}):
            rows = [row for row in table.rows if row.trainer == trainer]
            untrained = [row for row in table.rows if not row.shots]
            node = f"TRAINER.{trainer.upper()}."
            keys = {key for row in rows for key in row.config if key.startswith(node)}
            alone = Table(table.first, table.attacks, untrained + rows)
            for key in sorted(keys):
                if len({row.config.get(key) for row in rows}) > 1:
                    panels = _panels(curves.build_panels, [alone], key)
                    charts += [Chart("Ablations", panel, key) for panel in panels]
    return charts
