"""Tables of one model over several tests: base and new classes, source and target data sets.

Rows are models, matched across tests. All tests of a table have the same backbone, attacks
and ``TEST.SUBSET``. A model is identified by its settings, its seed and the digest of its prompts.
Older records have no digest; those of one run folder (``RUN/record.json`` and ``RUN/tests/*``) are
of one model.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import starmap
from pathlib import Path

from ..config.keys import formerly
from . import tables as tables_of
from .tables import Row, Run, Table, collect, differing, empty_row, name_of, setting, source_of

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


def run_folder(path: Path) -> Path:
    """Return the folder of the run that trained the model of a record."""
    folder = path.parent
    return folder.parent.parent if folder.parent.name in ("tests", "robustness") else folder


def _shared(record: Mapping) -> tuple:
    """Return what all tests of a table have in common.

    A test set smaller than ``TEST.SUBSET`` is used whole, and its record says null.
    """
    config = record["config"]
    asked = config.get("TEST.SUBSET", record["subset"] or 0), config.get("TEST.FIRST", 0)
    return record["schema"], tables_of.backbone(record), asked, tables_of.signatures(record)


def _place(record: Mapping) -> tuple | None:
    """Return protocol, origin, classes and data of a record's table; None where it has none."""
    protocol, split = record["protocol"], record["split"]
    if tables_of.of_unknown_source(record):
        return None
    if protocol == BASE_TO_NEW and split in SPLITS:
        data = tables_of.data_of(record, "set_sha256"), source_of(record)
        return protocol, name_of(record), None, data
    if protocol in (CROSS, SHIFT):
        origin = (source_of(record) or name_of(record)) if record["shots"] else None
        return protocol, origin, split, (record.get("trained") or {}).get("set_sha256")
    return None


def _hosts(record: Mapping, groups: Mapping[tuple, dict]) -> list[tuple]:
    """Return the groups of trained models that a zero-shot record belongs to, or its own."""
    same = [key for key in groups if key[0] == _shared(record)]
    hosts = []
    for key in same:
        protocol, origin, split, data = key[1]
        if protocol == BASE_TO_NEW:
            found = name_of(record), tables_of.data_of(record, "set_sha256")
            fits = record["split"] in SPLITS and found == (origin, data[0])
        else:
            tested = {name_of(r) for r in groups[key].values()} | {origin}
            fits = record["split"] == split and name_of(record) in tested
        hosts += [key] if fits else []
    place = _place(record)
    if place and not hosts:  # a data set that no trained model was tested on yet
        hosts = [key for key in same if key[1][::2] == place[::2] and place[0] != BASE_TO_NEW]
    return hosts or ([(_shared(record), place)] if place else [])


def arrange(records: Mapping[Path, dict]) -> list[Table]:
    """Sort completed records into tables across tests where a protocol has them, else of one test.

    Zero-shot models appear wherever the same data is tested. A run of another protocol supplies a
    model's accuracy on its source if it was not measured again. Prompts of unknown source
    have no table across data sets, because their runs may be of different models.
    """
    records = tables_of.name_sources(records)
    trained = {path: record for path, record in records.items() if tables_of.is_trained(record)}
    groups = defaultdict(dict)
    for path, record in trained.items():
        if place := _place(record):
            groups[_shared(record), place][path] = record
    hosts = {path: _hosts(r, groups) for path, r in records.items() if path not in trained}
    for path, keys in hosts.items():
        for key in keys:
            groups[key][path] = records[path]
    joined, used = [], set()
    for key, members in groups.items():
        table, left = _across(key, members, trained)
        joined.append(table)
        used |= set(members) - left
    rest = {path: r for path, r in records.items() if path not in used or path not in trained}
    single = tables_of.build_tables(rest)
    single = [t for t in single if not {run.path for row in t.rows for run in row.runs} <= used]

    def order(table: Table) -> tuple:
        first = table.first
        start = (table.source if table.protocol != BASE_TO_NEW else None) or name_of(first)
        split = "" if table.across else first["split"]
        return start, table.protocol, first["backbone"], first["weights_sha256"] or "", split

    tables_of.mark_data([*joined, *single])
    return sorted([*joined, *single], key=order)


def _model(record: Mapping, known: Iterable[str], protocol: str) -> Row:
    """Return the row of a record without what differs between the tests of a table."""
    row, own = empty_row(record, known), ("DATASET.SUBSAMPLE_CLASSES",)
    if protocol != BASE_TO_NEW:  # a target's augmentation is not what its prompts were trained with
        own += ("source", "DATASET.", "INPUT.TRANSFORMS")
    row.config = {key: value for key, value in row.config.items() if not key.startswith(own)}
    return row


def _across(key: tuple, members: dict[Path, dict], trained: dict[Path, dict]):
    """Build a table; return it and the paths of the members that do not fit into it."""
    protocol, origin, _, data = key[1]
    known = tables_of.known_settings((trained | members).values())
    if protocol != BASE_TO_NEW and origin:
        members = members | _source_runs(key, members, trained, known)
    tests, left = _one_setting_each(members, protocol)
    places = [origin, *SPLITS, *SHORT]  # the papers' order
    table = Table({}, protocol, data[1] if protocol == BASE_TO_NEW else origin)
    models: dict[str, Row] = {}
    rows_of: dict[str, dict[str, list[Row]]] = defaultdict(dict)  # model -> test -> rows
    for name in sorted(tests, key=lambda n: (places.index(n) if n in places else 99, n)):
        part = collect(starmap(Run, tests[name].items()), name)
        table.tests |= part.tests
        table.notes += part.notes
        for row in part.rows:
            model = _model(row.runs[0].record, known, protocol)
            models.setdefault(model.identity, model)
            rows_of[model.identity].setdefault(name, []).append(row)
    rows = [row for key, model in models.items() for row in _combine(model, rows_of[key])]
    table.rows = [row for row in rows if row.parts]
    tables_of.finish(table)
    table.notes += _untested(table) + [n for row in rows for n in _ambiguous(table, row)]
    if left:
        paths = ", ".join(f"'{path}'" for path in sorted(left))
        table.notes.append(
            f"apart: {paths} tested other classes or another number of images, so that they have "
            "a table of their own"
        )
    twins = [twin for row in rows for unclear in row.unclear.values() for twin in unclear]
    return table, left | {run.path for twin in twins for run in twin.runs}


def _source_runs(key: tuple, members: Mapping, trained: Mapping, known: set) -> dict[Path, dict]:
    """Return runs of other protocols that tested a model of the table on its source.

    The run folder's own record is used. Without one, the newest of several with one row and
    seed is used; other rows are kept next to the model's.
    """
    shared, (protocol, origin, split, data) = key

    def model(record: Mapping) -> tuple[str, int]:
        return _model(record, known, protocol).identity, record["seed"]

    wanted = defaultdict(set)  # model -> run folders
    prompts = defaultdict(set)  # model -> digests
    for path, record in members.items():
        wanted[model(record)].add(run_folder(path))
        prompts[model(record)].add(record.get("prompts_sha256"))
    there = {model(record) for record in members.values() if name_of(record) == origin}
    candidates = defaultdict(list)
    for path, record in sorted(trained.items(), key=lambda item: item[1]["created"]):
        fits = name_of(record) == origin and record["split"] == split and not source_of(record)
        fits = fits and record.get("set_sha256") in (data, None)
        if fits and path not in members and _shared(record) == shared:
            digests = prompts[model(record)]
            if None in digests or record.get("prompts_sha256") in (None, *digests):
                candidates[model(record)].append(path)
    found = {}  # row and seed -> path
    for name in wanted.keys() & candidates.keys() - there:
        own = [path for path in candidates[name] if run_folder(path) in wanted[name]]
        for path in own or candidates[name]:
            found[empty_row(trained[path], known).identity, name[1]] = path
    return {path: trained[path] for path in sorted(found.values())}


def _one_setting_each(members: Mapping[Path, dict], protocol: str):
    """Return test -> {path: record}, and the paths of members that do not fit.

    If a test has several sets of images, the one with most runs is used.
    """
    buckets = defaultdict(lambda: defaultdict(dict))
    for path, record in members.items():
        name = record["split"] if protocol == BASE_TO_NEW else name_of(record)
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

    Several rows of one test are several models that differ only in a setting of the data, or in
    their prompts. They are separate rows if every test has the same prompts, the same run folders,
    or the same of these settings, once each. Otherwise rows of different tests cannot be matched,
    and tests with several rows are left out.
    """

    def row(tests: dict[str, Row], config: dict) -> Row:
        parts = {name: row.parts[name] for name, row in tests.items()}
        return replace(model, config=model.config | config, parts=parts)

    if all(len(rows) == 1 for rows in found.values()):
        return _one_model_each(row({name: rows[0] for name, rows in found.items()}, {}))
    keys = sorted({key for rows in found.values() for key in differing(rows)})

    def settings(row: Row) -> tuple[str, ...]:
        former = formerly(row.trainer)
        return tuple(row.config.get(key, json.dumps(former.get(key))) for key in keys)

    def folders(row: Row) -> frozenset[Path]:
        return frozenset(run_folder(run.path) for run in row.runs)

    def prompts(row: Row) -> frozenset[tuple]:
        return frozenset((run.record["seed"], run.record.get("prompts_sha256")) for run in row.runs)

    for known_by in (prompts, folders, settings):
        by_value = {name: {known_by(row): row for row in rows} for name, rows in found.items()}
        values = next(iter(by_value.values())).keys()
        if all(by_value[n].keys() == values and len(found[n]) == len(values) for n in found):
            models = [{name: rows[value] for name, rows in by_value.items()} for value in values]
            own = [settings(next(iter(tests.values()))) for tests in models]
            return [
                one
                for t, v in zip(models, own, strict=True)
                for one in _one_model_each(row(t, dict(zip(keys, v, strict=True))))
            ]
    single = row({name: rows[0] for name, rows in found.items() if len(rows) == 1}, {})
    single.unclear = {name: rows for name, rows in found.items() if len(rows) > 1}
    return _one_model_each(single)


def _one_model_each(row: Row) -> list[Row]:
    """Take the seeds out of a row whose prompts differ between tests: each is its own model."""
    mixed = [
        run for run in row.runs if not tables_of.same_prompts(row, run.record["seed"], run.record)
    ]
    rows = defaultdict(dict)  # prompts -> test -> seed -> run
    for test, runs in row.parts.items():
        for seed, run in runs.items():
            own = run.record.get("prompts_sha256") if run in mixed else None
            rows[own].setdefault(test, {})[seed] = run
    found = [row]
    for digest, parts in rows.items() if mixed else ():
        config = row.config | ({"prompts": digest[:8]} if digest else {})
        found.append(replace(row, config=config, parts=parts, unclear={}))
    first, *others = found[1:] or found
    return [replace(first, unclear=row.unclear), *others]


def _ambiguous(table: Table, row: Row) -> Iterator[str]:
    for test, twins in row.unclear.items():
        paths = sorted(f"'{run.path}'" for twin in twins for run in twin.runs)
        yield (
            f"ambiguous: {row.full_name} has several models on {table.where(test)} that differ in "
            f"{', '.join(differing(twins))}, and the runs on the other data do not show which of "
            f"them they belong to; left out here: {', '.join(paths)}"
        )


def _untested(table: Table) -> list[str]:
    """Name the tests that a row lacks, and the data sets of the papers' tables."""
    tests = SPLITS if table.protocol == BASE_TO_NEW else list(table.tests)
    if table.protocol != BASE_TO_NEW and table.source and table.source not in tests:
        tests = [table.source, *tests]
    notes = []
    for row in table.rows:
        found = row.parts.keys() | row.unclear.keys()
        if untested := ", ".join(table.where(test) for test in tests if test not in found):
            notes.append(f"missing: {row.full_name} has no run on {untested}")
    if table.source == "ImageNet" and table.protocol != BASE_TO_NEW:
        shifted = table.protocol == SHIFT
        expected = [name for name, short in SHORT.items() if short.startswith("-") == shifted]
        if gaps := ", ".join(name for name in expected if name not in ("ImageNet", *table.tests)):
            notes.append(f"missing: no run on {gaps}, which the papers' tables have")
    return notes
