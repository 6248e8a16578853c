"""The result record: one ``record.json`` per evaluated model, built, checked, written, found.

Tables are rendered from these records only. Schema 1 is the set of fields in ``_FIELDS``;
a change of a field's meaning raises :data:`SCHEMA`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from ..utils.errors import UserError, nearest
from ..utils.io import read_json, write_json
from ..utils.machine import environment
from ..utils.statistics import harmonic_mean, mean_interval
from .threats import OBJECTIVES, TARGETS

__all__ = [
    "FILE_NAME",
    "SCHEMA",
    "Loaded",
    "Problem",
    "RecordError",
    "accuracy",
    "attack_signature",
    "completed_record",
    "environment",
    "flat_config",
    "harmonic_mean",
    "load_records",
    "mean_interval",
    "new_record",
    "read_record",
    "test_images",
    "validate_record",
    "write_record",
]

SCHEMA = 1
FILE_NAME = "record.json"
_BALL_SLACK = 1e-5  # float32 rounding of x + delta, and eps written to four decimals of 1/255


class _Rule(NamedTuple):
    expected: str
    accepts: Callable[[object], bool]


def _number(low: float = 0, high: float = math.inf, *, whole: bool = False) -> _Rule:
    kind = "an integer" if whole else "a number"
    types = int if whole else (int, float)
    limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"

    def accepts(value):
        if isinstance(value, bool) or not isinstance(value, types):
            return False
        return math.isfinite(value) and low <= value <= high

    return _Rule(f"{kind} {limits}", accepts)


def _integer(low: int) -> _Rule:
    return _number(low, whole=True)


def _one_of(*choices) -> _Rule:
    def accepts(value):  # True == 1, but a flag is no schema
        return any(value == c and type(value) is type(c) for c in choices)

    return _Rule("one of " + ", ".join(map(repr, choices)), accepts)


def _optional(rule: _Rule) -> _Rule:
    return _Rule(f"{rule.expected} or null", lambda v: v is None or rule.accepts(v))


def _is_json(value) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_json(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, bool, int))


def _is_eps(value) -> bool:
    """Tell whether ``value`` is a string such as ``16/255`` or ``0.5/255``."""
    if not (isinstance(value, str) and value.endswith("/255")):
        return False
    try:
        return 0 <= _eps(value) <= 100  # radii in L2 may exceed 1
    except ValueError:
        return False


def _eps(text: str) -> float:
    return float(text.removesuffix("/255")) / 255


def _is_sha256(value) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _is_date(value) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


_TEXT = _Rule("a non-empty string", lambda v: isinstance(v, str) and v.strip() != "")
_FLAG = _Rule("true or false", lambda v: isinstance(v, bool))
_EPS = _Rule("a string such as '4/255'", _is_eps)
_OBJECT = _Rule("an object", lambda v: isinstance(v, dict) and _is_json(v))
_TEXTS = _Rule(
    "a list of strings", lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v)
)

_SECONDS = {"train": _number(), "bank": _number(), "eval": _number()}
_SCORE = {"n": _integer(1), "correct": _integer(0)}
_THREAT = {
    "name": _TEXT,
    "objective": _optional(_one_of(*OBJECTIVES)),
    "target": _one_of(*TARGETS),
    "eps": _optional(_EPS),  # null: no ball
    "alpha": _optional(_EPS),
    "steps": _integer(0),
    "restarts": _integer(1),
    "start": _optional(_TEXT),
    "norm": _TEXT,
    "drop": _FLAG,
}
_CHECKS = {
    "max_linf": _number(0, 1),
    "in_range": _FLAG,
    "zero_grad_share": _number(0, 1),
    "loss_rises": _Rule(
        "true, false or a share from 0 to 1",
        lambda v: isinstance(v, bool) or _number(0, 1).accepts(v),
    ),
}
_OUTCOME = _SCORE | {"seconds": _number(), "checks": _OBJECT, "warnings": _TEXTS}
_FIELDS = {
    "schema": _one_of(SCHEMA),
    "status": _one_of("completed", "running"),
    "trainer": _TEXT,
    "paper": _optional(_TEXT),
    "dataset": _TEXT,
    "protocol": _one_of("few_shot", "base2new", "xd", "dg", "zero_shot"),
    "split": _one_of("all", "base", "new"),
    "shots": _integer(-1),  # 0 is zero-shot, -1 every training image
    "seed": _integer(-1),  # -1: not fixed
    "backbone": _TEXT,
    "weights_sha256": _Rule("64 lower-case hex digits", _is_sha256),
    "prompt_parameters": _integer(0),
    "classes": _integer(1),
    "train_threat": _optional(_OBJECT),
    "epochs": _integer(0),
    "subset": _optional(_integer(1)),
    "seconds": _OBJECT,
    "device": _TEXT,
    "clean": _optional(_OBJECT),
    "attacks": _Rule("a list of objects", lambda v: isinstance(v, list)),
    "config": _OBJECT,
    "versions": _Rule(
        "an object of strings",
        lambda v: isinstance(v, dict) and all(isinstance(x, str) for x in v.values()),
    ),
    "git_commit": _optional(_TEXT),
    "created": _Rule("an ISO date and time with its zone", _is_date),
}
# fields that older records of this schema do not have
_LATER = {"source": _optional(_TEXT), "processes": _optional(_integer(1))}


def _check_fields(values, rules: Mapping[str, _Rule], prefix: str, fail) -> None:
    """Check that ``values`` is an object whose fields satisfy ``rules``; others may be there."""
    if not isinstance(values, dict):
        fail(prefix.rstrip(".") or "record", values, "an object")
    for key, rule in rules.items():
        if key not in values:
            fail(prefix + key, None, rule.expected, missing=True)
        if not rule.accepts(values[key]):
            fail(prefix + key, values[key], rule.expected)


def validate_record(record, where="record") -> dict:
    """Return ``record`` after checking type and range of every field.

    A ``running`` record may lack the clean figure; a ``completed`` one may not. Attack fields
    beyond the known ones (a momentum, a kernel) are allowed and count as part of the threat
    model.

    Args:
        record: the decoded JSON.
        where: the file's path, for the message.

    Raises:
        UserError: names ``where``, the field, its value and what is expected.
    """

    def fail(field, value, expected, *, missing=False):
        found = "is missing" if missing else f"is {_shorten(value)}"
        raise UserError(
            f"'{where}': field '{field}' {found}, expected {expected}; "
            "delete the file and evaluate the model again"
        )

    known = _FIELDS | _LATER
    _check_fields(record, _FIELDS, "", fail)
    for key in record:
        if key not in known:
            raise UserError(f"'{where}': unknown field '{key}'.{nearest(key, known)}")
    _check_fields({**dict.fromkeys(_LATER), **record}, _LATER, "", fail)
    _check_fields(record["seconds"], _SECONDS, "seconds.", fail)
    if record["train_threat"] is not None:
        _check_fields(record["train_threat"], _THREAT, "train_threat.", fail)
    if record["protocol"] == "zero_shot" and record["shots"] != 0:
        fail("shots", record["shots"], "0 under protocol 'zero_shot'")

    clean = record["clean"]
    if clean is not None:
        _check_fields(clean, _SCORE, "clean.", fail)
        if clean["correct"] > clean["n"]:
            fail("clean.correct", clean["correct"], f"at most clean.n = {clean['n']}")
    elif record["status"] == "completed" or record["attacks"]:
        fail("clean", None, "an object with n and correct before any attack and at completion")

    signatures = {}
    for i, attack in enumerate(record["attacks"]):
        prefix = f"attacks[{i}]."
        _check_fields(attack, _THREAT | _OUTCOME, prefix, fail)
        if not _is_json(attack):
            fail(prefix[:-1], attack, "JSON values only")
        _check_fields(attack["checks"], _CHECKS, prefix + "checks.", fail)
        largest = attack["checks"]["max_linf"]
        if attack["norm"] == "linf" and not (attack["eps"] and _eps(attack["eps"]) <= 1):
            fail(prefix + "eps", attack["eps"], "a radius up to 255/255 in L_inf")
        if attack["norm"] == "linf" and largest > _eps(attack["eps"]) + _BALL_SLACK:
            fail(prefix + "checks.max_linf", largest, f"at most eps = {attack['eps']}")
        if attack["n"] != clean["n"]:
            fail(prefix + "n", attack["n"], f"the same images as clean.n = {clean['n']}")
        if attack["correct"] > clean["correct"]:
            fail(
                prefix + "correct",
                attack["correct"],
                f"at most clean.correct = {clean['correct']} (a sample wrong clean is not robust)",
            )
        signature = attack_signature(attack)
        if signature in signatures:
            first = signatures[signature]
            fail(prefix[:-1], attack["name"], f"a threat model other than that of attacks[{first}]")
        signatures[signature] = i
    return record


def _shorten(value, limit=80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def attack_signature(attack: Mapping) -> tuple[tuple[str, str], ...]:
    """Return what makes two attacks the same threat model, hashable and sorted.

    Everything that describes the attack counts, also fields this version does not know;
    its outcome (n, correct, seconds, checks, warnings) does not.
    """
    return tuple(sorted((k, str(v)) for k, v in attack.items() if k not in _OUTCOME))


def test_images(subset: int | None, first: int | None) -> str:
    """Say which test images were taken, by ``TEST.SUBSET`` and ``TEST.FIRST`` (0 or None: all)."""
    if first:
        return f"the first by file name, TEST.FIRST {first}"
    if subset:
        return f"a fixed stratified subset, TEST.SUBSET {subset}"
    return "all of the test set"


def accuracy(score: Mapping) -> float:
    """Return the accuracy in percent of an object with ``n`` and ``correct``."""
    return 100 * score["correct"] / score["n"]


def flat_config(config) -> dict:
    """Return a yacs node (or nested dict) as one flat dict ``{"OPTIM.LR": 0.002, ...}``.

    Tuples become lists; paths and infinite numbers become strings, so that the result is JSON.
    """
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": v for inner, v in flat_config(value).items()}
        else:
            flat[str(key)] = _as_json(value)
    return flat


def _as_json(value):
    if isinstance(value, dict):
        return {str(k): _as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(v) for v in value]
    return value if _is_json(value) else str(value)


def new_record(
    *,
    trainer: str,
    dataset: str,
    protocol: str,
    shots: int,
    seed: int,
    backbone: str,
    weights_sha256: str,
    prompt_parameters: int,
    classes: int,
    config,
    epochs: int = 0,
    split: str = "all",
    paper: str | None = None,
    source: str | None = None,
    train_threat: Mapping | None = None,
    subset: int | None = None,
    seconds: Mapping | None = None,
    clean: Mapping | None = None,
    attacks=(),
    status: str = "running",
    device="cpu",
    processes: int = 1,
) -> dict:
    """Build and check a record of the current schema.

    Args:
        dataset: the tested data set.
        protocol: few_shot, base2new, xd, dg or zero_shot.
        shots: images per class; 0 zero-shot, -1 all of them.
        prompt_parameters: number of trained values.
        config: the yacs configuration, nested or already flat.
        split: all, base or new classes.
        source: the data set that was trained on; None where nothing was, or it is not known.
        train_threat: the training attack (``AttackSpec.describe()``), None for clean training.
        subset: ``TEST.SUBSET``, None (or 0) for the whole test set.
        seconds: wall time in s of ``train``, ``bank``, ``eval``; what is not given is 0.
        clean: ``n`` and ``correct``; may wait until the test while status is ``running``.
        attacks: one dict per test attack: its description, n, correct, seconds, checks, warnings.
        device: the torch device the run used; the record states it in words.
        processes: how many of them shared the work.

    Raises:
        UserError: a field has a wrong type or range.
    """
    record = {
        "schema": SCHEMA,
        "status": status,
        "trainer": trainer,
        "paper": paper,
        "dataset": dataset,
        "source": source,
        "protocol": protocol,
        "split": split,
        "shots": shots,
        "seed": seed,
        "backbone": backbone,
        "weights_sha256": weights_sha256,
        "prompt_parameters": prompt_parameters,
        "classes": classes,
        "train_threat": None if train_threat is None else dict(train_threat),
        "epochs": epochs,
        "subset": subset or None,
        "seconds": {"train": 0.0, "bank": 0.0, "eval": 0.0} | dict(seconds or {}),
        "processes": processes,
        "clean": None if clean is None else dict(clean),
        "attacks": [dict(attack) for attack in attacks],
        "config": flat_config(config),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return validate_record(record | environment(device))


def write_record(path, record: Mapping) -> Path:
    """Check ``record`` and write it atomically.

    Args:
        path: a run folder, or the file ``record.json`` itself.

    Returns:
        the file's path.

    Raises:
        UserError: the record is invalid or the file cannot be written; the old one stays.
    """
    path = Path(path)
    path = path if path.name == FILE_NAME else path / FILE_NAME
    write_json(path, validate_record(dict(record), path))
    return path


class RecordError(UserError):
    """A record that cannot be used; ``kind`` is unreadable, foreign schema or invalid."""

    def __init__(self, text: str, kind: str):
        super().__init__(text)
        self.kind = kind


def read_record(path) -> dict:
    """Read and check one record file.

    Raises:
        RecordError: unreadable, of another schema, or with a wrong field.
    """
    try:
        record = read_json(path)
    except UserError as error:
        raise RecordError(str(error), "unreadable") from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise RecordError(
            f"'{path}' has record schema {_shorten(schema)}, this version reads schema {SCHEMA}; "
            "evaluate the model again with this version",
            "foreign schema",
        )
    try:
        return validate_record(record, path)
    except UserError as error:
        raise RecordError(str(error), "invalid") from error


def completed_record(folder) -> dict | None:
    """Return the record of a run folder if that run is completed, else None.

    A run that has no record, or whose record is still ``running``, is to be run or resumed.

    Raises:
        UserError: there is a record but it is damaged or of another schema.
    """
    path = Path(folder) / FILE_NAME
    if not path.exists():
        return None
    record = read_record(path)
    return record if record["status"] == "completed" else None


class Problem(NamedTuple):
    """A record that does not enter a table: ``kind`` is unreadable, foreign schema, invalid or
    unfinished; ``text`` is a sentence."""

    path: Path
    kind: str
    text: str


class Loaded(NamedTuple):
    """Completed records by path, and everything else that was found."""

    records: dict[Path, dict]
    problems: list[Problem]


def load_records(*roots) -> Loaded:
    """Find every ``record.json`` below ``roots``, sorted by path; links are followed once.

    A file that lies under two roots counts once. Nothing is left out silently: what is not a
    completed record of this schema is listed in ``problems``.

    Raises:
        UserError: a root does not exist.
    """
    records, problems, seen = {}, [], set()
    for root in map(Path, roots):
        if not root.exists():
            raise UserError(f"'{root}' does not exist; give the output folder of your runs")
        for path in sorted(_find(root, problems, seen)):
            try:
                record = read_record(path)
            except RecordError as error:
                problems.append(Problem(path, error.kind, str(error)))
                continue
            if record["status"] == "completed":
                records[path] = record
            else:
                text = f"'{path}' is unfinished (status 'running'); start that run again to resume"
                problems.append(Problem(path, "unfinished", text))
    return Loaded(records, problems)


def _find(root: Path, problems: list[Problem], seen: set[str]):
    """Yield the record files at or below ``root`` that ``seen`` does not hold yet."""

    def unreadable(error: OSError):
        text = f"cannot read folder '{error.filename}' ({error.strerror})"
        problems.append(Problem(Path(error.filename), "unreadable", text))

    def is_new(path) -> bool:
        real = os.path.realpath(path)
        return not (real in seen or seen.add(real))

    if root.is_file():
        if is_new(root):
            yield root
        return
    for folder, subfolders, files in os.walk(root, onerror=unreadable, followlinks=True):
        if not is_new(folder):
            subfolders.clear()
        elif FILE_NAME in files and is_new(os.path.join(folder, FILE_NAME)):
            yield Path(folder, FILE_NAME)
