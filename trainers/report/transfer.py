"""Transfer matrices, as ``advprompt transfer`` writes them, in tables."""

from ..records import test_images
from ..utils.errors import UserError
from ..utils.io import read_json
from .formats import Block, Column, Sheet, markdown, terminal
from .threats import attack_headings, describe

SCHEMA = 1
FORMATS = {"terminal": terminal, "markdown": markdown}


def read_sheets(path) -> list[Sheet]:
    """Return the sheets of a stored matrix; UserError for a part of one, or another file."""
    record = read_json(path)
    if not isinstance(record, dict) or record.get("kind") != "transfer":
        raise UserError(f"'{path}' holds no matrix of advprompt transfer")
    if record.get("schema") != SCHEMA or record.get("status") != "completed":
        raise UserError(
            f"'{path}' is unfinished or of another version (schema {record.get('schema')}, status "
            f"{record.get('status')}); run the advprompt transfer command that made it again"
        )
    try:
        return sheets_of(record)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"'{path}' is damaged ({error!r}); make the matrix again") from error


def render(record: dict, style: str) -> str:
    """Return the tables as ``terminal`` or ``markdown`` text."""
    return "\n\n".join(FORMATS[style](sheets_of(record)))


def sheets_of(record: dict) -> list[Sheet]:
    """Return one sheet per attack of a completed matrix; its diagonal is marked."""
    runs, n = record["runs"], record["n"]
    names = [run["name"] for run in runs]
    threats = [table["attack"] for table in record["tables"]]
    columns = [Column("made against", left=True), *(Column(name, "tested on") for name in names)]
    sheets = []
    for table, heading in zip(record["tables"], attack_headings(threats), strict=True):
        counts = [("clean", [run["clean"]["correct"] for run in runs])]
        counts += zip(names, [row["correct"] for row in table["rows"]], strict=True)
        rows = [[name, *(f"{100 * c / n:.1f}" for c in correct)] for name, correct in counts]
        images = test_images(record["subset"], record.get("first"))
        facts = [
            f"accuracy in percent on {n} test images ({images})",
            f"{heading}: {describe(table['attack'])}",
            "diagonal: white box; elsewhere the attack saw another run, not the tested one",
        ]
        for run in runs:
            digest = run["weights_sha256"][:12]
            facts.append(f"backbone of {run['name']}: {run['backbone']}, weights sha256 {digest}")
        if table["attack"]["drop"]:
            facts.append(
                "the attack leaves an image at the first iterate that breaks its own model, which "
                "transfers less than one that continues (DROP False)"
            )
        notes = [
            f"self-check: made against {name}: {warning}"
            for name, row in zip(names, table["rows"], strict=True)
            for warning in row["warnings"]
        ] + [f"self-check: {warning}" for warning in table["warnings"]]
        block = Block(columns, rows, marked={(i, i) for i in range(1, len(rows))})
        sheets.append(Sheet(f"{record['dataset']}, transfer of {heading}", [block], facts, notes))
    return sheets
