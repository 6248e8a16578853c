"""What a run's yaml files and overrides ask for, and whether a record says the same.

Without building a configuration, so that ten thousand runs are looked at in seconds. Where this
look is unsure the run is started, and train.py judges: it skips what is done and refuses a folder
that holds something else.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from .. import records
from ..config import identity

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Settings:
    """The yaml ``files`` of a run in the order of merging, then its overrides KEY VALUE in turn."""

    files: tuple[str, ...]
    opts: tuple[str, ...]

    def asked(self) -> dict:
        """Return every setting they name, flat; what changes no figure is left out."""
        flat = dict(_merged(self.files))
        if _plain(flat.get("DATASET.TRANSFORMS")):  # stands in the trainer's place
            flat["INPUT.TRANSFORMS"] = flat["DATASET.TRANSFORMS"]
        flat |= zip(self.opts[::2], self.opts[1::2], strict=True)  # the last word, as in train.py
        return {key: value for key, value in flat.items() if not identity.is_neutral(key)}

    def agree(self, config: Mapping) -> bool:
        """Tell whether a record's flat configuration has the value of every setting asked for."""
        for key, value in self.asked().items():
            theirs = config.get(key, _ABSENT)
            if theirs != value and _plain(theirs) != _plain(value):
                return False
        return True

    def embeddings(self) -> bool:
        """Tell whether a test attack makes features that runs share through the cache."""
        asked = self.asked()
        if asked.get("DEFENCE.NAME") or _plain(asked.get("TEST.SAVE_ADV")) is True:
            return False
        node = asked.get("ATTACK.TEST.TARGET", "end_to_end")
        each = _plain(asked.get("ATTACK.TEST.LIST")) or [{}]
        each = [attack for attack in each if isinstance(attack, dict)]
        return any(attack.get("TARGET", node) == "embedding" for attack in each)

    def training(self) -> tuple:
        """Return what is asked of the training attack and the bank, hashable."""
        heads = ("ATTACK.TRAIN.", "TRAINER.ADVPT.VIEWS")
        asked = self.asked().items()
        return tuple(sorted((k, str(_plain(v))) for k, v in asked if k.startswith(heads)))


def completed(folder: str) -> dict | None:
    """Return the record of a run folder where it is a completed one, hardly checked, else None."""
    try:
        with open(f"{folder}/{records.FILE_NAME}", "rb") as file:
            record = json.loads(file.read())
        usable = record["schema"] == records.SCHEMA and record["status"] == "completed"
        return record if usable and isinstance(record["config"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@cache
def _merged(files: tuple[str, ...]) -> dict:
    flat: dict = {}
    for file in files:
        flat |= _read(file)
    return flat


@cache
def _read(file: str) -> dict:
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # train.py says what is wrong with it
    return records.flat_config(content) if isinstance(content, dict) else {}


def _plain(value):
    """Return a setting so that the ways to write it compare equal: ``(2, 2)``, ``4``, ``"4"``."""
    if isinstance(value, str):
        return _parsed(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


@cache
def _literal(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _parsed(text: str):
    value = _literal(text)
    return value if isinstance(value, str) else _plain(value)
