"""The fields of a record, and the check of all of them.

Schema 1 is the set of fields in ``_FIELDS``; a change of a field's meaning raises :data:`SCHEMA`.
"""

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import NamedTuple

from ..utils.errors import UserError, nearest
from ..utils.flat import is_json
from .threats import ADAPTIVE, OBJECTIVES, TARGETS

SCHEMA = 1
_BALL_SLACK = 1e-5  # float32 rounding of x + delta, and eps written to four decimals of 1/255


class _Rule(NamedTuple):
    expected: str
    accepts: Callable[[object], bool]


def _number(low: float = 0, high: float = math.inf, *, whole: bool = False) -> _Rule:
    kind = "an integer" if whole else "a number"
    limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"

    def accepts(value):
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            return False
        return math.isfinite(value) and low <= value <= high

    return _Rule(f"{kind} {limits}", accepts)


def _one_of(*choices) -> _Rule:
    def accepts(value):  # True == 1, but a flag is not a schema
        return any(value == c and type(value) is type(c) for c in choices)

    return _Rule("one of " + ", ".join(map(repr, choices)), accepts)


def _optional(rule: _Rule) -> _Rule:
    return _Rule(f"{rule.expected} or null", lambda v: v is None or rule.accepts(v))


def _is_eps(value) -> bool:  # radii in L2 may exceed 1
    pattern = r"(\d*\.?\d+|\d+\.)(e[+-]?\d+)?/255"
    number = re.fullmatch(pattern, value) if isinstance(value, str) else None
    return number is not None and _eps(value) <= 100


def _eps(text: str) -> float:
    return float(text.removesuffix("/255")) / 255


def _is_date(value) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _texts(values) -> bool:
    return all(isinstance(value, str) for value in values)


_COUNT, _POSITIVE, _FROM_MINUS_1 = (_number(low, whole=True) for low in (0, 1, -1))
_TEXT = _Rule("a non-empty string", lambda v: isinstance(v, str) and v.strip() != "")
_FLAG = _Rule("true or false", lambda v: isinstance(v, bool))
_EPS = _Rule("a string such as '4/255'", _is_eps)
_OBJECT = _Rule("an object", lambda v: isinstance(v, dict) and is_json(v))

_SECONDS = {"train": _number(), "bank": _number(), "eval": _number()}
_SCORE = {"n": _POSITIVE, "correct": _COUNT}
_THREAT = {
    "name": _TEXT,
    "objective": _optional(_one_of(*OBJECTIVES)),
    "target": _one_of(*TARGETS),
    "eps": _optional(_EPS),  # null: no ball
    "alpha": _optional(_EPS),
    "steps": _COUNT,
    "restarts": _POSITIVE,
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
_OUTCOME = _SCORE | {
    "seconds": _number(),
    "checks": _OBJECT,
    "warnings": _Rule("a list of strings", lambda v: isinstance(v, list) and _texts(v)),
}
_SHA256 = _Rule(
    "64 lower-case hex digits",
    lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) is not None,
)
_FIELDS = {
    "schema": _one_of(SCHEMA),
    "status": _one_of("completed", "running"),
    "trainer": _TEXT,
    "paper": _optional(_TEXT),
    "dataset": _TEXT,
    "protocol": _one_of("few_shot", "base2new", "xd", "dg", "zero_shot"),
    "split": _one_of("all", "base", "new"),
    "shots": _optional(_FROM_MINUS_1),  # 0 is zero-shot, -1 all; null: unknown training
    "seed": _FROM_MINUS_1,  # of the training; -1: not fixed, or unknown
    "backbone": _TEXT,
    "weights_sha256": _optional(_SHA256),  # null: unknown, of a model that is not ours
    "prompt_parameters": _COUNT,
    "classes": _POSITIVE,
    "train_threat": _optional(_OBJECT),
    "epochs": _optional(_COUNT),
    "subset": _optional(_POSITIVE),
    "seconds": _OBJECT,
    "device": _TEXT,
    "clean": _optional(_OBJECT),
    "attacks": _Rule("a list of objects", lambda v: isinstance(v, list)),
    "config": _OBJECT,
    "versions": _Rule("an object of strings", lambda v: isinstance(v, dict) and _texts(v.values())),
    "git_commit": _optional(_TEXT),
    "created": _Rule("an ISO date and time with its zone", _is_date),
}
# fields that older records of this schema do not have
_LATER = {
    "source": _optional(_TEXT),
    "processes": _optional(_POSITIVE),
    "prompts_sha256": _optional(_SHA256),  # of everything that was trained, as it was tested
    "data_sha256": _optional(_SHA256),  # class names, and name, label and content of tested images
    "set_sha256": _optional(_SHA256),  # class names and lists of images of the whole data set
    "trained": _optional(_OBJECT),  # what data it was trained on; null: nothing, or unknown
}
_TRAINED = {
    "name": _optional(_TEXT),
    "split": _optional(_one_of("all", "base", "new")),
    "classes": _optional(_POSITIVE),
    "data_sha256": _optional(_SHA256),  # class names, and name and label of the images drawn
    "set_sha256": _optional(_SHA256),
    "short_classes": _optional(_POSITIVE),  # with fewer images than shots; null: none
}
OBJECTS = {  # of a record, for docs/reference/record.md; fields.yaml says what the fields mean
    "record": _FIELDS | _LATER,
    "seconds": _SECONDS,
    "train_threat": _THREAT,
    "clean": _SCORE,
    "attacks": _THREAT | _OUTCOME,
    "checks": _CHECKS,
    "trained": _TRAINED,
}
AGAIN = "delete the file and evaluate the model again"
_OF_TRAINING = ("epochs", "train_threat", "source", "trained")


def _fail(where, field: str, value, expected: str, found: str = "", advice: str = AGAIN):
    found = found or f"is {value!r:.80}"
    raise UserError(f"'{where}': field '{field}' {found}, expected {expected}; {advice}")


def _check(values, rules: Mapping[str, _Rule], prefix: str, where, advice: str = AGAIN) -> None:
    if not isinstance(values, dict):
        _fail(where, prefix.rstrip(".") or "record", values, "an object", advice=advice)
    for key, rule in rules.items():
        if key not in values:
            _fail(where, prefix + key, None, rule.expected, "is missing", advice)
        if not rule.accepts(values[key]):
            _fail(where, prefix + key, values[key], rule.expected, advice=advice)


def check_training(training: dict, where, advice: str) -> None:
    """Raise a UserError for facts of a training that a record would refuse; some may be missing."""
    rules = {key: _FIELDS[key] for key in ("shots", "epochs", "seed", "train_threat")}
    rules = {key: rule for key, rule in rules.items() if key in training}
    _check(training, rules, "training.", where, advice)
    if training.get("train_threat") is not None:
        _check(training["train_threat"], _THREAT, "training.train_threat.", where, advice)
    if training.get("data") is not None:
        known = {key: rule for key, rule in _TRAINED.items() if key in training["data"]}
        _check(training["data"], known, "training.data.", where, advice)


def validate_record(record, where="record") -> dict:
    """Return ``record`` after checking type and range of every field.

    A ``running`` record may lack the clean figure; a ``completed`` one may not. Attack fields
    beyond the known ones (a momentum, a kernel) are allowed and belong to the threat model.
    A UserError names ``where`` (the file), the field, its value and what is expected.
    """

    def fail(field, value, expected, found=""):
        _fail(where, field, value, expected, found)

    def check(values, rules: Mapping[str, _Rule], prefix: str) -> None:
        _check(values, rules, prefix, where)

    check(record, _FIELDS, "")
    known = _FIELDS | _LATER
    for key in record:
        if key not in known:
            raise UserError(f"'{where}': unknown field '{key}'.{nearest(key, known)}")
    check({**dict.fromkeys(_LATER), **record}, _LATER, "")
    check(record["seconds"], _SECONDS, "seconds.")
    if record["train_threat"] is not None:
        check(record["train_threat"], _THREAT, "train_threat.")
    if record.get("trained") is not None:
        check({"short_classes": None, **record["trained"]}, _TRAINED, "trained.")
    if record["shots"] is not None and record["epochs"] is None:
        fail("epochs", None, "an integer of at least 0 where shots are known")
    for key in _OF_TRAINING if record["shots"] is None else ():
        if record.get(key) is not None:
            fail(key, record[key], "null where shots are null: the training is unknown")
    if record["protocol"] == "zero_shot" and record["shots"] != 0:
        fail("shots", record["shots"], "0 under protocol 'zero_shot'")

    clean = record["clean"]
    if clean is not None:
        check(clean, _SCORE, "clean.")
        if clean["correct"] > clean["n"]:
            fail("clean.correct", clean["correct"], f"at most clean.n = {clean['n']}")
    elif record["status"] == "completed" or record["attacks"]:
        fail("clean", None, "an object with n and correct before any attack and at completion")

    signatures: dict[tuple, int] = {}
    for i, attack in enumerate(record["attacks"]):
        prefix = f"attacks[{i}]."
        check(attack, _THREAT | _OUTCOME, prefix)
        if not is_json(attack):
            fail(prefix[:-1], attack, "JSON values only")
        check(attack["checks"], _CHECKS, prefix + "checks.")
        largest = attack["checks"]["max_linf"]
        if attack["norm"] == "linf" and not (attack["eps"] and _eps(attack["eps"]) <= 1):
            fail(prefix + "eps", attack["eps"], "a radius up to 255/255 in L_inf")
        if attack["norm"] == "linf" and largest > _eps(attack["eps"]) + _BALL_SLACK:
            fail(prefix + "checks.max_linf", largest, f"at most eps = {attack['eps']}")
        if attack["n"] != clean["n"]:
            fail(prefix + "n", attack["n"], f"the same images as clean.n = {clean['n']}")
        if attack["correct"] > clean["correct"]:
            most = f"at most clean.correct = {clean['correct']} (one wrong clean is not robust)"
            fail(prefix + "correct", attack["correct"], most)
        first = signatures.setdefault(attack_signature(attack), i)
        if first != i:
            fail(prefix[:-1], attack["name"], f"a threat model other than that of attacks[{first}]")
    return record


def attack_signature(attack: Mapping) -> tuple[tuple[str, str], ...]:
    """Return what makes two attacks the same threat model, hashable and sorted.

    This is everything that describes the attack, including unknown fields, but not
    its outcome (n, correct, seconds, checks, warnings).
    """
    return tuple(sorted((k, str(v)) for k, v in attack.items() if k not in _OUTCOME))


def starts_from(attack: Mapping, before: Mapping) -> bool:
    """Return True if an attack takes only the samples that an earlier one of its run has left.

    AutoAttack and its parts do, after attacks of the same kind in no larger ball.
    """
    same = all(attack.get(key) == before.get(key) for key in ("target", "norm", "defence"))
    balls = attack["eps"] and before["eps"] and _eps(before["eps"]) <= _eps(attack["eps"])
    return bool(attack["name"] in ADAPTIVE and same and balls)


def in_words(attack: Mapping) -> str:
    """Describe an attack, for the entries of attacks that start from the samples it left."""
    known = [key for key in _THREAT if key not in ("name", "target", "norm")] + ["kwargs", "prec"]
    facts = [f"{k} {attack[k]}" for k in known if attack.get(k) not in (None, False)]
    return ", ".join([attack["name"], *facts])


def with_order(record: dict) -> dict:
    """Return a record of an older version with ``after``, which follows from its list."""
    attacks: list[dict] = []
    for attack in record["attacks"]:
        names = [in_words(before) for before in attacks if starts_from(attack, before)]
        attacks.append(({"after": "; ".join(sorted(names))} if names else {}) | attack)
    return record | {"attacks": attacks}


def test_images(subset: int | None, first: int | None) -> str:
    """Describe the test images by ``TEST.SUBSET`` and ``TEST.FIRST`` (0 or None: all of them)."""
    if first:
        return f"the first by file name, TEST.FIRST {first}"
    if subset:
        return f"a fixed stratified subset, TEST.SUBSET {subset}"
    return "all of the test set"


def data_name(dataset: str, settings: Mapping) -> str:
    """Return a data set's own name: of data set ``folder``, that of the folder."""
    return settings.get("DATASET.FOLDER_NAME") or dataset if dataset == "Folder" else dataset


def accuracy(score: Mapping) -> float:
    """Return the accuracy in percent of an object with ``n`` and ``correct``."""
    return 100 * score["correct"] / score["n"]
