"""What a method costs: trained values and seconds, from records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..utils import statistics
from .joins import Join
from .layouts import MODEL, join_title, model_cells, title
from .sheets import MISSING, Block, Column, Sheet
from .tables import Row, Table

_KINDS = {
    "train": "training, summed over interrupted runs",
    "bank": "the adversarial embedding bank, once for all runs that share it",
    "eval": "clean test, every attack and the pictures, summed over the tests of the row",
}


def _seconds(parts: list[Row], kind: str) -> str:
    """Return the mean over seeds of the seconds of all tests of a model, a dash for none.

    Of training and bank those count that a record spent: tests of finished prompts spend none. Of
    the test those seeds count that every part has; less of it is another cost.
    """
    seeds = set().union(*(row.runs for row in parts))
    spent = {s: [row.runs[s]["seconds"][kind] for row in parts if s in row.runs] for s in seeds}
    if kind == "eval":
        spent = {seed: found for seed, found in spent.items() if len(found) == len(parts)}
    totals = [sum(found) for found in spent.values() if any(found)]
    if not totals:
        return MISSING
    mean, _ = statistics.mean_interval(totals)
    return f"{mean:.0f}" if mean >= 10 else f"{mean:.1f}"


def _runs(parts: Iterable[Row]) -> list[Mapping]:
    return [record for row in parts for record in row.runs.values()]


def cost_sheet(item: Table | Join) -> Sheet:
    """Return parameters, epochs and mean seconds over seeds of every row of a table or join."""
    if isinstance(item, Join):
        name, models = join_title(item), [(j.row, list(j.parts.values())) for j in item.rows]
    else:
        name, models = title(item), [(row, [row]) for row in item.rows]
    columns = [
        *MODEL,
        Column("trainable parameters"),
        Column("epochs"),
        *(Column(kind, "seconds") for kind in _KINDS),
        Column("device", left=True),
    ]
    rows = []
    for model, parts in models:
        runs = _runs(parts)
        rows.append(
            [
                *model_cells(model),
                ", ".join(map(str, sorted({r["prompt_parameters"] for r in runs}))),
                ", ".join(map(str, sorted({r["epochs"] for r in runs}))),
                *(_seconds(parts, kind) for kind in _KINDS),
                ", ".join(sorted({r["device"] for r in runs})),
            ]
        )
    facts = [f"{kind}: {meaning}" for kind, meaning in _KINDS.items()]
    facts.append(
        "mean wall seconds: training and bank over the runs that spent any, test over the seeds "
        "that have every test of the row; those of different devices do not compare, and runs "
        "that share a machine slow one another"
    )
    return Sheet(f"Costs: {name}", [Block(columns, rows)], facts)
