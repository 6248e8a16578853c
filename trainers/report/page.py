"""One HTML page with everything: tables, curves, transfer, pictures, problems.

``page.html.j2`` is the page; here is what it shows.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from tqdm import tqdm

from ..records.examples import MAGNIFICATION
from ..utils import errors
from . import charts, drawing, layout, pictures, transfer
from .formats import Block, Sheet
from .tables import Table, build_tables, name_of

_SHORT = 30  # characters of a text that needs no second line


def build_page(
    records: Mapping[Path, dict],
    tables: list[Table],
    published: list[Sheet],
    remarks: list[str],
    roots: list[str],
) -> str:
    """Return the page of completed records, which are sorted into ``tables``.

    ``published`` are the papers' figures, ``remarks`` on records that were left out; the folders
    ``roots`` are searched for transfer matrices as well.
    """
    results = [layout.table_sheet(table) for table in tables]
    matrices, damaged = _matrices(roots)
    gallery = pictures.build_gallery(records, lambda paths: _progress(paths, "pictures"))
    found, undrawn = charts.build_charts(records, build_tables(records))
    notes = [f"{sheet.title}: {note}" for sheet in results + matrices for note in sheet.problems]
    return _template().render(
        planes=charts.build_planes(tables),
        results=results,
        charts=_drawn(found[: charts.LIMIT]),
        all_charts=len(found),
        limit=charts.LIMIT,
        matrices=matrices,
        cost_sheets=[layout.cost_sheet(table) for table in tables],
        published=published,
        gallery=gallery,
        kept=pictures,
        times=MAGNIFICATION,
        problems=list(dict.fromkeys([*remarks, *damaged, *gallery.problems, *notes, *undrawn])),
        count=len(records),
        data=", ".join(sorted({name_of(record) for record in records.values()})),
        where=", ".join(map(str, roots)),
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _template():
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["digest"] = lambda text: base64.b64encode(
        hashlib.sha256(text.encode()).digest()
    ).decode()
    environment.globals["look"] = _look
    path = Path(__file__).parent / "page.html.j2"
    return environment.from_string(path.read_text(encoding="utf-8"))


def _progress(items: list, name: str) -> Iterable:
    return tqdm(items, name, disable=len(items) < 3)


def _look(block: Block, j: int) -> str:
    """Return the classes of a column's cells: alignment, and a line where another group starts."""
    here = block.columns[j]
    names = ["left"] if here.left else []
    if here.left and max((len(row[j]) for row in block.rows), default=0) <= _SHORT:
        names.append("short")
    if j and here.group != block.columns[j - 1].group:
        names.append("edge")
    return " ".join(names)


def _drawn(found: list[charts.Chart]) -> list[tuple[str, list[tuple]]]:
    """Return the charts with their facts by section, neighbours with equal facts together."""
    drawn = [(c.section, drawing.facts_of(c.panel), c.draw()) for c in _progress(found, "charts")]
    sections = [(name, list(members)) for name, members in groupby(drawn, key=itemgetter(0))]
    return [
        (name, [(facts, list(alike)) for facts, alike in groupby(members, key=itemgetter(1))])
        for name, members in sections
    ]


def _matrices(roots: Iterable[str]) -> tuple[list[Sheet], list[str]]:
    """Read every ``transfer*.json`` in the folders."""
    sheets, problems = [], []
    paths = {path.resolve(): path for root in roots for path in Path(root).rglob("transfer*.json")}
    for path in sorted(paths.values()):
        try:
            sheets += transfer.read_sheets(path)
        except errors.UserError as error:
            problems.append(f"transfer: {error}")
    return sheets, problems
