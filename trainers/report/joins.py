"""Tables of one model over several tests: base and new classes, source and target data sets.

A join holds what the papers print side by side. Its parts are tables of their own (see
``tools/tables.py``), one per class split or data set; its rows are models, found again in every
part. All parts have the same backbone, test attacks and ``TEST.SUBSET``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..utils import statistics
from .tables import (
    Row,
    Table,
    backbone,
    build_tables,
    collect,
    defaults,
    empty_row,
    is_unknown,
    name_sources,
    name_variants,
    row_order,
    setting,
    settings_notes,
    signatures,
    source_of,
    warnings_of,
)

BASE_TO_NEW, CROSS, SHIFT = "base2new", "xd", "dg"
SPLITS = ("base", "new")
# the data sets of the papers' tables in their order, and the short names they print
SHORT = {
    "ImageNet": "ImageNet",
    "Caltech101": "Caltech",
    "OxfordPets": "Pets",
    "StanfordCars": "Cars",
    "OxfordFlowers": "Flowers",
    "Food101": "Food101",
    "FGVCAircraft": "Aircraft",
    "SUN397": "SUN397",
    "DescribableTextures": "DTD",
    "EuroSAT": "EuroSAT",
    "UCF101": "UCF101",
    "ImageNetV2": "-V2",
    "ImageNetSketch": "-Sketch",
    "ImageNetA": "-A",
    "ImageNetR": "-R",
}
_SHIFTED = [name for name, short in SHORT.items() if short.startswith("-")]
# what the papers test prompts on that were trained on ImageNet
_EXPECTED = {
    CROSS: [name for name in SHORT if name != "ImageNet" and name not in _SHIFTED],
    SHIFT: _SHIFTED,
}


def in_order(names: Iterable[str]) -> list[str]:
    """Sort data sets as the papers do, others behind them by name."""
    known = list(SHORT)
    return sorted(names, key=lambda n: (known.index(n) if n in SHORT else len(known), n))


@dataclass
class JoinedRow:
    """One model: ``row`` tells which, ``parts`` holds its runs by class split or data set."""

    row: Row
    parts: dict[str, Row] = field(default_factory=dict)
    unclear: dict[str, list[Row]] = field(default_factory=dict)  # part -> rows, one of them its own

    def unclear_paths(self) -> list[Path]:
        """Return the records of all rows that may be another model's."""
        return [path for rows in self.unclear.values() for r in rows for path in r.paths.values()]

    def mean(self, part: str, signature=None) -> float | None:
        """Return the mean accuracy over seeds in percent; None where it was not tested."""
        if part not in self.parts:
            return None
        return statistics.mean_interval(self.parts[part].accuracies(signature))[0]

    def averages(self, parts: Iterable[str], signature=None) -> list[float]:
        """Return the averages over ``parts``: one per seed, or one where seeds differ.

        Empty where a part is missing: an average over less compares with nothing.
        """
        rows = [self.parts.get(part) for part in parts]
        if not rows or None in rows:
            return []
        if len({tuple(sorted(row.runs)) for row in rows}) == 1:
            by_seed = zip(*(row.accuracies(signature) for row in rows), strict=True)
            return [sum(values) / len(rows) for values in by_seed]
        means = [statistics.mean_interval(row.accuracies(signature))[0] for row in rows]
        return [sum(means) / len(rows)]

    @property
    def seeds(self) -> str:
        """Return how many seeds stand behind a figure, such as ``3`` or ``2 to 3``."""
        counts = {len(row.runs) for row in self.parts.values()}
        return " to ".join(map(str, sorted({min(counts), max(counts)})))


@dataclass
class Join:
    """One table of a protocol: ``tables`` by part, the source (or base classes) first."""

    protocol: str
    source: str | None  # data set that the prompts come from; of base-to-novel, the data set
    tables: dict[str, Table]
    rows: list[JoinedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def first(self) -> dict:
        """A record of it, for what all parts share."""
        return next(iter(self.tables.values())).first

    @property
    def headings(self) -> list[str]:
        """One heading per attack."""
        return next(iter(self.tables.values())).headings

    @property
    def signatures(self) -> list[tuple]:
        """One hashable threat model per attack, in the order of the headings."""
        return next(iter(self.tables.values())).signatures

    @property
    def targets(self) -> list[str]:
        """Every part but the source."""
        return [part for part in self.tables if part != self.source]


# --- which records belong together ----------------------------------------------------------------


def _asked(record: Mapping) -> tuple[int, int]:
    """Return ``TEST.SUBSET`` and ``TEST.FIRST``.

    A test set smaller than the subset is whole, and its record says null.
    """
    config = record["config"]
    return config.get("TEST.SUBSET", record["subset"] or 0), config.get("TEST.FIRST", 0)


def _shared(record: Mapping) -> tuple:
    """Return what all parts of a join have in common."""
    return record["schema"], backbone(record), _asked(record), signatures(record)


def _place(record: Mapping) -> tuple | None:
    """Return protocol, origin and classes of the join a record belongs to; None where to none."""
    protocol, split = record["protocol"], record["split"]
    if protocol == BASE_TO_NEW and split in SPLITS:
        return protocol, record["dataset"], None
    if protocol in (CROSS, SHIFT) and not is_unknown(source_of(record)):
        return protocol, record.get("source") if record["shots"] else None, split
    return None


def _hosts(record: Mapping, groups: Mapping[tuple, dict]) -> list[tuple]:
    """Return the joins that a zero-shot record belongs to."""
    same = [key for key in groups if key[0] == _shared(record)]
    hosts = []
    for key in same:
        protocol, origin, split = key[1]
        if protocol == BASE_TO_NEW:
            fits = record["split"] in SPLITS and record["dataset"] == origin
        else:
            tested = {r["dataset"] for r in groups[key].values()} | {origin}
            fits = record["split"] == split and record["dataset"] in tested
        hosts += [key] if fits else []
    place = _place(record)
    if place and not hosts:  # a data set that no trained model was tested on yet
        hosts = [key for key in same if key[1][::2] == place[::2] and place[0] != BASE_TO_NEW]
    return hosts


def build_joins(records: Mapping[Path, dict]) -> tuple[list[Join], list[Table]]:
    """Sort completed records into joins, and all others into tables of their own.

    Zero-shot models join whatever tests the same data. A run of another protocol stands for a
    model's accuracy on its source where that was not measured again. Prompts of unknown source
    have no table across data sets: no two of their runs need be of one model.
    """
    records = name_sources(records)
    groups, alone = defaultdict(dict), defaultdict(dict)
    trained = {path: record for path, record in records.items() if record["shots"]}
    untrained = {path: record for path, record in records.items() if not record["shots"]}
    for path, record in trained.items():
        place = _place(record)
        if place:
            groups[_shared(record), place][path] = record
    hosts = {path: _hosts(record, groups) for path, record in untrained.items()}
    for path, record in untrained.items():
        for key in hosts[path]:
            groups[key][path] = record
        if _place(record) and not hosts[path]:
            alone[_shared(record), _place(record)][path] = record
    joins, used = [], set()
    for key, members in [*groups.items(), *alone.items()]:
        join, left = _join(key, members, trained)
        joins.append(join)
        used |= set(members) - left
    rest = {path: r for path, r in records.items() if path not in used or not r["shots"]}
    tables = [
        table
        for table in build_tables(rest)
        if not {path for row in table.rows for path in row.paths.values()} <= used
    ]
    order = ("dataset", "protocol", "backbone", "weights_sha256")
    return sorted(joins, key=lambda j: [j.first[key] for key in order]), tables


# --- one join -------------------------------------------------------------------------------------


def _part(record: Mapping, protocol: str) -> str:
    return record["split"] if protocol == BASE_TO_NEW else record["dataset"]


def _model(record: Mapping, known: Iterable[str], protocol: str) -> Row:
    """Return the row of a record without what differs between the parts of a join."""
    row, own = empty_row(record, known), ("DATASET.SUBSAMPLE_CLASSES",)
    if protocol != BASE_TO_NEW:  # a target's augmentation is not what its prompts were trained with
        own += ("source", "DATASET.", "INPUT.TRANSFORMS")
    row.config = {key: value for key, value in row.config.items() if not key.startswith(own)}
    return row


def _join(key: tuple, members: dict[Path, dict], trained: dict[Path, dict]):
    """Build a join; return it and the members that do not fit into it."""
    shared, (protocol, origin, split) = key
    known = set().union(*(record["config"] for record in (trained | members).values()))
    members = dict(members)
    if protocol != BASE_TO_NEW and origin:
        members |= _source_runs(origin, split, shared, members, trained, known, protocol)
    parts, left = _one_setting_each(members, protocol)
    names = [s for s in SPLITS if s in parts] if protocol == BASE_TO_NEW else in_order(parts)
    if protocol != BASE_TO_NEW and origin in parts:
        names = [origin, *(name for name in names if name != origin)]
    join = Join(protocol, origin, {name: collect(parts[name]) for name in names})
    models: dict[str, Row] = {}
    found: dict[str, dict[str, list[Row]]] = defaultdict(dict)  # model -> part -> rows
    for name, table in join.tables.items():
        join.notes += table.notes
        for row in table.rows:
            model = _model(next(iter(row.runs.values())), known, protocol)
            models.setdefault(model.identity, model)
            found[model.identity].setdefault(name, []).append(row)
    joined_rows = [row for key, model in models.items() for row in _combine(model, found[key])]
    name_variants([joined.row for joined in joined_rows])
    joined_rows.sort(key=lambda joined: row_order(joined.row))
    join.rows = [joined for joined in joined_rows if joined.parts]
    join.notes += settings_notes(joined.row for joined in join.rows) + _missing(join)
    join.notes += [_ambiguous(join, j, name) for j in joined_rows for name in j.unclear]
    for joined in join.rows:
        for name, row in joined.parts.items():
            row.variant = joined.row.variant
            join.notes += [f"self-check: on {where(join, name)}: {w}" for w in warnings_of([row])]
    if left:
        paths = ", ".join(f"'{path}'" for path in sorted(left))
        join.notes.append(
            f"apart: {paths} tested other classes or another number of images, so that they have "
            "a table of their own"
        )
    unclear = {path for joined in joined_rows for path in joined.unclear_paths()}
    return join, left | unclear


def _combine(model: Row, found: dict[str, list[Row]]) -> list[JoinedRow]:
    """Join the rows that a model has in every part.

    Several rows of one part are several models that differ in a setting of the data alone. They
    stay apart where every part has the same of these settings, once each; else nobody knows which
    row of another part is whose, and the parts that have several are left out.
    """
    if all(len(rows) == 1 for rows in found.values()):
        return [JoinedRow(model, {name: rows[0] for name, rows in found.items()})]
    keys = _differing(found)
    by_value = {name: {_of(row, keys): row for row in rows} for name, rows in found.items()}
    values = next(iter(by_value.values())).keys()
    if all(by_value[n].keys() == values and len(found[n]) == len(values) for n in found):
        return [
            JoinedRow(
                replace(model, config=model.config | dict(zip(keys, value, strict=True))),
                {name: rows[value] for name, rows in by_value.items()},
            )
            for value in values
        ]
    parts = {name: rows[0] for name, rows in found.items() if len(rows) == 1}
    return [JoinedRow(model, parts, {n: rows for n, rows in found.items() if n not in parts})]


def _differing(found: Mapping[str, list[Row]]) -> list[str]:
    """Return the settings in which rows of one part differ."""
    return sorted(
        {
            key
            for rows in found.values()
            for key in set().union(*(row.config for row in rows))
            if len({row.config.get(key) for row in rows}) > 1
        }
    )


def _of(row: Row, keys: Iterable[str]) -> tuple[str, ...]:
    """Return the settings ``keys`` of a row as JSON text, defaults where it has none."""
    return tuple(row.config.get(key, json.dumps(defaults().get(key))) for key in keys)


def _ambiguous(join: Join, joined: JoinedRow, part: str) -> str:
    rows = joined.unclear[part]
    paths = ", ".join(f"'{path}'" for path in sorted(p for r in rows for p in r.paths.values()))
    return (
        f"ambiguous: {joined.row.full_name} has several models on {where(join, part)} that differ "
        f"in {', '.join(_differing({part: rows}))}, and the runs on the other data do not tell "
        f"which of them they belong to; left out here: {paths}"
    )


def _one_setting_each(members: Mapping[Path, dict], protocol: str):
    """Sort members by part; where a part has several test sets the one with most runs stays."""
    buckets = defaultdict(lambda: defaultdict(dict))
    for path, record in members.items():
        buckets[_part(record, protocol)][setting(record)][path] = record
    parts, left = {}, set()
    for name, found in buckets.items():
        ordered = sorted(
            found.values(), key=lambda b: (len(b), max(r["created"] for r in b.values()))
        )
        parts[name] = ordered.pop()
        left |= {path for bucket in ordered for path in bucket}
    return parts, left


def _source_runs(origin, split, shared, members, trained, known, protocol) -> dict[Path, dict]:
    """Return runs of other protocols that tested a model of the join on its source.

    Of several that are one row and seed the newest counts; other rows stay, as the model's twins.
    """
    wanted, there = defaultdict(set), defaultdict(set)  # model -> seeds
    for record in members.values():
        seeds = there if record["dataset"] == origin else wanted
        seeds[_model(record, known, protocol).identity].add(record["seed"])
    found = {}
    for path, record in sorted(trained.items(), key=lambda item: item[1]["created"]):
        fits = record["dataset"] == origin and record["split"] == split
        if fits and path not in members and _shared(record) == shared and not source_of(record):
            model = _model(record, known, protocol).identity
            if record["seed"] in wanted[model] - there[model]:
                found[empty_row(record, known).identity, record["seed"]] = path
    return {path: trained[path] for path in found.values()}


def where(join: Join, part: str) -> str:
    """Return a part in words."""
    return f"the {part} classes" if join.protocol == BASE_TO_NEW else part


def _missing(join: Join) -> list[str]:
    """Say which tests and seeds a row lacks, and which data sets the papers have beside."""
    notes = []
    expected = SPLITS if join.protocol == BASE_TO_NEW else list(join.tables)
    if join.protocol != BASE_TO_NEW and join.source and join.source not in expected:
        expected = [join.source, *expected]
    trained = [joined for joined in join.rows if joined.row.shots]
    seeds = {seed for joined in trained for row in joined.parts.values() for seed in row.runs}
    for joined in join.rows:
        untested = [
            where(join, part)
            for part in expected
            if part not in joined.parts and part not in joined.unclear
        ]
        if untested:
            notes.append(f"missing: {joined.row.full_name} has no run on {', '.join(untested)}")
        for part, row in joined.parts.items():
            gaps = sorted(seeds - set(row.runs)) if joined.row.shots else []
            if gaps:
                notes.append(
                    f"missing: {joined.row.full_name} has no seed {', '.join(map(str, gaps))} on "
                    f"{where(join, part)}, which other rows or tests have"
                )
    if join.protocol == BASE_TO_NEW:
        return notes
    gaps = [name for name in _EXPECTED[join.protocol] if name not in join.tables]
    if join.source == "ImageNet" and gaps:
        notes.append(f"missing: no run on {', '.join(gaps)}, which the papers' tables have")
    return notes
