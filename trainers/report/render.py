"""The report: every completed record in some folders, as text of one format."""

from collections.abc import Iterable
from pathlib import Path

from .. import records as records_of
from ..utils import errors
from ..utils import io as files
from ..utils.text import visible
from .across import arrange
from .formats import latex, markdown, terminal
from .layout import cost_sheet, table_sheet, tidy_csv
from .published import published_sheets
from .tables import build_tables

WRITERS = {"terminal": terminal, "markdown": markdown, "latex": latex}
FORMATS = (*WRITERS, "csv", "html")
# form of the lines after all tables; CSV has none
_REMARKS = {"terminal": "  ! {}", "markdown": "- {}", "latex": "% {}"}


def load(roots: Iterable[str]) -> tuple[dict[Path, dict], list[str]]:
    """Return completed records by path, and what is left out; UserError for no folder or record."""
    roots = list(roots)
    records, problems = records_of.load_records(*roots)
    remarks = [f"{problem.kind}: {problem.text}" for problem in problems]
    if not records:
        where = ", ".join(f"'{root}'" for root in roots)
        found = f" (left out: {'; '.join(remarks)})" if remarks else ""
        raise errors.UserError(
            f"no completed {records_of.FILE_NAME} in {where}{found}; finish a run first, "
            "for example with scripts/quickstart.sh"
        )
    return records, remarks


def render(
    roots: Iterable[str], style: str = "terminal", *, costs: bool = False, paper: bool = False
) -> tuple[str, list[str]]:
    """Render every completed record in ``roots``; return text, and remarks that CSV cannot hold.

    Files left out (unfinished, damaged, of another schema) are listed after the tables.

    Args:
        style: one of ``FORMATS``.
        costs: add trainable parameters and seconds per method (HTML always has them).
        paper: add published figures.

    UserError: a root does not exist or holds no completed record.
    """
    roots = list(roots)
    records, remarks = load(roots)
    tables = arrange(records)
    published = published_sheets(tables) if paper else []
    if style == "html":
        from . import page  # which draws; slow to import

        return page.build_page(records, tables, published, remarks, roots), []
    sheets = []
    for table in tables:
        sheets += [table_sheet(table), cost_sheet(table)] if costs else [table_sheet(table)]
    sheets += published
    if style == "csv":
        notes = [note for sheet in sheets for note in sheet.notes]
        return tidy_csv(build_tables(records)), notes + remarks
    blocks = list(WRITERS[style](sheets))
    if remarks:
        blocks.append("\n".join(_REMARKS[style].format(" ".join(r.split())) for r in remarks))
    return "\n\n".join(blocks), []


def put_between(path: Path, mark: str, text: str) -> None:
    """Replace the text between the two lines of a mark; UserError for a file that lacks them."""
    first, last = f"<!-- report {mark} -->\n", f"<!-- end {mark} -->"
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, found, rest = page.partition(first)
    _, closed, after = rest.partition(last)
    if not (found and closed):
        raise errors.UserError(
            f"'{path}' has no lines '{first.strip()}' and '{last}'; write them where the tables go"
        )
    write(path, f"{before}{first}\n{text}\n\n{last}{after}")


def write(path, text: str) -> None:
    """Write a text file atomically; control characters of names are written out."""
    with files.atomic_write(path) as temporary:
        temporary.write_text(visible(text), encoding="utf-8")
