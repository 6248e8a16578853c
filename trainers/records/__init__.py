"""The result record: one ``record.json`` per evaluated model is built, written, read and found.

Tables are rendered from these records only. Their fields are in schema.py.
"""

import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from ..utils.errors import UserError
from ..utils.flat import flat_config
from ..utils.io import read_json, write_json
from ..utils.machine import environment
from .schema import SCHEMA, validate_record, with_order
from .schema import accuracy as accuracy
from .schema import attack_signature as attack_signature
from .schema import data_name as data_name
from .schema import in_words as in_words
from .schema import starts_from as starts_from
from .schema import test_images as test_images

FILE_NAME = "record.json"


class RecordError(UserError):
    """A record that cannot be used; ``kind`` is unreadable, foreign schema or invalid."""

    def __init__(self, text: str, kind: str):
        super().__init__(text)
        self.kind = kind


class Problem(NamedTuple):
    """A record that does not enter a table: ``kind`` as above, or unfinished; ``text`` says why."""

    path: Path
    kind: str
    text: str


class Loaded(NamedTuple):
    """Completed records by path, and everything else that was found."""

    records: dict[Path, dict]
    problems: list[Problem]


def new_record(
    *, config, seconds: Mapping | None = None, subset: int | None = None, device="cpu", **fields
) -> dict:
    """Build and check a record of the current schema.

    Args:
        config: the yacs configuration, nested or already flat.
        seconds: wall time in s of ``train``, ``bank``, ``eval``; what is not given is 0.
        subset: ``TEST.SUBSET``, None (or 0) for the whole test set.
        device: the torch device the run used; the record states it in words.
        fields: the others of the schema. ``dataset`` is the tested one, ``source`` that of the
            training, if any and known; ``shots`` are images per class, 0 zero-shot, -1 all, None
            where it is unknown how the model was trained (``epochs`` is None then, too);
            ``train_threat`` is ``AttackSpec.describe()`` of the training attack; ``clean`` and
            ``attacks`` may be incomplete while ``status`` is ``running``.

    UserError: a field is missing or unknown, or has a wrong type or range.
    """
    record = {
        "schema": SCHEMA,
        "status": "running",
        "paper": None,
        "source": None,
        "split": "all",
        "train_threat": None,
        "epochs": 0,
        "processes": 1,
        "clean": None,
        "attacks": [],
        **fields,
        "subset": subset or None,
        "seconds": {"train": 0.0, "bank": 0.0, "eval": 0.0} | dict(seconds or {}),
        "config": flat_config(config),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return validate_record(record | environment(device))


def write_record(path, record: Mapping) -> Path:
    """Check ``record``, write it atomically to a run folder or to a file, and return its path.

    UserError if it is invalid or the file cannot be written; the old one stays.
    """
    path = Path(path) if Path(path).name == FILE_NAME else Path(path) / FILE_NAME
    write_json(path, validate_record(dict(record), path))
    return path


def read_record(path) -> dict:
    """Read one record file; RecordError: unreadable, of another schema, or with a wrong field."""
    try:
        record = read_json(path)
    except UserError as error:
        raise RecordError(str(error), "unreadable") from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise RecordError(
            f"'{path}' has record schema {schema!r:.80}, this version reads schema {SCHEMA}; "
            "evaluate the model again with this version",
            "foreign schema",
        )
    try:
        return with_order(validate_record(record, path))
    except UserError as error:
        raise RecordError(str(error), "invalid") from error


def completed_record(folder) -> dict | None:
    """Return the record of a run folder if that run is completed, else None.

    UserError if there is a record but it is damaged or of another schema.
    """
    path = Path(folder) / FILE_NAME
    if not path.exists():
        return None
    record = read_record(path)
    return record if record["status"] == "completed" else None


def load_records(*roots) -> Loaded:
    """Find every ``record.json`` in ``roots``, sorted by path; links are followed once.

    A file in two roots is used once. Nothing is left out silently: files that are not completed
    records of this schema are listed in ``problems``. UserError if a root does not exist.
    """
    found = Loaded({}, [])
    seen: set[str] = set()
    for root in map(Path, roots):
        if not root.exists():
            raise UserError(f"'{root}' does not exist; give the output folder of your runs")
        for path in sorted(_find(root, found.problems, seen)):
            try:
                record = read_record(path)
            except RecordError as error:
                found.problems.append(Problem(path, error.kind, str(error)))
                continue
            if record["status"] == "completed":
                found.records[path] = record
            else:
                text = f"'{path}' is unfinished (status 'running'); start that run again to resume"
                found.problems.append(Problem(path, "unfinished", text))
    return found


def _find(root: Path, problems: list[Problem], seen: set[str]):
    """Yield the record files at or in ``root`` that are not in ``seen`` yet."""

    def unreadable(error: OSError):
        text = f"cannot read folder '{error.filename}' ({error.strerror})"
        problems.append(Problem(Path(error.filename), "unreadable", text))

    def is_new(path) -> bool:
        before = len(seen)
        seen.add(os.path.realpath(path))
        return len(seen) > before

    if root.is_file() and is_new(root):
        yield root
    for folder, subfolders, files in os.walk(root, onerror=unreadable, followlinks=True):
        if not is_new(folder):
            subfolders.clear()
        elif FILE_NAME in files and is_new(os.path.join(folder, FILE_NAME)):
            yield Path(folder, FILE_NAME)
