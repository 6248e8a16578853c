"""Records sorted into tables of runs that may be compared, one test of one data set each.

A table holds one data set, class split, protocol, test subset, backbone (by the content of its
weights) and one list of test attacks. Rows are trainer x shots; runs that differ in any setting
that could change the result are different rows. ``across.py`` puts several tests in one table.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import starmap
from pathlib import Path
from typing import NamedTuple

from .. import records as records_of
from ..config.identity import ONLY_TRAINING, is_neutral
from ..config.keys import formerly
from .threats import attack_headings, threat_label

# keys that do not separate rows, because the record or the table states them otherwise
_STATED = (
    *("SEED", "VERSION", "DATASET.NUM_SHOTS", "MODEL.BACKBONE.NAME", "TEST.SUBSET", "TEST.FIRST"),
    *("TEST.SAVE_ADV", "TEST.NO_TEST", "TEST.PROTOCOL", "TEST.PER_CLASS_RESULT"),
    *("TEST.COMPUTE_CMAT", "ATTACK.TEST.", "DATALOADER.TEST."),
    "TRAINER.ADVPT.BANK_DIR",  # of older records; now DATASET.FEATURE_DIR
    "TRAINER.ADVPT.PREC",  # of older records; now TRAINER.ADVERSARIAL.PREC
)
# settings of a training that a zero-shot model does not have
_TRAINING = (*ONLY_TRAINING, "TRAINER.", "DATALOADER.", "ATTACK.TRAIN.")

ELSEWHERE = ("xd", "dg")  # protocols that test prompts on other data than they were trained on
UNKNOWN = "unknown"  # a source that a record of these protocols does not name, or a training
WHOLE = ""  # the part of a table that has one test only


class Run(NamedTuple):
    """A record and the file that holds it."""

    path: Path
    record: dict


@dataclass
class Row:
    """The runs of one trainer with one setting: for each test of the table, one per seed."""

    trainer: str
    shots: int | None  # None: how it was trained is unknown
    train_threat: Mapping | None
    config: dict[str, str]  # settings that separate rows, as JSON text
    parts: dict[str, dict[int, Run]] = field(default_factory=dict)  # test -> seed -> run
    unclear: "dict[str, list[Row]]" = field(default_factory=dict)  # test -> rows, one its own
    variant: str = ""  # settings in which it differs from rows of this trainer and these shots
    also: str = ""  # further settings, for a note

    @property
    def identity(self) -> str:
        """What makes two runs the same row; their seeds may differ."""
        facts = [self.trainer, self.shots, self.train_threat, self.config]
        return json.dumps(facts, sort_keys=True)

    @property
    def name(self) -> str:
        """The trainer, with its variant in brackets."""
        return f"{self.trainer} ({self.variant})" if self.variant else self.trainer

    @property
    def shots_label(self) -> str:
        """``zero-shot``, ``all``, or the number."""
        return {0: "zero-shot", -1: "all", None: UNKNOWN}.get(self.shots, str(self.shots))

    @property
    def full_name(self) -> str:
        """The row in words, for notes."""
        unit = {0: "", 1: " shot"}.get(self.shots, " shots")
        return f"{self.name}, {self.shots_label}{unit}"

    @property
    def trained_with(self) -> str:
        """The training threat in words."""
        if not self.shots:
            return UNKNOWN if self.shots is None else "not trained"
        return threat_label(self.train_threat) if self.train_threat else "clean images"

    @property
    def runs(self) -> list[Run]:
        """Every run of the row: test by test, seed by seed."""
        return [run for part in self.parts.values() for _, run in sorted(part.items())]

    def distinct(self, fact: str) -> list:
        """Return the sorted values of a field of its records, such as ``seed`` or ``epochs``."""
        values = (run.record[fact] for run in self.runs)
        return sorted({UNKNOWN if value is None else value for value in values})

    def accuracies(self, signature=None, part: str = WHOLE) -> list[float]:
        """Return the accuracies in percent, one per seed: clean, or under one attack."""
        values = []
        for _, (_, record) in sorted(self.parts.get(part, {}).items()):
            scores = {records_of.attack_signature(a): a for a in record["attacks"]}
            values.append(records_of.accuracy((scores | {None: record["clean"]})[signature]))
        return values


@dataclass
class Table:
    """Rows that may be compared with one another.

    ``source`` is the training data of a table across data sets; for base and new classes it is set
    only if the training was not on the base classes. None: no training, or the usual one.
    """

    tests: dict[str, dict]  # test -> a record of it: WHOLE alone, or class halves or data sets
    protocol: str
    source: str | None = None
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: str = ""  # which data set it is, where others of its name are in the report

    @property
    def first(self) -> dict:
        """A record of it, for what all of them share."""
        return next(iter(self.tests.values()))

    @property
    def across(self) -> bool:
        """Whether rows hold several tests of a model."""
        return WHOLE not in self.tests

    def where(self, test: str) -> str:
        return f"the {test} classes" if self.protocol == "base2new" else test

    @property
    def figures(self) -> list[tuple[str, tuple | None]]:
        """``clean`` and each attack's heading, with the signature that finds it in a record."""
        attacks = self.first["attacks"]
        signatures = map(records_of.attack_signature, attacks)
        return [("clean", None), *zip(attack_headings(attacks), signatures, strict=True)]


def backbone(record: Mapping) -> tuple[str, str]:
    """Return name and weights; a local file is known by its content, wherever it lies."""
    name = record["backbone"]
    return ("file:" if name.startswith("file:") else name), record["weights_sha256"]


def setting(record: Mapping) -> tuple:
    """Return what has to be equal wherever runs are compared: data, test images and backbone."""
    facts = (record[key] for key in ("schema", "dataset", "split", "classes"))
    return *facts, data_of(record), record["subset"] or 0, record["clean"]["n"], backbone(record)


def signatures(record: Mapping) -> tuple:
    """Return the test attacks of a record, sorted."""
    return tuple(sorted(records_of.attack_signature(a) for a in record["attacks"]))


def outcome(record: Mapping) -> tuple[int, dict]:
    """Return the numbers of correct images: clean, and under each attack."""
    robust = {records_of.attack_signature(a): a["correct"] for a in record["attacks"]}
    return record["clean"]["correct"], robust


def name_of(record: Mapping) -> str:
    """Return the tested data set's own name."""
    return records_of.data_name(record["dataset"], record["config"])


def data_of(record: Mapping, fact: str = "data_sha256") -> str | None:
    """Return which data it is; of older records None, and for own images their folder."""
    old = record["config"].get("DATASET.ROOT") if record["dataset"] == "Folder" else None
    return record.get(fact) or old


def is_trained(record: Mapping) -> bool:
    """Return True unless the model is known to be untrained."""
    return record["shots"] != 0


def trained_split(record: Mapping) -> str | None:
    """Return the classes that prompts were trained on: all, base or new; None where unknown.

    Older records do not state it, but one with training time was trained on its own classes.
    """
    if trained := record.get("trained"):
        return trained["split"]
    return record["split"] if record["seconds"]["train"] and record["shots"] else None


def source_of(record: Mapping) -> str | None:
    """Return what prompts were trained on, where it is other data or classes than usual.

    The usual ones are the tested data set, and its base classes under ``base2new``. ``unknown`` if
    the training is unknown, or if the protocol has a source that the record does not name.
    """
    if not record["shots"]:
        return None if record["shots"] == 0 else record.get("source") or UNKNOWN
    source, trained = record.get("source"), record.get("trained") or {}
    if source is None and record["protocol"] in ELSEWHERE:
        return UNKNOWN
    theirs = trained.get("set_sha256") or ""
    if source == record["dataset"] and len({theirs, record.get("set_sha256") or ""} - {""}) < 2:
        source = None
    elif trained.get("name"):
        again = trained["name"] == name_of(record) and theirs
        source = trained["name"] + (f" (data {theirs[:8]})" if again else "")
    usual = "base" if record["protocol"] == "base2new" else record["split"]
    split = trained_split(record)
    if split in (None, usual):
        return source
    which = "all" if split == "all" else f"the {split}"
    return f"{which} classes of {source or name_of(record)}"


def of_unknown_source(record: Mapping) -> bool:
    """Return True if the record's source is unknown, numbered or not."""
    return (source_of(record) or "").partition(" ")[0] == UNKNOWN


def name_sources(records: Mapping[Path, dict]) -> dict[Path, dict]:
    """Number the unknown sources of records: they may be different data sets, so never one row."""
    unknown = [path for path, record in records.items() if source_of(record) == UNKNOWN]
    numbered = {p: records[p] | {"source": f"{UNKNOWN} {i}"} for i, p in enumerate(unknown, 1)}
    return {**records, **numbered}


def known_settings(records: Iterable[Mapping]) -> set[str]:
    """Return every setting that any of the records has."""
    return set().union(*(record["config"] for record in records))


def empty_row(record: Mapping, known: Iterable[str]) -> Row:
    """Return the row, without runs, of a record among records that have the settings ``known``."""
    ignored = _STATED + (() if record["shots"] else _TRAINING)
    were = formerly(record["trainer"])
    unset = {key: were[key] for key in known if key in were}
    former = record["config"].get("TRAINER.ADVPT.PREC") if record["trainer"] == "AdvPT" else None
    renamed = {} if former is None else {"TRAINER.ADVERSARIAL.PREC": former}
    source = source_of(record)
    epochs = UNKNOWN if record["epochs"] is None else record["epochs"]
    facts = {"epochs": epochs} | ({"source": source} if source else {})
    config = {
        key: json.dumps(value)
        for key, value in (facts | unset | record["config"] | renamed).items()
        if not is_neutral(key) and not key.startswith(ignored)
    }
    return Row(record["trainer"], record["shots"], record["train_threat"], config)


def grouped(records: Mapping[Path, dict], setting_of: Callable) -> list[dict[Path, dict]]:
    """Sort records by ``setting_of(record)`` and protocol.

    Zero-shot models appear under every protocol of their setting, or alone under their own.
    """
    groups = defaultdict(dict)  # (setting, protocol) -> {path: record}
    untrained = defaultdict(dict)
    for path, record in records.items():
        kind = groups if is_trained(record) else untrained
        kind[setting_of(record), record["protocol"]][path] = record
    hosts = list(groups)
    for (own, protocol), members in untrained.items():
        for host in [key for key in hosts if key[0] == own] or [(own, protocol)]:
            groups[host] |= members
    return list(groups.values())


def build_tables(records: Mapping[Path, dict]) -> list[Table]:
    """Sort completed records into tables of one test each.

    A zero-shot model belongs to no training protocol: it appears in every table of its setting.
    """
    groups = grouped(name_sources(records), lambda r: (*setting(r), signatures(r)))
    tables = []
    for members in groups:
        table = collect(starmap(Run, members.items()))
        finish(table)
        for row in table.rows:
            source = source_of(first := row.runs[0].record)
            if source and table.protocol not in ELSEWHERE and not of_unknown_source(first):
                table.notes.append(f"source: {row.full_name} was trained on {source}")
        for name, (path, record) in [(r.full_name, run) for r in table.rows for run in r.runs]:
            if of_unknown_source(record):
                what = "what its prompts were trained on (its checkpoint is older than that field)"
                if record["shots"] is None:
                    what = "how its model was trained"
                table.notes.append(
                    f"source: '{path}' does not state {what}, so that {name} is this run only"
                )
            if not is_probed(record):
                table.notes.append(
                    f"not probed: '{path}' was tested with TEST.PROBES 0, so {name} "
                    "was not checked for masked gradients"
                )
        tables.append(table)
    order = ("dataset", "protocol", "split", "backbone", "weights_sha256")
    mark_data(tables)
    return sorted(tables, key=lambda t: [t.first[key] or "" for key in order])


def mark_data(tables: Iterable[Table]) -> None:
    """Identify the data of a table if several data sets in the report have its name.

    They differ in their lists of images, or only in the images' content.
    """
    for fact in ("data_sha256", "set_sha256"):
        found = defaultdict(lambda: defaultdict(list))  # name, and part of it -> data -> tables
        for table in tables:
            first = table.first
            part = first["split"], first["subset"], first["config"].get("TEST.FIRST")
            part = part if fact == "data_sha256" else ()  # of the tested images, or of all
            found[name_of(first), part][data_of(first, fact)].append(table)
        for alike in found.values():
            for place, members in alike.items() if len(alike) > 1 else ():
                for table in members:
                    digest = table.first.get(fact) or table.first.get("data_sha256")
                    old = f"unidentified data{f' in {place}' if place else ''}"
                    table.data = f"data {digest[:8]}" if digest else old


def collect(members: Iterable[Run], test: str = WHOLE, *, again: bool = False) -> Table:
    """Sort comparable records of one test into rows; a repeated seed is noted and left out.

    With ``again``, a repeated seed with an equal result is not noted.
    """
    members = list(members)
    first = next((r.record for r in members if is_trained(r.record)), members[0].record)
    table = Table({test: first}, first["protocol"])
    rows: dict[tuple[str, int], Row] = {}
    known = known_settings(run.record for run in members)
    best = sorted(members, key=lambda r: (is_probed(r.record), r.record["created"]), reverse=True)
    for path, record in best:
        empty, seed = empty_row(record, known), record["seed"]
        own, number = empty.identity, 0
        while (own, number) in rows and not same_prompts(rows[own, number], seed, record):
            number += 1  # another model of the same settings and seed
        row = rows.setdefault((own, number), empty)
        runs = row.parts.setdefault(test, {})
        models = {run.record.get("prompts_sha256"): other for other, run in runs.items()}
        seed = models.get(record.get("prompts_sha256") or "", seed)  # one model is one seed
        run = runs.setdefault(seed, Run(path, record))
        # a zero-shot model may have been tested under two protocols
        expected = again or (not record["shots"] and run.record["protocol"] != record["protocol"])
        if run.path != path and not (expected and outcome(run.record) == outcome(record)):
            table.notes.append(
                f"duplicate: '{path}' repeats {row.full_name}, seed {seed}; only the "
                f"{'newer' if is_probed(run.record) == is_probed(record) else 'probed'} "
                f"'{run.path}' counts"
            )
    table.rows = list(rows.values())
    for (own, number), row in rows.items():
        if (own, 1) in rows:
            row.config["model"] = str(number + 1)
        if number:
            paths = ", ".join(f"'{run.path}'" for run in row.runs)
            table.notes.append(
                f"model {number + 1}: {paths} has the settings and the seed of another run of "
                f"{row.full_name}, but other prompts, so that it is a separate row"
            )
    return table


def same_prompts(row: Row, seed: int, record: Mapping) -> bool:
    """Return False if a row has other prompts of this seed; older records do not state theirs."""
    theirs = [part[seed].record for part in row.parts.values() if seed in part]
    digests = {other.get("prompts_sha256") for other in [record, *theirs]} - {None}
    return len(digests) < 2


def is_probed(record: dict) -> bool:
    """Return True unless a white-box attack was run without the checks of the model."""
    white_box = any(attack["target"] == "end_to_end" for attack in record["attacks"])
    return not white_box or record["config"].get("TEST.PROBES", 1) != 0


def row_order(row: Row) -> tuple:
    """Return the key that sorts rows: zero-shot first, then by trainer, shots and settings."""
    parts = re.split(r"(\d+(?:\.\d+)?)", row.name)  # text and numbers in turn: 2 before 16
    name = tuple(float(part) if i % 2 else part for i, part in enumerate(parts))
    shots = float("inf") if row.shots is None else row.shots
    return row.shots != 0, row.trainer, shots < 0, shots, name


def name_variants(rows: list[Row]) -> None:
    """Name the settings in which rows of the same trainer and shots differ.

    Where the trainer's own settings suffice, they are the name and the others go to ``also``;
    otherwise all of them are the name.
    """
    same = defaultdict(list)
    for row in rows:
        same[row.trainer, row.shots].append(row)
    for (trainer, _), twins in same.items():
        keys = [k for k in differing(twins) if not k.startswith("ATTACK.TRAIN.")]  # trained with
        node = f"TRAINER.{trainer.upper()}."
        own = [key for key in keys if key.startswith(node)]
        suffice = own and len({_values(twin, own) for twin in twins}) == len(twins)
        for row in twins:
            row.variant = _values(row, own).replace(node, "") if suffice else _values(row, keys)
            row.also = _values(row, [k for k in keys if k not in own]) if suffice else ""


def differing(rows: Iterable[Row]) -> list[str]:
    return differing_keys([row.config for row in rows])


def differing_keys(settings: list[Mapping]) -> list[str]:
    """Return the keys in which several groups of settings differ, sorted."""
    keys = set().union(*settings)
    return sorted(key for key in keys if len({found.get(key) for found in settings}) > 1)


def _values(row: Row, keys: Iterable[str]) -> str:
    return ", ".join(f"{key}={row.config.get(key, 'unset')}" for key in keys)


def finish(table: Table) -> None:
    """Name and sort the rows of a table; note other settings, missing seeds and warnings."""
    name_variants(table.rows)
    table.rows.sort(key=row_order)
    rows = [row for row in table.rows if row.shots and not of_unknown_source(row.runs[0].record)]
    seeds = {seed for row in rows for seed in row.distinct("seed")}
    others = "other rows or tests" if table.across else "other rows"
    notes = [f"settings: {row.full_name} has {row.also}" for row in table.rows if row.also]
    for row in table.rows:
        trained = [run.record.get("trained") or {} for run in row.runs]
        if short := sorted({found.get("short_classes") or 0 for found in trained} - {0}):
            counts = " to ".join(map(str, sorted({short[0], short[-1]})))
            classes = f"{counts} of {trained[0].get('classes')} classes"
            notes.append(f"fewer shots: {row.full_name} had fewer images in {classes}")
    parts = [(row, *part) for row in table.rows for part in row.parts.items()]
    for row, test, runs in parts:
        gaps = ", ".join(map(str, sorted(seeds - set(runs))))
        if gaps and row in rows:
            place = f" on {table.where(test)}" if table.across else ""
            notes.append(f"missing: {row.full_name} has no seed {gaps}{place}, which {others} have")
    for row, test, runs in parts:
        place = f"on {table.where(test)}: " if table.across else ""
        for seed, (_, record) in sorted(runs.items()):
            headings = attack_headings(record["attacks"])
            notes += [
                f"self-check: {place}{row.full_name}, seed {seed}, {heading}: {warning}"
                for heading, attack in zip(headings, record["attacks"], strict=True)
                for warning in attack["warnings"]
            ]
    table.notes += notes
