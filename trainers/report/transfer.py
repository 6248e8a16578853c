"""Matrices of ``advprompt transfer`` as tables: images made against one run, tested on others."""

from __future__ import annotations

import csv
import io

from .. import records as records_of
from ..utils import errors
from ..utils import io as files
from .formats import Block, Column, Sheet, markdown, terminal
from .threats import attack_headings, describe

SCHEMA = 1
FORMATS = ("terminal", "markdown", "csv")
_THREAT = ("name", "eps", "alpha", "steps", "restarts", "objective", "norm", "drop")


def render(record: dict, style: str) -> str:
    """Return the tables of a completed matrix as text of one of ``FORMATS``."""
    if style == "csv":
        return _csv(record)
    return "\n\n".join({"terminal": terminal, "markdown": markdown}[style](sheets_of(record)))


def sheets_of(record: dict) -> list[Sheet]:
    """Return one sheet per attack of a completed matrix; its diagonal is marked."""
    runs, n = record["runs"], record["n"]
    names = [run["name"] for run in runs]
    columns = [Column("made against", left=True), *(Column(name, "tested on") for name in names)]
    images = records_of.test_images(record["subset"], record.get("first"))
    backbones = [
        f"backbone of {run['name']}: {run['backbone']}, weights sha256 {run['weights_sha256'][:12]}"
        for run in runs
    ]
    clean = ["clean", *(_percent(run["clean"]["correct"], n) for run in runs)]
    headings = attack_headings([table["attack"] for table in record["tables"]])
    sheets = []
    for table, heading in zip(record["tables"], headings, strict=True):
        rows, notes = [clean], []
        for name, row in zip(names, table["rows"], strict=True):
            rows.append([name, *(_percent(correct, n) for correct in row["correct"])])
            notes += [f"self-check: made against {name}: {warning}" for warning in row["warnings"]]
        notes += [f"self-check: {warning}" for warning in table["warnings"]]
        facts = [
            f"accuracy in percent on {n} test images ({images})",
            f"{heading}: {describe(table['attack'])}",
            "diagonal: white box; elsewhere the attack knew another run, not the tested one",
            *backbones,
        ]
        if table["attack"]["drop"]:
            facts.append(
                "the attack leaves an image at the first iterate that breaks its own model, which "
                "transfers less than one that continues (DROP False)"
            )
        block = Block(columns, rows, marked={(i, i) for i in range(1, len(rows))})
        sheets.append(Sheet(f"{record['dataset']}, transfer of {heading}", [block], facts, notes))
    return sheets


def read_sheets(path) -> list[Sheet]:
    """Return the sheets of a stored matrix.

    Raises:
        UserError: unreadable, no matrix of this version, unfinished or damaged.
    """
    record = files.read_json(path)
    if not isinstance(record, dict) or record.get("kind") != "transfer":
        raise errors.UserError(f"'{path}' holds no matrix of advprompt transfer")
    if record.get("schema") != SCHEMA or record.get("status") != "completed":
        raise errors.UserError(
            f"'{path}' is unfinished or of another version (schema {record.get('schema')}, status "
            f"{record.get('status')}); run the advprompt transfer command that made it again"
        )
    try:
        return sheets_of(record)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise errors.UserError(f"'{path}' is damaged ({error!r}); make the matrix again") from error


def _percent(score: int, n: int) -> str:
    return f"{100 * score / n:.1f}"


def _csv(record: dict) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["made_against", "tested_on", *(f"attack_{field}" for field in _THREAT)]
        + ["n", "clean_correct", "correct", "accuracy"]
    )
    n = record["n"]
    for table in record["tables"]:
        threat = [table["attack"][field] for field in _THREAT]
        for made, row in zip(record["runs"], table["rows"], strict=True):
            for tested, correct in zip(record["runs"], row["correct"], strict=True):
                writer.writerow(
                    [made["name"], tested["name"], *threat, n, tested["clean"]["correct"]]
                    + [correct, f"{100 * correct / n:.6g}"]
                )
    return out.getvalue().rstrip("\n")
