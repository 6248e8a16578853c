"""Records sorted into tables: what may stand side by side, and what has to be told beside it.

A table holds one data set, class split, protocol, test subset, backbone (by the content of its
weights) and one list of test attacks. Rows are trainer x shots; runs that differ in any setting
that could change the result are different rows.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .. import records as records_of
from ..config.keys import defaults
from .threats import attack_headings, threat_label

# settings that do not change a result, or that the table states by other means
_NEUTRAL = (
    "SEED",
    "OUTPUT_DIR",
    "RESUME",
    "USE_CUDA",
    "VERBOSE",
    "VERSION",
    "DATASET.ROOT",
    "DATASET.CACHE_DIR",
    "DATASET.NUM_SHOTS",
    "MODEL.BACKBONE.NAME",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TEST.SUBSET",
    "TEST.FIRST",
    "TEST.PICTURE",
    "TEST.PROBES",
    "TEST.SAVE_ADV",
    "TEST.NO_TEST",
    "TEST.PROTOCOL",
    "TEST.PER_CLASS_RESULT",
    "TEST.COMPUTE_CMAT",
    "ATTACK.TEST.*",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.TEST.*",
    "DATASET.FEATURE_DIR",
    "TRAINER.*.BANK_BATCH",
    "TRAINER.*.CLASS_CHUNK",
)
# settings of a training that a zero-shot model does not have
_TRAINING = (
    "OPTIM.*",
    "TRAIN.*",
    "TRAINER.*",
    "DATALOADER.*",
    "ATTACK.TRAIN.*",
    "INPUT.TRANSFORMS",
)

ELSEWHERE = ("xd", "dg")  # protocols that test prompts on other data than they were trained on
UNKNOWN = "unknown"  # a source that a record of these protocols does not name


@dataclass
class Row:
    """The runs of one trainer with one setting; one per seed."""

    trainer: str
    shots: int
    train_threat: Mapping | None
    config: dict
    runs: dict[int, dict] = field(default_factory=dict)  # seed -> record
    paths: dict[int, Path] = field(default_factory=dict)
    also: str = ""  # further settings, for a note
    variant: str = ""  # settings that tell it from another row of this trainer and these shots

    @property
    def identity(self) -> str:
        """What makes two runs the same row, whatever their seeds."""
        facts = [self.trainer, self.shots, self.train_threat, self.config]
        return json.dumps(facts, sort_keys=True)

    @property
    def name(self) -> str:
        """The trainer, with its variant in brackets."""
        return f"{self.trainer} ({self.variant})" if self.variant else self.trainer

    @property
    def shots_label(self) -> str:
        """``zero-shot``, ``all``, or the number."""
        return {0: "zero-shot", -1: "all"}.get(self.shots, str(self.shots))

    @property
    def full_name(self) -> str:
        """The row in words, for notes."""
        unit = {0: "", 1: " shot"}.get(self.shots, " shots")
        return f"{self.name}, {self.shots_label}{unit}"

    @property
    def trained_with(self) -> str:
        """The training threat in words."""
        if self.shots == 0:
            return "not trained"
        return threat_label(self.train_threat) if self.train_threat else "clean images"

    @property
    def parameters(self) -> str:
        """Trainable parameters (several numbers only if the runs disagree)."""
        return ", ".join(map(str, sorted({r["prompt_parameters"] for r in self.runs.values()})))

    def accuracies(self, signature=None) -> list[float]:
        """Return the accuracies in percent, one per seed: clean, or under one attack."""
        values = []
        for _, record in sorted(self.runs.items()):
            score = record["clean"]
            if signature is not None:
                by_signature = {records_of.attack_signature(a): a for a in record["attacks"]}
                score = by_signature[signature]
            values.append(records_of.accuracy(score))
        return values


@dataclass
class Table:
    """Rows that may be compared with one another."""

    first: dict  # any record of it, for what all of them share
    attacks: list[dict]  # the test attacks in their order in that record
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def headings(self) -> list[str]:
        """One heading per attack."""
        return attack_headings(self.attacks)

    @property
    def signatures(self) -> list[tuple]:
        """One hashable threat model per attack, in the order of the headings."""
        return [records_of.attack_signature(a) for a in self.attacks]

    @property
    def devices(self) -> list[str]:
        """Every device a run was made on."""
        return sorted({r["device"] for row in self.rows for r in row.runs.values()})


def backbone(record: Mapping) -> tuple[str, str]:
    """Return name and weights; a local file is known by its content, wherever it lies."""
    name = record["backbone"]
    return ("file:" if name.startswith("file:") else name), record["weights_sha256"]


def setting(record: Mapping) -> tuple:
    """Return what has to be equal wherever runs are compared: data, test images and backbone."""
    return (
        record["schema"],
        record["dataset"],
        record["split"],
        record["classes"],
        record["subset"] or 0,
        record["clean"]["n"],
        backbone(record),
    )


def signatures(record: Mapping) -> tuple:
    """Return the test attacks of a record, in an order of their own."""
    return tuple(sorted(records_of.attack_signature(a) for a in record["attacks"]))


def source_of(record: Mapping) -> str | None:
    """Return the data set that prompts come from, where it is another than the tested one.

    ``unknown`` where the protocol has one and the record does not say which.
    """
    if not record["shots"]:
        return None
    source = record.get("source")
    if source is None and record["protocol"] in ELSEWHERE:
        return UNKNOWN
    return None if source == record["dataset"] else source


def is_unknown(source: str | None) -> bool:
    """Tell whether ``source`` stands for one that no record names, numbered or not."""
    return source is not None and source.partition(" ")[0] == UNKNOWN


def name_sources(records: Mapping[Path, dict]) -> dict[Path, dict]:
    """Number the unknown sources of records: two of them may be two data sets, and no one row."""
    unknown = [path for path, record in records.items() if source_of(record) == UNKNOWN]
    numbers = {path: {"source": f"{UNKNOWN} {i}"} for i, path in enumerate(unknown, 1)}
    return {path: record | numbers.get(path, {}) for path, record in records.items()}


def _setting(record: Mapping) -> tuple:
    """Return everything but the protocol that has to be equal inside one table."""
    return *setting(record), signatures(record)


def _relevant(record: Mapping, known: Iterable[str]) -> dict:
    """Return the settings that tell rows of one trainer apart, each as JSON text.

    Args:
        known: settings that any of the table's records has.
    """
    patterns = _NEUTRAL + (_TRAINING if record["shots"] == 0 else ())
    unset = {key: defaults()[key] for key in known if key in defaults()}
    source = source_of(record)
    facts = {"epochs": record["epochs"]} | ({"source": source} if source else {})
    config = facts | unset | record["config"]
    return {
        key: json.dumps(value)
        for key, value in config.items()
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
    }


def grouped(records: Mapping[Path, dict], setting_of: Callable) -> list[dict[Path, dict]]:
    """Sort records by ``setting_of(record)`` and protocol.

    Zero-shot models join every protocol of their setting; alone they stay with their own.
    """
    groups = defaultdict(dict)  # (setting, protocol) -> {path: record}
    untrained = defaultdict(dict)
    for path, record in records.items():
        kind = groups if record["shots"] else untrained
        kind[setting_of(record), record["protocol"]][path] = record
    hosts = list(groups)
    for (own, protocol), members in untrained.items():
        for host in [key for key in hosts if key[0] == own] or [(own, protocol)]:
            groups[host] |= members
    return list(groups.values())


def build_tables(records: Mapping[Path, dict]) -> list[Table]:
    """Sort completed records into tables.

    A zero-shot model belongs to no training protocol: it joins every table of its setting.
    """
    tables = [_table(members) for members in grouped(name_sources(records), _setting)]
    order = ("dataset", "protocol", "split", "backbone", "weights_sha256")
    return sorted(tables, key=lambda t: [t.first[key] for key in order])


def _table(members: Mapping[Path, dict]) -> Table:
    table = collect(members)
    name_variants(table.rows)
    table.rows.sort(key=row_order)
    table.notes += settings_notes(table.rows) + _missing_seeds(table.rows)
    table.notes += _unknown_sources(table.rows)
    table.notes += [f"self-check: {warning}" for warning in warnings_of(table.rows)]
    return table


def row_order(row: Row) -> tuple:
    """Return the key that sorts rows: zero-shot first, then by trainer, shots and settings."""
    parts = re.split(r"(\d+(?:\.\d+)?)", row.name)  # text and numbers in turn: 2 before 16
    name = tuple(float(part) if i % 2 else part for i, part in enumerate(parts))
    return row.shots != 0, row.trainer, row.shots < 0, row.shots, name


def collect(members: Mapping[Path, dict]) -> Table:
    """Sort comparable records into rows; what repeats a seed is noted and left out."""
    trained = [r for r in members.values() if r["shots"] != 0]
    first = (trained or list(members.values()))[0]
    table = Table(first, first["attacks"])
    rows: dict[tuple, Row] = {}
    known = set().union(*(record["config"] for record in members.values()))
    newest_first = sorted(members.items(), key=lambda item: item[1]["created"], reverse=True)
    for path, record in newest_first:
        empty = empty_row(record, known)
        row = rows.setdefault(empty.identity, empty)
        seed = record["seed"]
        if seed not in row.runs:
            row.runs[seed], row.paths[seed] = record, path
        elif not _same_model_again(row.runs[seed], record):
            table.notes.append(
                f"duplicate: '{path}' repeats {row.full_name}, seed {seed}; "
                f"only the newer '{row.paths[seed]}' counts"
            )
    table.rows = list(rows.values())
    return table


def _same_model_again(one: Mapping, other: Mapping) -> bool:
    """Tell whether the zero-shot model was tested for two protocols, to the same end."""
    untrained = not one["shots"] and one["protocol"] != other["protocol"]
    return untrained and _outcome(one) == _outcome(other)


def _outcome(record: Mapping) -> tuple[int, dict]:
    robust = {records_of.attack_signature(a): a["correct"] for a in record["attacks"]}
    return record["clean"]["correct"], robust


def empty_row(record: Mapping, known: Iterable[str]) -> Row:
    """Return the row that a record belongs to, without runs.

    Args:
        known: settings that any of the records it is compared with has.
    """
    config = _relevant(record, known)
    return Row(record["trainer"], record["shots"], record["train_threat"], config)


def name_variants(rows: list[Row]) -> None:
    """Name the settings in which rows of the same trainer and shots differ.

    Where the trainer's own settings tell them apart, these are the name and the others go to
    ``also``; otherwise all of them are the name.
    """
    same = defaultdict(list)
    for row in rows:
        same[row.trainer, row.shots].append(row)
    for twins in same.values():
        keys = [
            key
            for key in sorted(set().union(*(twin.config for twin in twins)))
            if len({twin.config.get(key) for twin in twins}) > 1
            and not key.startswith("ATTACK.TRAIN.")  # told by 'trained with'
        ]
        own = [key for key in keys if key.startswith(f"TRAINER.{twins[0].trainer.upper()}.")]
        if own and len({_values(twin, own) for twin in twins}) == len(twins):
            for row in twins:
                row.variant = _values(row, own).replace(f"TRAINER.{row.trainer.upper()}.", "")
                row.also = _values(row, [key for key in keys if key not in own])
        else:
            for row in twins:
                row.variant, row.also = _values(row, keys), ""


def _values(row: Row, keys: Iterable[str]) -> str:
    return ", ".join(f"{key}={row.config.get(key, 'unset')}" for key in keys)


def _missing_seeds(rows: list[Row]) -> list[str]:
    trained = [row for row in rows if row.shots != 0 and not _of_unknown_source(row)]
    seeds = set().union(*(row.runs for row in trained))
    return [
        f"missing: {row.full_name} has no seed "
        + ", ".join(map(str, sorted(seeds - set(row.runs))))
        + ", which other rows have"
        for row in trained
        if seeds - set(row.runs)
    ]


def _of_unknown_source(row: Row) -> bool:
    return any(is_unknown(source_of(record)) for record in row.runs.values())


def _unknown_sources(rows: list[Row]) -> list[str]:
    return [
        f"source: '{path}' does not say what its prompts were trained on (its checkpoint is older "
        f"than that field), so that {row.full_name} is that run alone"
        for row in rows
        if _of_unknown_source(row)
        for path in row.paths.values()
    ]


def settings_notes(rows: Iterable[Row]) -> list[str]:
    """Return the settings that rows are not named by."""
    return [f"settings: {row.full_name} has {row.also}" for row in rows if row.also]


def warnings_of(rows: Iterable[Row]) -> list[str]:
    """Return what the attacks' self-checks objected to."""
    return [
        f"{row.full_name}, seed {seed}, {heading}: {warning}"
        for row in rows
        for seed, record in sorted(row.runs.items())
        for heading, attack in zip(
            attack_headings(record["attacks"]), record["attacks"], strict=True
        )
        for warning in attack["warnings"]
    ]
