"""Sheets, which are finished tables, and their formats: terminal, markdown, LaTeX.

A sheet is a title, one or more grids under it, the facts a reader needs to compare it, and notes
on what is wrong or missing. This module does not read records.
"""

import csv
import io
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path

from tabulate import tabulate

_FORMULA = tuple("=+-@\t\r\n")  # a spreadsheet reads cells with these first characters as formulae
MISSING = "–"
_NARROW = 12  # characters of a grouped heading in a terminal
_LONG = 20  # characters above which a terminal breaks a text


@dataclass(frozen=True)
class Column:
    """A heading; neighbours of one ``group`` share a heading above theirs."""

    name: str
    group: str = ""
    left: bool = False  # text, not figures

    @property
    def heading(self) -> str:
        """The heading in one line."""
        return f"{self.group} {self.name}".strip()


@dataclass
class Block:
    """One grid of texts; ``marked`` cells (row, column) are emphasised."""

    columns: list[Column]
    rows: list[list[str]]
    heading: str = ""
    marked: set[tuple[int, int]] = field(default_factory=set)

    def written(self, form: str) -> list[list[str]]:
        """Return the rows with ``form`` (such as ``**{}**``) around marked cells."""
        return [
            [form.format(text) if (i, j) in self.marked else text for j, text in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]

    @property
    def grouped(self) -> bool:
        """Whether there are headings above the headings."""
        return any(column.group for column in self.columns)

    def groups(self) -> list[tuple[str, int]]:
        """Return the headings above the headings, each with the number of its columns."""
        spans = groupby(self.columns, key=lambda column: column.group)
        return [(group, len(list(columns))) for group, columns in spans]


@dataclass
class Sheet:
    """A table with all that is needed to read it."""

    title: str
    blocks: list[Block]
    facts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # each starts with its kind and a colon

    @property
    def remarks(self) -> list[str]:
        """The notes that explain and do not warn."""
        return [note for note in self.notes if note.startswith("settings")]

    @property
    def problems(self) -> list[str]:
        """All other notes."""
        return [note for note in self.notes if not note.startswith("settings")]


def _grid(block: Block, style: str, headings: list[str], rows: list[list[str]]) -> str:
    sides = ["left" if column.left else "right" for column in block.columns]
    return tabulate(rows, headings, tablefmt=style, disable_numparse=True, colalign=sides)


def _in_two_lines(text: str) -> str:
    """Break a long text at the blank nearest to its middle, so that it fits a terminal."""
    blanks = [i for i, char in enumerate(text) if char == " "]
    if len(text) < _LONG or not blanks or "±" in text:
        return text
    middle = min(blanks, key=lambda i: abs(i - len(text) / 2))
    return text[:middle] + "\n" + text[middle + 1 :]


def _narrow(column: Column) -> str:
    if not column.group:
        return _in_two_lines(column.name)
    lines = textwrap.wrap(column.group, _NARROW, break_long_words=False, break_on_hyphens=False)
    return "\n".join([*lines, column.name])


def terminal(sheets: Iterable[Sheet]) -> Iterator[str]:
    """Yield each sheet for a terminal."""
    for sheet in sheets:
        lines = [_line(sheet.title), ""]
        for block in sheet.blocks:
            rows = [[_in_two_lines(text) for text in row] for row in block.written("[{}]")]
            grid = _grid(block, "simple", [_narrow(column) for column in block.columns], rows)
            lines += [block.heading, ""] if block.heading else []
            lines += [grid, ""]
        lines += [f"  {_line(fact)}" for fact in sheet.facts]
        yield "\n".join(lines + [f"  ! {_line(note)}" for note in sheet.notes])


def csv_text(rows: Iterable[Iterable]) -> str:
    """Return rows as CSV; a text that a spreadsheet would read as a formula gets a ``'``."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(map(_harmless, row) for row in rows)
    return out.getvalue().rstrip("\n")


def _harmless(cell):
    if not isinstance(cell, str) or not cell.startswith(_FORMULA):
        return cell
    try:
        return " ".join(str(int(word)) for word in cell.split(" "))  # our own, such as a seed of -1
    except ValueError:
        return f"'{cell}"


def _line(text: str) -> str:
    return " ".join(text.split())


def _in_one_cell(text: str) -> str:
    return _line(text).replace("|", r"\|")


def markdown(sheets: Iterable[Sheet]) -> Iterator[str]:
    """Yield each sheet as GitHub markdown."""
    for sheet in sheets:
        lines = [f"### {_line(sheet.title)}", ""]
        for block in sheet.blocks:
            lines += [f"**{block.heading}**", ""] if block.heading else []
            headings = [_in_one_cell(column.heading) for column in block.columns]
            rows = [[_in_one_cell(text) for text in row] for row in block.written("**{}**")]
            lines += [_grid(block, "github", headings, rows), ""]
        lines += [f"- {_line(fact)}" for fact in sheet.facts]
        for note in sheet.notes:
            kind, colon, rest = _line(note).partition(":")
            lines.append(f"- **{kind}**{colon}{rest}")
        yield "\n".join(lines)


_LATEX = str.maketrans(
    {c: "\\" + c for c in "&%$#_{}"}
    | {"±": r"$\pm$", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
    | {"^": r"\textasciicircum{}", MISSING: "--"}
)


def escape_latex(text: str) -> str:
    """Return ``text`` without anything that TeX would act on."""
    return " ".join(text.translate(_LATEX).split())


@cache
def _latex_template():
    from jinja2 import Environment

    marks = {"block_start_string": "<%", "block_end_string": "%>"}
    marks |= {"variable_start_string": "<<", "variable_end_string": ">>"}
    environment = Environment(trim_blocks=True, **marks)
    environment.filters["tex"] = escape_latex
    path = Path(__file__).parent / "table.tex.j2"
    return environment.from_string(path.read_text(encoding="utf-8"))


def latex(sheets: Iterable[Sheet]) -> Iterator[str]:
    """Yield each sheet as LaTeX floats (package booktabs); notes become comments."""
    for sheet in sheets:
        yield _latex_template().render(sheet=sheet).strip("\n")
