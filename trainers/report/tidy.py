"""The figures of tables as one CSV: a line per table, row and figure, at full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from ..utils import statistics
from .tables import Table, source_of

_SHARED = ("dataset", "protocol", "split", "classes", "backbone", "weights_sha256", "subset")
_FIRST = "TEST.FIRST"
_THREAT = ("name", "objective", "target", "eps", "alpha", "steps", "restarts", "start")


def tidy_csv(tables: Iterable[Table]) -> str:
    """Return the CSV text; averages over class splits and data sets are left to the reader."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["table", *_SHARED, "first", "test_images", "trainer", "variant", "shots", "trained_with"]
        + ["trainable_parameters", "figure", *(f"attack_{f}" for f in _THREAT)]
        + ["attack_norm", "mean", "ci95", "seeds", "source"]
    )
    for number, table in enumerate(tables, 1):
        fixed = [number, *(table.first[key] for key in _SHARED)]
        fixed += [table.first["config"].get(_FIRST) or None, table.first["clean"]["n"]]
        figures = [("clean", None, {})]
        figures += zip(table.headings, table.signatures, table.attacks, strict=True)
        for row in table.rows:
            name = [row.trainer, row.variant, row.shots, row.trained_with, row.parameters]
            for heading, signature, attack in figures:
                mean, half = statistics.mean_interval(row.accuracies(signature))
                writer.writerow(
                    [*fixed, *name, heading]
                    + [attack.get(f) for f in (*_THREAT, "norm")]
                    + [f"{mean:.6g}", "" if half is None else f"{half:.6g}"]
                    + [" ".join(map(str, sorted(row.runs)))]
                    + [source_of(next(iter(row.runs.values())))]
                )
    return out.getvalue().rstrip("\n")
