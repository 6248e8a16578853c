"""Tables of clean and robust accuracy, from the ``record.json`` files of finished runs.

    python -m tools.report output/ --format markdown --out results.md

Every figure is a mean over seeds with its 95 % t-interval. Runs under different threat models,
backbones, data or test subsets never share a table (see ``tools/tables.py``).
"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tabulate import tabulate

from . import core
from .cli import run_tool
from .tables import Row, Table, build_tables
from .threats import MEANINGS, describe

errors, records_of, files, statistics = (
    importlib.import_module(f"{core.__name__}.{name}")
    for name in ("errors", "records", "io", "statistics")
)

INTERVAL = (
    "mean ± 95 % t-interval over seeds, in percent; a sample wrong clean does not count as robust"
)
_PROTOCOLS = {
    "few_shot": "few-shot",
    "base2new": "base-to-novel",
    "xd": "cross-dataset",
    "dg": "domain shift",
    "zero_shot": "zero-shot",
}


def cell(values: Iterable[float], digits: int = 1) -> str:
    """Return ``78.3 ± 1.2``, or ``78.3`` for a single seed."""
    mean, half = statistics.mean_interval(values)
    return f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def header(table: Table) -> list[str]:
    """Return the column headings."""
    return [
        "trainer",
        "shots",
        "trained with",
        "clean",
        *table.headings,
        "trainable parameters",
        "seeds n",
    ]


def cells(table: Table, row: Row) -> list[str]:
    """Return one row of a table as text."""
    return [
        row.name,
        row.shots_label,
        row.trained_with,
        cell(row.accuracies()),
        *(cell(row.accuracies(signature)) for signature in table.signatures),
        row.parameters,
        str(len(row.runs)),
    ]


def title(table: Table) -> str:
    """Return data set, protocol and classes in one line."""
    first = table.first
    which = "" if first["split"] == "all" else f"{first['split']} "
    return (
        f"{first['dataset']}, {_PROTOCOLS[first['protocol']]}, "
        f"{first['classes']} {which}classes, {first['backbone']}"
    )


def caption(table: Table) -> list[str]:
    """Return the lines a reader needs to compare the table with others."""
    first = table.first
    subset = "all of the test set"
    if first["subset"]:
        subset = f"a fixed stratified subset, TEST.SUBSET {first['subset']}"
    lines = [
        f"backbone {first['backbone']}, weights sha256 {first['weights_sha256'][:12]}",
        f"{first['clean']['n']} test images ({subset})",
        f"device {', '.join(table.devices)}",
    ]
    for heading, attack in zip(table.headings, table.attacks, strict=True):
        lines.append(f"{heading}: {describe(attack)}")
    targets = {attack["target"] for attack in table.attacks}
    lines += [meaning for target, meaning in MEANINGS.items() if target in targets]
    return [*lines, INTERVAL]


def _in_two_lines(text: str) -> str:
    """Break a long text at the blank nearest to its middle, so that terminals can hold it."""
    blanks = [i for i, char in enumerate(text) if char == " "]
    if len(text) < 20 or not blanks or "±" in text:
        return text
    middle = min(blanks, key=lambda i: abs(i - len(text) / 2))
    return text[:middle] + "\n" + text[middle + 1 :]


def terminal(tables: list[Table]) -> Iterator[str]:
    """Yield each table for a terminal."""
    for table in tables:
        body = tabulate(
            [[_in_two_lines(text) for text in cells(table, row)] for row in table.rows],
            [_in_two_lines(text) for text in header(table)],
            tablefmt="simple",
            disable_numparse=True,
            colalign=_alignment(table),
        )
        lines = [title(table), "", body, "", *(f"  {line}" for line in caption(table))]
        yield "\n".join(lines + [f"  ! {note}" for note in table.notes])


def _alignment(table: Table) -> list[str]:
    return ["left", "right", "left"] + ["right"] * (len(table.attacks) + 3)


def markdown(tables: list[Table]) -> Iterator[str]:
    """Yield each table as GitHub markdown."""
    for table in tables:
        body = tabulate(
            [cells(table, row) for row in table.rows],
            header(table),
            tablefmt="github",
            disable_numparse=True,
            colalign=_alignment(table),
        )
        lines = [f"### {title(table)}", "", body, "", *(f"- {line}" for line in caption(table))]
        yield "\n".join(lines + [f"- **{_kind(note)}**{_rest(note)}" for note in table.notes])


def _kind(note: str) -> str:
    return note.partition(":")[0]


def _rest(note: str) -> str:
    return note[len(_kind(note)) :]


_LATEX = str.maketrans(
    {c: "\\" + c for c in "&%$#_{}"}
    | {"±": r"$\pm$", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
    | {"^": r"\textasciicircum{}"}
)


def latex(tables: list[Table]) -> Iterator[str]:
    """Yield each table as a LaTeX float (needs the package booktabs); notes become comments."""
    for table in tables:
        body = tabulate(
            [[text.translate(_LATEX) for text in cells(table, row)] for row in table.rows],
            [text.translate(_LATEX) for text in header(table)],
            tablefmt="latex_raw",
            disable_numparse=True,
            colalign=_alignment(table),
        )
        for rule in ("toprule", "midrule", "bottomrule"):  # tabulate's booktabs style escapes
            body = body.replace(r"\hline", "\\" + rule, 1)
        text = ". ".join([title(table), *caption(table)]).translate(_LATEX)
        notes = [f"% {note}" for note in table.notes]
        start = [r"\begin{table}", r"\centering", rf"\caption{{{text}.}}"]
        yield "\n".join([*start, body, r"\end{table}", *notes])


def tidy_csv(tables: list[Table]) -> Iterator[str]:
    """Yield one CSV text: a line per table, row and figure, at full precision."""
    threat_fields = ("name", "objective", "target", "eps", "alpha", "steps", "restarts", "start")
    shared = ("dataset", "protocol", "split", "classes", "backbone", "weights_sha256", "subset")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["table", *shared, "test_images", "trainer", "variant", "shots", "trained_with"]
        + ["trainable_parameters", "figure", *(f"attack_{f}" for f in threat_fields)]
        + ["attack_norm", "mean", "ci95", "seeds"]
    )
    for number, table in enumerate(tables, 1):
        fixed = [number, *(table.first[key] for key in shared), table.first["clean"]["n"]]
        figures = [("clean", None, {})]
        figures += zip(table.headings, table.signatures, table.attacks, strict=True)
        for row in table.rows:
            name = [row.trainer, row.variant, row.shots, row.trained_with, row.parameters]
            for heading, signature, attack in figures:
                mean, half = statistics.mean_interval(row.accuracies(signature))
                writer.writerow(
                    [*fixed, *name, heading]
                    + [attack.get(f) for f in (*threat_fields, "norm")]
                    + [f"{mean:.6g}", "" if half is None else f"{half:.6g}"]
                    + [" ".join(map(str, sorted(row.runs)))]
                )
    yield out.getvalue().rstrip("\n")


FORMATS = {"terminal": terminal, "markdown": markdown, "csv": tidy_csv, "latex": latex}
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


def render(roots: Iterable[str], style: str = "terminal") -> tuple[str, list[str]]:
    """Render every completed record below ``roots``.

    Files left out (unfinished, damaged, of another schema) are listed below the tables.

    Args:
        roots: output folders.
        style: a key of ``FORMATS``.

    Returns:
        the text, and the remarks that found no place in it (CSV only).

    Raises:
        UserError: a root does not exist or holds no completed record.
    """
    tables, remarks = load_tables(roots)
    blocks = list(FORMATS[style](tables))
    if style not in _REMARKS:
        return blocks[0], [note for table in tables for note in table.notes] + remarks
    if remarks:
        blocks.append("\n".join(_REMARKS[style].format(remark) for remark in remarks))
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
        temporary.write_text(f"{before}{first}\n{text}\n\n{last}{after}", encoding="utf-8")


def main(argv: list[str]) -> None:
    """Parse the command line and print or write the tables."""
    parser = argparse.ArgumentParser(prog="report", description=__doc__.partition("\n")[0])
    parser.add_argument("roots", nargs="+", metavar="FOLDER", help="output folders, searched whole")
    parser.add_argument("--format", choices=FORMATS, default="terminal")
    parser.add_argument("--out", metavar="FILE", help="write there instead of printing")
    parser.add_argument(
        "--mark", metavar="NAME", help="with --out: between the lines <!-- report NAME --> and "
        "<!-- end NAME --> of the file, and nothing else",
    )  # fmt: skip
    args = parser.parse_args(argv)
    text, remarks = render(args.roots, args.format)
    if args.mark and not args.out:
        raise errors.UserError(f"--mark {args.mark} says where in a file; give --out FILE too")
    if args.mark:
        put_between(Path(args.out), args.mark, text)
        print(f"wrote the tables '{args.mark}' in {args.out}")
    elif args.out:
        with files.atomic_write(args.out) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        print(f"wrote {args.out}")
    else:
        print(text)
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_tool(main))
