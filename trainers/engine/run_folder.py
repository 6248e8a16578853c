"""A run folder holds one training and its tests.

    RUN/config.json             what was trained
    RUN/prompt_learner/         its checkpoints
    RUN/record.json             the test at its end
    RUN/tests/NAME/record.json  every other test of the same model
    RUN/.lock                   held by the process that works here

Nothing here builds a model or an image: a dry run asks :func:`look` as well.
"""

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from ..attacks import specs_from_cfg
from ..config import identity
from ..config.host import PREFIX
from ..config.keys import defaults, formerly, method_called, registered_name
from ..config.merging import merge
from ..records import FILE_NAME, completed_record, flat_config
from ..utils.errors import UserError
from ..utils.io import json_digest, read_json, sha256_file, sweep, writable_dir, write_json
from . import checkpoints
from .checkpoints import LEARNER, chosen_checkpoint, learner_of

CONFIG_FILE = "config.json"
TESTS = "tests"
UNFINISHED = "unfinished"  # next to a record: what attacks have found so far
FORMER_TESTS = "robustness"  # where older versions kept tests under other threat models
TESTED = ("eval_only", "model_dir", "load_epoch")  # what config.json of a test adds
LONGEST = 80  # characters of a test's name
OTHER = "choose another output folder or move the old run away"
_claimed: set[Path] = set()  # the CONFIG_FILEs that this process has written


class Task(NamedTuple):
    """What is left to do."""

    state: str  # done, test (the model is there) or train
    run: str  # the folder to work in; it is locked meanwhile
    record: str  # the folder that holds, or will hold, the record of the test

    @property
    def inside(self) -> bool:
        """Whether the test is one more of a run that has a record already."""
        return self.run != self.record


def training_of(cfg) -> dict:
    """Return, flat, the settings that a training uses and a digest of the file it starts from."""
    method, settings = method_called(cfg.TRAINER.NAME), _named(flat_config(cfg))
    if method is None:
        return identity.training(settings)
    attacked = method.is_adversarial(cfg)
    mine = identity.used(settings, method.nodes(), trained=method.trainable, attacked=attacked)
    if start := mine.get("MODEL.INIT_WEIGHTS"):
        mine["init_sha256"] = sha256_file(checkpoints.weights_file(start))
    return mine


def test_of(settings: dict, load_epoch: int | None = None) -> dict:
    """Return what identifies a test of one model, from flat settings of any version."""
    return identity.of_test(_named(defaults() | settings)) | {"load_epoch": load_epoch}


def _named(settings: dict) -> dict:  # our trainer's own name; in a fork it may have a prefix
    return settings | {"TRAINER.NAME": settings.get("TRAINER.NAME", "").removeprefix(PREFIX)}


def _same(mine: dict, theirs: dict) -> bool:
    return all(mine[key] == theirs[key] for key in mine.keys() & theirs.keys())


def check(folder: Path, mine: dict, advice: str = OTHER) -> None:
    """Refuse a folder that holds another run; a key that came later counts as it was then."""
    if not (folder / CONFIG_FILE).is_file():
        return
    stored = _config(folder)
    theirs = _named(formerly(stored.get("TRAINER.NAME", "")) | stored)
    keys = (mine.keys() & theirs.keys()) | (mine.keys() | stored.keys()) & set(TESTED)
    for key in sorted(keys):
        if mine.get(key) != theirs.get(key):
            raise UserError(
                f"'{folder}' holds a run with {key} = {theirs.get(key)!r}, this one has "
                f"{mine.get(key)!r}; {advice}"
            )


def _config(folder: Path) -> dict:
    """Return what config.json of a folder holds, nothing where there is none."""
    path = folder / CONFIG_FILE
    stored = read_json(path) if path.is_file() else {}
    name, epoch = stored.get("TRAINER.NAME", ""), stored.get("load_epoch")
    if not isinstance(name, str) or not isinstance(epoch, (int, type(None))):
        raise UserError(
            f"'{path}' has {name!r:.80} as TRAINER.NAME and {epoch!r:.80} as load_epoch, expected "
            "a name and a number; use the folder of another run"
        )
    return stored


def tests_in(run) -> Iterator[tuple[Path, dict, dict]]:
    """Yield the folder, the identity and the record of every completed test of a run."""
    run = Path(run)
    for folder in (run, *sorted(run.glob(f"{TESTS}/*")), *sorted(run.glob(f"{FORMER_TESTS}/*"))):
        if record := completed_record(folder):
            tested = folder != run and (folder / CONFIG_FILE).is_file()
            epoch = _config(folder).get("load_epoch") if tested else None
            yield folder, test_of(record["config"], epoch), record


def check_model(folder: Path, record: dict, run: Path, epoch: int | None = None) -> None:
    """Refuse a record of another model than the run's checkpoint holds now.

    Older records do not say what they measured, and a run may have lost its checkpoint.
    """
    path = chosen_checkpoint(learner_of(run), epoch)
    if not record.get("prompts_sha256") or path is None or not path.is_file():
        return
    weights = checkpoints.load_checkpoint(path)["state_dict"]
    if checkpoints.model_digest(weights) != record["prompts_sha256"]:
        raise UserError(
            f"'{folder}' holds the record of another model than '{path}' is now; put the "
            "checkpoint back, or move the record away to test this one"
        )


def is_trained(run, cfg) -> bool:
    """Return True if the last epoch's checkpoint is there, or there is nothing to train."""
    method = method_called(cfg.TRAINER.NAME)
    if method and not method.trainable:
        return True
    newest = checkpoints.newest_checkpoint(Path(run) / LEARNER)
    return newest is not None and checkpoints.epoch_of(newest) >= cfg.OPTIM.MAX_EPOCH


def place_of(cfg, *, eval_only=False, model_dir="", **_) -> Path:
    """Return the folder to work in: that of the run, or where a test alone is to be kept.

    UserError if a test names neither a model nor an output folder, or the model is not there.
    """
    if not eval_only or cfg.OUTPUT_DIR:
        return Path(cfg.OUTPUT_DIR)
    if not model_dir:
        raise UserError(
            "--eval-only tests the model of a run, but neither --model-dir, the folder of that "
            "run, nor --output-dir was given"
        )
    if not Path(model_dir).is_dir():
        raise UserError(f"'{model_dir}' does not exist; give --model-dir the folder of a run")
    return Path(model_dir)


def look(cfg, *, eval_only=False, model_dir="", load_epoch=None, test_name="") -> Task:
    """Return what is left of the run or test that these arguments of ``run.start`` describe.

    UserError if the folder holds another run, or the model of a finished run is gone.
    """
    place, settings = place_of(cfg, eval_only=eval_only, model_dir=model_dir), flat_config(cfg)
    mine = test_of(settings, load_epoch)
    if eval_only and not (model_dir and os.path.realpath(place) == os.path.realpath(model_dir)):
        facts = test_facts(eval_only, model_dir, load_epoch)
        check(place, mine | facts)
        if record := completed_record(place):
            check_model(place, record, Path(model_dir), load_epoch)
        return Task("done" if record else "test", str(place), str(place))
    wanted = {"TRAINER.NAME": mine["TRAINER.NAME"]} if eval_only else training_of(cfg)
    check(place, wanted)
    made = list(tests_in(place))
    for folder, theirs, record in made:
        if _same(mine, theirs):
            check_model(folder, record, place, load_epoch)
            return Task("done", str(place), str(folder))
    if not eval_only and not is_trained(place, cfg):
        if made:
            raise UserError(
                f"'{place}' is finished, but its model '{place / LEARNER}' is gone, so that it "
                "cannot be tested again; put it back or choose another output folder"
            )
        return Task("train", str(place), str(place))
    if not eval_only and not completed_record(place):
        return Task("test", str(place), str(place))
    return Task("test", str(place), str(_test_folder(cfg, place, mine, test_name)))


def _test_folder(cfg, run: Path, mine: dict, name: str) -> Path:
    """Return the folder of a test in a run; one of another test keeps its name."""
    folder = run / TESTS / (name or _name_of(cfg, run, mine))
    there = _config(folder)
    if not there or _same(mine, test_of(there, there.get("load_epoch"))):
        return folder
    digest = json_digest(mine)[:8]
    return folder.with_name(f"{folder.name}-{digest}")


def _name_of(cfg, run: Path, mine: dict) -> str:
    """Return a name that says in what a test differs from the one at the end of the training."""
    record = completed_record(run)
    stored = _config(run)
    first = test_of((record["config"] if record else {}) | stored)
    other = {k: v for k, v in mine.items() if k in first and v != first[k]}
    parts = [str(other.pop(k)) for k in ("DATASET.NAME", "DATASET.SUBSAMPLE_CLASSES") if k in other]
    if any(key.startswith("ATTACK.TEST.") for key in other):
        specs = [spec.describe() for spec in specs_from_cfg(cfg.ATTACK.TEST, key="ATTACK.TEST")]
        parts += [f"{s['name']}{s['steps']}-{s['norm']}-{s['eps']}" for s in specs]
        other = {k: v for k, v in other.items() if not k.startswith("ATTACK.TEST.")}
    parts += [f"{key.rpartition('.')[2]}-{value}" for key, value in sorted(other.items())]
    return re.sub(r"[^\w.-]", ".", "_".join(parts))[:LONGEST] or "test"


def test_facts(eval_only: bool, model_dir: str, load_epoch: int | None) -> dict:
    """Return what config.json of a test adds to its settings; nothing for a training."""
    if not eval_only:
        return {}
    where = os.path.abspath(model_dir) if model_dir else ""
    return {"eval_only": True, "model_dir": where, "load_epoch": load_epoch}


def claim(cfg, task: Task, *, eval_only=False, model_dir="", load_epoch=None, **_) -> None:
    """Note in the folder what it is for: other runs are refused from now on."""
    if not eval_only and not (Path(task.run) / CONFIG_FILE).is_file():
        _note(Path(task.run), training_of(cfg))
    if eval_only or task.inside:
        settings = {k: v for k, v in flat_config(cfg).items() if not identity.is_neutral(k)}
        facts = test_facts(True, model_dir, load_epoch)
        if task.inside:  # a run may be moved
            facts["model_dir"] = os.path.relpath(task.run, task.record)
        _note(Path(task.record), _named(settings) | facts)


def clear(folder) -> None:
    """Remove what a test that was killed right after writing its record has left."""
    shutil.rmtree(Path(folder, UNFINISHED), ignore_errors=True)
    sweep(Path(folder))


def _note(folder: Path, settings: dict) -> None:
    _claimed.add(folder / CONFIG_FILE)
    write_json(folder / CONFIG_FILE, settings)


def _release() -> None:
    """Give up folders that this process has claimed and made nothing in."""
    for path in _claimed:
        kept = (path.parent.glob(name) for name in (FILE_NAME, UNFINISHED, "**/*.pth.tar*"))
        if not any(any(found) for found in kept):
            with contextlib.suppress(OSError):
                path.unlink()
    _claimed.clear()


@contextlib.contextmanager
def locked(folder) -> Iterator[None]:
    """Hold the lock of a run folder; wait for another process that holds it, and say which.

    A mistake of the user gives up the folder, unless there is something to resume. The lock may be
    taken several times in one process.
    """
    path = writable_dir(folder) / ".lock"
    lock = FileLock(path, is_singleton=True)
    holder = _holder(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"'{folder}' is in use by process {holder or 'of another machine'}; waiting for it")
        lock.acquire()
    try:
        _sign(path, f"{os.getpid()}@{socket.gethostname()}")
        yield
    except UserError:
        _release()
        raise
    finally:
        if lock.lock_counter == 1:
            _sign(path, "")
        lock.release()


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8").strip()
    return ""


def _sign(path: Path, name: str) -> None:
    """Write who holds a lock, unless the file system needs the file's content for the lock."""
    if re.fullmatch(r"(\d+@\S+)?", _holder(path)):
        with contextlib.suppress(OSError):
            path.write_text(name, encoding="utf-8")


def stored(folder) -> tuple[dict, dict]:
    """Return the settings of the run or test in ``folder`` and, of a test, of which model.

    The settings of a run are those of its training and, where there is one, of its record.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"'{folder}' holds no run (there is no {CONFIG_FILE}); give the folder that "
            "--output-dir named, such as output/shapes/NAPTuning/tiny_tiny_shapes_16shots/seed1"
        )
    settings = _config(folder)
    tested = {k: settings.pop(k) for k in TESTED if k in settings}
    if tested.get("model_dir"):
        tested["model_dir"] = os.path.normpath(folder / tested["model_dir"])
    record = completed_record(folder) or {"config": {}}
    known = {k: v for k, v in record["config"].items() if not identity.is_neutral(k)}
    return known | settings, tested


def restore(cfg, settings: dict, where) -> None:
    """Merge the settings of a stored run; keys that only another version knows are left out."""
    known, method = set(flat_config(cfg)), method_called(settings.get("TRAINER.NAME", ""))
    for key, value in ((method.formerly if method else {}) | settings).items():
        if key in known:
            merge(cfg, key, value, f"in '{where}'")
    cfg.TRAINER.NAME = registered_name(cfg.TRAINER.NAME)
