"""Tables of clean and robust accuracy, from the ``record.json`` files of finished runs.

    python -m advprompt report output/ --format markdown --out results.md
    python -m advprompt report output/ --format html --out results.html

Every figure is a mean over seeds with its 95 % t-interval. Runs under different threat models,
backbones, data or test subsets never share a table (see ``tools/tables.py``); base and new
classes, source and target data sets stand side by side (``tools/joins.py``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import records as records_of
from ..utils import errors
from ..utils import io as files
from ..utils.entry import run_tool
from .costs import cost_sheet
from .joins import Join, build_joins
from .layouts import join_sheet, table_sheet
from .published import published_sheets
from .sheets import Sheet, latex, markdown, terminal
from .tables import Table, build_tables
from .tidy import tidy_csv

WRITERS = {"terminal": terminal, "markdown": markdown, "latex": latex}
FORMATS = (*WRITERS, "csv", "html")
# how a line that belongs to no table is written below them; CSV has no place for it
_REMARKS = {"terminal": "  ! {}", "markdown": "- {}", "latex": "% {}"}


def load(roots: Iterable[str]) -> tuple[dict[Path, dict], list[str]]:
    """Return every completed record below ``roots`` by path, and what is left out.

    Raises:
        UserError: a root does not exist or holds no completed record.
    """
    roots = list(roots)
    records, problems = records_of.load_records(*roots)
    remarks = [f"{problem.kind}: {problem.text}" for problem in problems]
    if not records:
        where = ", ".join(f"'{root}'" for root in roots)
        found = f" (left out: {'; '.join(remarks)})" if remarks else ""
        raise errors.UserError(
            f"no completed {records_of.FILE_NAME} below {where}{found}; finish a run first, "
            "for example with scripts/quickstart.sh"
        )
    return records, remarks


def load_tables(roots: Iterable[str]) -> tuple[list[Table], list[str]]:
    """Return the tables of every completed record below ``roots``, and what is left out.

    Raises:
        UserError: a root does not exist or holds no completed record.
    """
    records, remarks = load(roots)
    return build_tables(records), remarks


def arrange(records: Mapping[Path, dict]) -> list[Table | Join]:
    """Sort completed records into what is printed: joins where a protocol has them, else tables."""
    joins, tables = build_joins(records)

    def place(item: Table | Join) -> tuple:
        split, start = item.first["split"], item.first["dataset"]
        if isinstance(item, Join):
            split, start = "", item.source or start
        return (
            start,
            *(item.first[key] for key in ("protocol", "backbone", "weights_sha256")),
            split,
        )

    return sorted([*joins, *tables], key=place)


def lay_out(items: list[Table | Join], *, costs: bool = False, paper: bool = False) -> list[Sheet]:
    """Return the sheets of tables and joins in their order.

    Args:
        costs: one more behind each, of parameters and seconds.
        paper: published figures behind all of them.
    """
    sheets = []
    for item in items:
        sheets.append(join_sheet(item) if isinstance(item, Join) else table_sheet(item))
        sheets += [cost_sheet(item)] if costs else []
    return sheets + (published_sheets(items) if paper else [])


def render(
    roots: Iterable[str], style: str = "terminal", *, costs: bool = False, paper: bool = False
) -> tuple[str, list[str]]:
    """Render every completed record below ``roots``.

    Files left out (unfinished, damaged, of another schema) are listed below the tables.

    Args:
        roots: output folders.
        style: one of ``FORMATS``.
        costs: add trainable parameters and seconds per method (HTML always has them).
        paper: add published figures.

    Returns:
        the text, and the remarks that found no place in it (CSV only).

    Raises:
        UserError: a root does not exist or holds no completed record.
    """
    roots = list(roots)
    records, remarks = load(roots)
    items = arrange(records)
    if style == "html":
        from . import page  # which draws; slow to import

        published = published_sheets(items) if paper else []
        return page.build_page(records, items, lay_out(items), published, remarks, roots), []
    sheets = lay_out(items, costs=costs, paper=paper)
    if style == "csv":
        notes = [note for sheet in sheets for note in sheet.notes]
        return tidy_csv(build_tables(records)), notes + remarks
    blocks = list(WRITERS[style](sheets))
    if remarks:
        blocks.append("\n".join(_REMARKS[style].format(" ".join(r.split())) for r in remarks))
    return "\n\n".join(blocks), []


def put_between(path: Path, mark: str, text: str) -> None:
    """Replace what stands between the lines ``<!-- report MARK -->`` and ``<!-- end MARK -->``.

    Raises:
        UserError: the file is missing or lacks the two lines.
    """
    first, last = f"<!-- report {mark} -->\n", f"<!-- end {mark} -->"
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, found, rest = page.partition(first)
    _, closed, after = rest.partition(last)
    if not (found and closed):
        raise errors.UserError(
            f"'{path}' has no lines '{first.strip()}' and '{last}'; write them where the tables go"
        )
    with files.atomic_write(path) as temporary:
        temporary.write_text(
            f"{before}{first}\n{text}\n\n{last}{after}", encoding="utf-8", errors="replace"
        )


def main(argv: list[str]) -> None:
    """Parse the command line and print or write the tables."""
    parser = argparse.ArgumentParser(prog="report", description=__doc__.partition("\n")[0])
    parser.add_argument("roots", nargs="+", metavar="FOLDER", help="output folders, searched whole")
    parser.add_argument("--format", choices=FORMATS, default="terminal")
    parser.add_argument("--out", metavar="FILE", help="write there instead of printing")
    parser.add_argument(
        "--mark",
        metavar="NAME",
        help="with --out: between the lines <!-- report NAME --> and "
        "<!-- end NAME --> of the file, and nothing else",
    )
    parser.add_argument(
        "--costs", action="store_true", help="add trainable parameters and seconds per method"
    )
    parser.add_argument("--paper", action="store_true", help="add figures that papers published")
    args = parser.parse_args(argv)
    if args.mark and args.format == "html":
        raise errors.UserError("--mark puts tables into a page, but html is a page; leave it out")
    text, remarks = render(args.roots, args.format, costs=args.costs, paper=args.paper)
    if args.mark and not args.out:
        raise errors.UserError(f"--mark {args.mark} says where in a file; give --out FILE too")
    if args.mark:
        put_between(Path(args.out), args.mark, text)
        print(f"wrote the tables '{args.mark}' in {args.out}")
    elif args.out:
        with files.atomic_write(args.out) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8", errors="replace")
        print(f"wrote {args.out}")
    else:
        print(text)
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_tool(main))
