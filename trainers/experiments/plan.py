"""What runs would do, and how many images they would put through the image tower: a dry run.

    python train.py --dry-run ARGUMENTS OF A RUN
    bash scripts/all.sh shapes 16 tiny --dry-run

Reads configurations, records and split files, but loads no backbone and no image and writes
nothing. docs/protocols.md has the formula.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from .. import attacks, records
from ..attacks import cost
from ..config import identity
from ..config.keys import method_called
from ..engine import checkpoints as state
from ..engine import run_folder
from ..utils import errors
from .sizes import Sizes, sizes_of

STATES = ("run", "resume", "skip", "refuse")
MEANINGS = {
    "run": "to run",
    "resume": "to resume",
    "skip": "to skip (completed, or planned above)",
    "refuse": "refused",
}


@dataclass
class Job:
    """One run of train.py.

    Attributes:
        folder: of the run.
        state: one of :data:`STATES`.
        forwards: images through the image tower in ``train``, ``bank`` and ``test``, at most;
            None where the data set's size is not known.
        problem: what stands in its way, as a sentence.
    """

    folder: str
    state: str
    forwards: dict[str, int] | None = field(default_factory=dict)
    problem: str = ""

    @property
    def pending(self) -> bool:
        """Whether its work is still to be done."""
        return self.state in ("run", "resume")


class Plan:
    """Jobs in the order in which they would run; what one leaves for the next is counted once."""

    def __init__(self):
        self.jobs: list[Job] = []
        self.planned: dict[str, dict] = {}  # folder -> what makes the run that takes it
        self.shared: set[tuple] = set()  # features that runs share through the cache

    def add(self, cfg, *, eval_only=False, model_dir="", load_epoch=None) -> None:
        """Add the run that ``run.start`` would do with these arguments.

        Raises:
            UserError: the folder holds another run, or will hold one by then.
        """
        folder, config = os.path.abspath(cfg.OUTPUT_DIR), records.flat_config(cfg)
        tested = run_folder.test_facts(eval_only, model_dir, load_epoch)
        mine = {k: v for k, v in config.items() if not identity.is_neutral(k)} | tested
        done = run_folder.look(cfg, **tested).state == "done" or self._planned(folder, mine)
        trainer = method_called(cfg.TRAINER.NAME)
        sizes, missing = sizes_of(cfg)
        forwards = None
        if trainer and sizes:
            forwards = self.test(cfg, trainer, sizes)
            if not eval_only:
                forwards |= self.training(cfg, trainer, sizes)
        if done:
            job = Job(folder, "skip")
        else:
            epochs = epochs_done(folder)
            begun = epochs or any(
                os.path.exists(os.path.join(folder, name))
                for name in (run_folder.CONFIG_FILE, "unfinished")
            )
            if forwards and epochs:
                left = max(1 - epochs / cfg.OPTIM.MAX_EPOCH, 0)
                forwards |= {"train": round(forwards.get("train", 0) * left)}
            job = Job(folder, "resume" if begun else "run", forwards, missing)
        self.jobs.append(job)

    def refuse(self, folder: str, error: Exception) -> None:
        """Add a run that cannot be done, and why."""
        self.jobs.append(Job(os.path.abspath(folder), "refuse", problem=str(error)))

    def _planned(self, folder: str, mine: dict) -> bool:
        """Tell whether an earlier job is this very run; else note that this one takes the folder.

        Raises:
            UserError: an earlier job takes the folder for another run.
        """
        theirs = self.planned.setdefault(folder, mine)
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key):
                raise errors.UserError(
                    f"'{folder}' will hold a run with {key} = {theirs.get(key)!r} by then, this "
                    f"one has {mine.get(key)!r}; choose another output folder"
                )
        return theirs is not mine

    def training(self, cfg, trainer, sizes: Sizes) -> dict[str, int]:
        """Return the forwards of the training, without a bank that an earlier job has made."""
        forwards = trainer.image_forwards(cfg, sizes.train) if trainer.trainable else {}
        node = cfg.TRAINER.ADVPT
        bank = ("bank", cfg.SEED, cfg.DATASET.NUM_SHOTS, node.VIEWS, repr(cfg.ATTACK.TRAIN))
        if "bank" in forwards and self._made(cfg, repr(bank)):
            forwards["bank"] = 0
        return forwards

    def test(self, cfg, trainer, sizes: Sizes) -> dict[str, int]:
        """Return the forwards of the test, without features that an earlier job has made."""
        alone = not cfg.DEFENCE.NAME and not cfg.TEST.SAVE_ADV
        frozen = trainer.frozen_image_tower and not cfg.DEFENCE.NAME
        total = 0 if frozen and self._made(cfg, "clean") else sizes.test
        views = {"none": 1, "bpda": 1}.get(cfg.DEFENCE.ADAPTIVE, 2) if cfg.DEFENCE.NAME else 1
        pictured = cfg.TEST.PICTURE
        for spec in attacks.specs_from_cfg(cfg.ATTACK.TEST, key="ATTACK.TEST"):
            if spec.target == "embedding" and alone and trainer.frozen_image_tower:
                made = self._made(cfg, repr(spec))
                total += 0 if made else sizes.test * cost.bank_forwards(spec)
                continue
            one = cost.test_forwards(spec, sizes.classes, draws=max(cfg.DEFENCE.EOT, 1))
            total += sizes.test * one * views
            if spec.target == "end_to_end":
                total += (cost.PROBE * min(cfg.TEST.PROBES, sizes.test)) * views
                total += (one + 2) * min(pictured, sizes.test)
                pictured = 0  # the first such attack is drawn
        return {"test": total}

    def _made(self, cfg, what: str) -> bool:
        """Tell whether an earlier job made these features of the test images; the next has."""
        data, size = cfg.DATASET, tuple(cfg.INPUT.SIZE)
        key = (data.NAME, data.SUBSAMPLE_CLASSES, cfg.TEST.SUBSET, cfg.TEST.get("FIRST", 0))
        key += (cfg.MODEL.BACKBONE.NAME, size, cfg.INPUT.INTERPOLATION, what)
        known = key in self.shared
        self.shared.add(key)
        return known


def epochs_done(folder) -> int:
    """Return the epoch of the newest checkpoint in a run folder, 0 where there is none."""
    found = [0]
    for pointer in Path(folder).glob("*/checkpoint"):
        newest = state.newest_checkpoint(pointer.parent)
        number = newest.name.rpartition("-")[2] if newest else ""
        found.append(int(number) if number.isdigit() else 0)
    return max(found)


def in_words(count: int) -> str:
    """Return a count as ``950``, ``3.2 k``, ``41 M`` or ``1.6 G``."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.{1 if count < 10 * size else 0}f} {letter}"
    return str(count)


def render(jobs: list[Job]) -> str:
    """Return the table of the jobs with its totals, and what stands in their way."""
    folders = [job.folder for job in jobs]
    base = os.path.commonpath([os.path.dirname(f) for f in folders]) if folders else ""
    rows = [[job.state, *_cells(job), os.path.relpath(job.folder, base)] for job in jobs]
    pending = [job for job in jobs if job.pending]
    sums: Mapping[str, int] = Counter()
    for job in pending:
        sums += Counter(job.forwards or {})
    parts = [sums.get(part, 0) for part in ("train", "bank", "test")]
    rows.append(["total", *map(in_words, parts), in_words(sum(parts)), ""])
    head = ["", "training", "bank", "test", "all", f"folder in {base}"]
    table = tabulate(rows, head, disable_numparse=True, colalign=("left", *["right"] * 4, "left"))
    counts = Counter(job.state for job in jobs)
    said = ", ".join(f"{counts[s]} {MEANINGS[s]}" for s in STATES if counts[s])
    lines = [table, "", f"{len(jobs)} run{'s' * (len(jobs) > 1)}: {said}."]
    lines.append(
        f"At most {in_words(sum(parts))} image-forwards: images through the image tower, a "
        "gradient step of an attack counting once. See docs/protocols.md."
    )
    if any(job.forwards is None for job in pending):
        lines.append("?: the size of this data set, or this trainer, is not known.")
    for problem in dict.fromkeys(job.problem for job in jobs if job.problem):
        lines.append(f"note: {problem}")
    return "\n".join(lines)


def _cells(job: Job) -> Iterable[str]:
    if not job.pending:
        return ["-"] * 4
    if job.forwards is None:
        return ["?"] * 4
    parts = [job.forwards.get(part, 0) for part in ("train", "bank", "test")]
    return [in_words(count) if count else "-" for count in (*parts, sum(parts))]


def read_jobs(path) -> list[list[str]]:
    """Read the arguments of many runs: each a count, then so many words, all ended by NUL.

    Raises:
        UserError: the file is missing or cut.
    """
    try:
        words = Path(path).read_text(encoding="utf-8").split("\0")[:-1]
    except (OSError, ValueError) as error:
        raise errors.UserError(
            f"job file '{path}' cannot be read ({error}); the scripts write it for --dry-run"
        ) from error
    found = []
    while words:
        count = int(words[0]) if words[0].isdigit() else len(words)
        if count >= len(words):
            raise errors.UserError(f"job file '{path}' is cut; start the dry run again")
        found.append(words[1 : count + 1])
        words = words[count + 1 :]
    return found
