"""One HTML page with everything: tables, curves, transfer, pictures, problems.

The page is self-contained: styles, the sorting script and all pictures are in it. Every text goes
through :func:`escape`; the page's own policy forbids any script but ours, and any request.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from ..evaluation import pictures
from ..utils import errors
from . import transfer
from .charts import LIMIT, Chart, build_charts
from .costs import cost_sheet
from .curves import facts_of
from .gallery import EDGE, ROWS, RUNS, Example, Gallery, Shown, build_gallery
from .joins import Join
from .sheets import Block, Sheet
from .style import SCRIPT, STYLE
from .tables import Table, build_tables

_SHORT = 30  # characters of a text that needs no second line
_NO_PROBLEM = ("settings",)  # kinds of notes that explain and do not warn


def escape(text) -> str:
    """Return a text that HTML shows and never reads as markup."""
    return html.escape(str(text), quote=True)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# --- pieces ---------------------------------------------------------------------------------------


def _list(kind: str, texts: Iterable[str]) -> str:
    items = "".join(f"<li>{text}</li>" for text in texts)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def _note(note: str) -> str:
    kind, colon, rest = note.partition(":")
    return f"<b>{escape(kind)}</b>{colon}{escape(rest)}"


def _classes(block: Block, column: int) -> str:
    """Return the classes of a cell: alignment, and a line where another group starts."""
    here = block.columns[column]
    names = ["left"] if here.left else []
    if here.left and max((len(row[column]) for row in block.rows), default=0) <= _SHORT:
        names.append("short")
    if column and here.group != block.columns[column - 1].group:
        names.append("edge")
    return f' class="{" ".join(names)}"' if names else ""


def _words(heading: str) -> str:
    """Return a heading that breaks at blanks alone, and not inside ``PGD-100``."""
    return " ".join(f"<span>{escape(word)}</span>" for word in heading.split())


def _table(block: Block, label: str) -> str:
    heads, head = [], []
    if any(column.group for column in block.columns):
        first = 0
        for group, count in block.groups():
            name = f' class="group" scope="colgroup">{_words(group)}</th>' if group else "></th>"
            heads.append(f'<th colspan="{count}"{name}')
            first += count
        heads = [f"<tr>{''.join(heads)}</tr>"]
    for j, column in enumerate(block.columns):
        look = _classes(block, j)
        if not j:
            look = ' class="left first"' if column.left else ' class="first"'
        head.append(f'<th{look} scope="col">{_words(column.name)}</th>')
    body = []
    for i, row in enumerate(block.rows):
        cells = [
            f"<td{_classes(block, j)}>"
            + (f"<strong>{escape(text)}</strong>" if (i, j) in block.marked else escape(text))
            + "</td>"
            for j, text in enumerate(row)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<table class="sortable"><thead>{"".join(heads)}<tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _sheet(sheet: Sheet) -> str:
    parts = [f"<h3>{escape(sheet.title)}</h3>"]
    for block in sheet.blocks:
        parts += [f"<h4>{escape(block.heading)}</h4>"] if block.heading else []
        parts.append(_table(block, f"{sheet.title} {block.heading}".strip()))
    warnings = [n for n in sheet.notes if not n.startswith(_NO_PROBLEM)]
    others = [n for n in sheet.notes if n.startswith(_NO_PROBLEM)]
    parts.append(_list("notes", map(_note, warnings)))
    parts.append(_list("facts", map(escape, [*sheet.facts, *others])))
    return f'<section class="sheet">{"".join(parts)}</section>'


def _chart(chart: Chart) -> str:
    title = escape(chart.title)
    return (
        f'<figure class="chart"><figcaption><h4>{title}</h4></figcaption>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f'<img src="{chart.draw()}" alt="{escape(chart.text)}"></div></figure>'
    )


def _charts(charts: list[Chart]) -> str:
    parts = []
    shown = tqdm(charts[:LIMIT], "charts", disable=len(charts) < 3)
    for section, members in groupby(shown, key=lambda chart: chart.section):
        parts.append(f"<h3>{escape(section)}</h3>")
        for facts, alike in groupby(members, key=lambda chart: facts_of(chart.panel)):
            parts += [_chart(chart) for chart in alike]
            parts.append(_list("facts", map(escape, facts)))
    if len(charts) > LIMIT:
        parts.append(f'<p class="quiet">The first {LIMIT} of {len(charts)} charts.</p>')
    return "".join(parts)


def _example(example: Example) -> str:
    def prediction(guess: tuple[str, float]) -> tuple[str, str]:
        look = "right" if guess[0] == example.label else "wrong"
        text = f"predicted {guess[0].replace('_', ' ')}, {100 * guess[1]:.0f}\xa0%"
        return look, f'<span class="{look}">{escape(text)}</span>'

    (first, before), (last, after) = prediction(example.before), prediction(example.after)
    label = example.label.replace("_", " ")
    times = f"perturbation x{pictures.MAGNIFICATION}"
    cells = (
        (first, f"clean image of {label}", f"clean<br>{before}"),
        ("", times, f"{times}<br>true class {escape(label)}"),
        (last, f"adversarial image of {label}", f"adversarial<br>{after}"),
    )
    return (
        '<div class="example">'
        + "".join(
            f'<figure><img class="{look}{example.look}" src="{uri}" alt="{escape(alt)}">'
            f"<figcaption>{text}</figcaption></figure>"
            for uri, (look, alt, text) in zip(example.images, cells, strict=True)
        )
        + "</div>"
    )


def _run(shown: Shown) -> str:
    count = f"{len(shown.examples)} of {shown.kept} kept images"
    return (
        f'<section class="run"><h3>{escape(shown.title)}</h3>'
        f'<p class="quiet">{escape(shown.about)}; {count}</p>'
        f"{''.join(map(_example, shown.examples))}</section>"
    )


def _gallery(gallery: Gallery) -> str:
    if not gallery.shown:
        return ""
    count = (
        f"{len(gallery.shown)} of the {gallery.runs} models that have pictures, one seed of each; "
        f"at most {ROWS} images of a run and {RUNS} runs, none larger than {EDGE} pixels."
    )
    return (
        f'<p class="quiet">{count}</p><div class="gallery">'
        + "".join(map(_run, gallery.shown))
        + "</div>"
    )


# --- the page -------------------------------------------------------------------------------------


def _matrices(roots: Iterable[str]) -> tuple[list[Sheet], list[str]]:
    """Read every ``transfer*.json`` below the folders."""
    sheets, problems = [], []
    paths = {path.resolve(): path for root in roots for path in Path(root).rglob("transfer*.json")}
    for path in sorted(paths.values()):
        try:
            sheets += transfer.read_sheets(path)
        except errors.UserError as error:
            problems.append(f"transfer: {error}")
    return sheets, problems


def build_page(
    records: Mapping[Path, dict],
    items: list[Table | Join],
    sheets: list[Sheet],
    published: list[Sheet],
    remarks: list[str],
    roots: list[str],
) -> str:
    """Return the page.

    Args:
        records: completed ones by path.
        items, sheets: what they are sorted into, and how that is laid out.
        published: sheets of figures from papers; may be empty.
        remarks: on records that were left out.
        roots: the folders they come from, searched for transfer matrices as well.
    """
    matrices, damaged = _matrices(roots)
    gallery = build_gallery(records, lambda paths: tqdm(paths, "pictures", disable=len(paths) < 3))
    charts, undrawn = build_charts(records, build_tables(records))
    notes = [
        f"{s.title}: {n}"
        for s in sheets + matrices
        for n in s.notes
        if not n.startswith(_NO_PROBLEM)
    ]
    problems = list(dict.fromkeys([*remarks, *damaged, *gallery.problems, *notes, *undrawn]))
    sections = {
        "Tables": "".join(map(_sheet, sheets)),
        "Curves": _charts(charts),
        "Transfer": "".join(map(_sheet, matrices)),
        "Costs": "".join(_sheet(cost_sheet(item)) for item in items),
        "Published figures": "".join(map(_sheet, published)),
        "Pictures": _gallery(gallery),
        "Problems": _list("notes", map(escape, problems))
        or "<p>None: no run is unfinished, missing, repeated or objected to.</p>",
    }
    sections = {name: text for name, text in sections.items() if text}
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
    bodies = "".join(
        f'<section id="{_anchor(name)}"><h2>{name}</h2>{text}</section>'
        for name, text in sections.items()
    )
    count = f"{len(records)} evaluated model{'' if len(records) == 1 else 's'}"
    data = ", ".join(sorted({record["dataset"] for record in records.values()}))
    wrong = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    where = ", ".join(map(str, roots))
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{_digest(STYLE)}'; script-src 'sha256-{_digest(SCRIPT)}'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Results: {escape(data)}</title><style>{STYLE}</style></head>\n<body><header>"
        f"<h1>Clean and robust accuracy</h1><p>{escape(count)} on {escape(data)}; "
        f'<a href="#problems">{wrong}</a>.</p>'
        f'<p class="quiet">From the records below {escape(where)}, {made}.</p>'
        f"<nav>{links}</nav></header>\n<main>{bodies}</main>\n"
        f"<script>{SCRIPT}</script></body></html>"
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
