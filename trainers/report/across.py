"""Tables of one model over several tests: base and new classes, source and target data sets.

Rows are models, found again in every test. All tests of a table have the same backbone, attacks
and ``TEST.SUBSET``. Records of one run folder (``RUN/record.json`` and ``RUN/tests/*``) are of one
model; elsewhere a model is known by its settings.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ..config.keys import defaults
from .tables import (
    Row,
    Table,
    backbone,
    build_tables,
    collect,
    differing,
    empty_row,
    is_unknown,
    known_settings,
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
    """Sort data sets as the papers do, others after them by name."""
    known = list(SHORT)
    return sorted(names, key=lambda n: (known.index(n) if n in SHORT else len(known), n))


def run_folder(path: Path) -> Path:
    """Return the folder of the run that trained the model of a record."""
    folder = path.parent
    return folder.parent.parent if folder.parent.name in ("tests", "robustness") else folder


def where(protocol: str, test: str) -> str:
    """Return a test in words."""
    return f"the {test} classes" if protocol == BASE_TO_NEW else test


# --- which records belong together ----------------------------------------------------------------


def _shared(record: Mapping) -> tuple:
    """Return what all tests of a table have in common.

    A test set smaller than ``TEST.SUBSET`` is used whole, and its record says null.
    """
    config = record["config"]
    asked = config.get("TEST.SUBSET", record["subset"] or 0), config.get("TEST.FIRST", 0)
    return record["schema"], backbone(record), asked, signatures(record)


def _place(record: Mapping) -> tuple | None:
    """Return protocol, origin and classes of the table a record belongs to; None where to none."""
    protocol, split = record["protocol"], record["split"]
    if protocol == BASE_TO_NEW and split in SPLITS:
        return protocol, record["dataset"], None
    if protocol in (CROSS, SHIFT) and not is_unknown(source_of(record)):
        return protocol, record.get("source") if record["shots"] else None, split
    return None


def _hosts(record: Mapping, groups: Mapping[tuple, dict]) -> list[tuple]:
    """Return the groups that a zero-shot record belongs to."""
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


def arrange(records: Mapping[Path, dict]) -> list[Table]:
    """Sort completed records into tables across tests where a protocol has them, else of one test.

    Zero-shot models appear wherever the same data is tested. A run of another protocol supplies a
    model's accuracy on its source where that was not measured again. Prompts of unknown source
    have no table across data sets: no two of their runs need be of one model.
    """
    records = name_sources(records)
    groups, alone = defaultdict(dict), defaultdict(dict)
    trained = {path: record for path, record in records.items() if record["shots"]}
    for path, record in trained.items():
        if place := _place(record):
            groups[_shared(record), place][path] = record
    trained_groups = {key: dict(members) for key, members in groups.items()}
    for path, record in records.items():
        if record["shots"]:
            continue
        hosts, place = _hosts(record, trained_groups), _place(record)
        for key in hosts:
            groups[key][path] = record
        if place and not hosts:
            alone[_shared(record), place][path] = record
    joined, used = [], set()
    for key, members in [*groups.items(), *alone.items()]:
        table, left = _across(key, members, trained)
        joined.append(table)
        used |= set(members) - left
    rest = {path: r for path, r in records.items() if path not in used or not r["shots"]}
    single = [
        table
        for table in build_tables(rest)
        if not {run.path for row in table.rows for run in row.runs} <= used
    ]

    def place_of(table: Table) -> tuple:
        first = table.first
        start, split = first["dataset"], first["split"]
        if table.across:
            start, split = table.source or start, ""
        return start, table.protocol, first["backbone"], first["weights_sha256"], split

    return sorted([*joined, *single], key=place_of)


# --- one table ------------------------------------------------------------------------------------


def _model(record: Mapping, known: Iterable[str], protocol: str) -> Row:
    """Return the row of a record without what differs between the tests of a table."""
    row, own = empty_row(record, known), ("DATASET.SUBSAMPLE_CLASSES",)
    if protocol != BASE_TO_NEW:  # a target's augmentation is not what its prompts were trained with
        own += ("source", "DATASET.", "INPUT.TRANSFORMS")
    row.config = {key: value for key, value in row.config.items() if not key.startswith(own)}
    return row


def _across(key: tuple, members: dict[Path, dict], trained: dict[Path, dict]):
    """Build a table; return it and the paths of the members that do not fit into it."""
    shared, (protocol, origin, split) = key
    known = known_settings((trained | members).values())
    if protocol != BASE_TO_NEW and origin:
        found = _source_runs(members, trained, (shared, origin, split), known, protocol)
        members = members | found
    tests, left = _one_setting_each(members, protocol)
    names = [s for s in SPLITS if s in tests] if protocol == BASE_TO_NEW else in_order(tests)
    if protocol != BASE_TO_NEW and origin in tests:
        names = [origin, *(name for name in names if name != origin)]
    table = Table({}, protocol, origin)
    models: dict[str, Row] = {}
    rows_of: dict[str, dict[str, list[Row]]] = defaultdict(dict)  # model -> test -> rows
    for name in names:
        part = collect(tests[name], name)
        table.tests |= part.tests
        table.notes += part.notes
        for row in part.rows:
            model = _model(row.runs[0].record, known, protocol)
            models.setdefault(model.identity, model)
            rows_of[model.identity].setdefault(name, []).append(row)
    rows = [row for key, model in models.items() for row in _combine(model, rows_of[key])]
    name_variants(rows)
    rows.sort(key=row_order)
    table.rows = [row for row in rows if row.parts]
    table.notes += settings_notes(table.rows) + _missing(table)
    table.notes += [_ambiguous(row, name, protocol) for row in rows for name in row.unclear]
    table.notes += [
        f"self-check: on {where(protocol, name)}: {warning}"
        for row in table.rows
        for name in row.parts
        for warning in warnings_of([row], name)
    ]
    if left:
        paths = ", ".join(f"'{path}'" for path in sorted(left))
        table.notes.append(
            f"apart: {paths} tested other classes or another number of images, so that they have "
            "a table of their own"
        )
    twins = [twin for row in rows for unclear in row.unclear.values() for twin in unclear]
    return table, left | {run.path for twin in twins for run in twin.runs}


def _source_runs(members, trained, place, known, protocol) -> dict[Path, dict]:
    """Return runs of other protocols that tested a model of the table on its source.

    The run folder's own record counts. Without one, the newest of several that are one row and
    seed counts; other rows stay, as the model's twins.
    """
    shared, origin, split = place
    wanted, there = defaultdict(set), set()  # (model, seed) -> run folders
    for path, record in members.items():
        model = _model(record, known, protocol).identity, record["seed"]
        wanted[model].add(run_folder(path))
        there |= {model} if record["dataset"] == origin else set()
    candidates = defaultdict(list)
    for path, record in sorted(trained.items(), key=lambda item: item[1]["created"]):
        fits = record["dataset"] == origin and record["split"] == split
        if fits and path not in members and _shared(record) == shared and not source_of(record):
            model = _model(record, known, protocol).identity, record["seed"]
            if model in wanted and model not in there:
                candidates[model].append(path)
    found = {}
    for model, paths in candidates.items():
        own = [path for path in paths if run_folder(path) in wanted[model]]
        for path in own or paths:
            found[empty_row(trained[path], known).identity, model[1]] = path
    return {path: trained[path] for path in found.values()}


def _one_setting_each(members: Mapping[Path, dict], protocol: str):
    """Sort members by test; where a test has several sets of images, the one with most runs stays.

    Returns:
        test -> {path: record}, and the paths of all other members.
    """
    buckets = defaultdict(lambda: defaultdict(dict))
    for path, record in members.items():
        name = record["split"] if protocol == BASE_TO_NEW else record["dataset"]
        buckets[name][setting(record)][path] = record
    tests, left = {}, set()
    for name, found in buckets.items():
        *others, tests[name] = sorted(
            found.values(), key=lambda b: (len(b), max(r["created"] for r in b.values()))
        )
        left |= {path for bucket in others for path in bucket}
    return tests, left


def _combine(model: Row, found: dict[str, list[Row]]) -> list[Row]:
    """Join the rows that a model has in every test.

    Several rows of one test are several models that differ in a setting of the data alone. They
    stay apart where every test has the same run folders, or the same of these settings, once each.
    Otherwise it is unknown which row of another test is whose, and tests with several are left out.
    """

    def row(tests: dict[str, Row], config: dict) -> Row:
        parts = {name: row.parts[name] for name, row in tests.items()}
        return replace(model, config=model.config | config, parts=parts)

    if all(len(rows) == 1 for rows in found.values()):
        return [row({name: rows[0] for name, rows in found.items()}, {})]
    keys = sorted({key for rows in found.values() for key in differing(rows)})

    def settings(row: Row) -> tuple[str, ...]:
        return tuple(row.config.get(key, json.dumps(defaults().get(key))) for key in keys)

    for known_by in (_folders, settings):
        matched = _match(found, known_by)
        if matched:
            return [
                row(tests, dict(zip(keys, settings(next(iter(tests.values()))), strict=True)))
                for tests in matched
            ]
    single = row({name: rows[0] for name, rows in found.items() if len(rows) == 1}, {})
    single.unclear = {name: rows for name, rows in found.items() if len(rows) > 1}
    return [single]


def _folders(row: Row) -> frozenset[Path]:
    return frozenset(run_folder(run.path) for run in row.runs)


def _match(found: Mapping[str, list[Row]], known_by: Callable) -> list[dict[str, Row]] | None:
    """Return the rows of every model by test where each test has the same ones, else None."""
    by_value = {name: {known_by(row): row for row in rows} for name, rows in found.items()}
    values = next(iter(by_value.values())).keys()
    if all(rows.keys() == values and len(found[n]) == len(values) for n, rows in by_value.items()):
        return [{name: rows[value] for name, rows in by_value.items()} for value in values]
    return None


# --- notes ----------------------------------------------------------------------------------------


def _ambiguous(row: Row, test: str, protocol: str) -> str:
    twins = row.unclear[test]
    paths = ", ".join(f"'{path}'" for path in sorted(r.path for twin in twins for r in twin.runs))
    return (
        f"ambiguous: {row.full_name} has several models on {where(protocol, test)} that differ "
        f"in {', '.join(differing(twins))}, and the runs on the other data do not tell "
        f"which of them they belong to; left out here: {paths}"
    )


def _missing(table: Table) -> list[str]:
    """Name the tests and seeds a row lacks, and the data sets of the papers' tables."""
    notes, protocol = [], table.protocol
    expected = SPLITS if protocol == BASE_TO_NEW else list(table.tests)
    if protocol != BASE_TO_NEW and table.source and table.source not in expected:
        expected = [table.source, *expected]
    seeds = {seed for row in table.rows if row.shots for seed in row.seeds}
    for row in table.rows:
        untested = [t for t in expected if t not in row.parts and t not in row.unclear]
        if untested:
            tests = ", ".join(where(protocol, test) for test in untested)
            notes.append(f"missing: {row.full_name} has no run on {tests}")
        for test, runs in row.parts.items():
            gaps = sorted(seeds - set(runs)) if row.shots else []
            if gaps:
                notes.append(
                    f"missing: {row.full_name} has no seed {', '.join(map(str, gaps))} on "
                    f"{where(protocol, test)}, which other rows or tests have"
                )
    if protocol == BASE_TO_NEW:
        return notes
    gaps = [name for name in _EXPECTED[protocol] if name not in table.tests]
    if table.source == "ImageNet" and gaps:
        notes.append(f"missing: no run on {', '.join(gaps)}, which the papers' tables have")
    return notes
