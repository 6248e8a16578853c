"""What is done of some jobs, what is missing for the rest, and the list of both: a dry run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from tabulate import tabulate

from ..backbone import loading
from ..config import host, keys, merging
from ..utils.errors import UserError
from .jobs import Job
from .settings import differing, recorded, stored

STATES = {
    "run": "to run",
    "test": "to test (trained before)",
    "resume": "to resume",
    "running": "running",
    "refuse": "refused",
    "done": "done",
}


def state_of(job: Job) -> tuple[str, str]:
    """Return a job's state in its run folder, one of ``STATES``, and why it would be refused."""
    record, trained = recorded(job.settings, job.run)
    if record:
        return "done", ""
    theirs = stored(job.run)
    if theirs is None:
        return "run", ""
    mine = job.settings.training()
    if not job.needs and (key := differing(mine, theirs)):
        return "refuse", (
            f"'{job.run}' holds a run with {key} = {theirs.get(key)!r}, this one has "
            f"{mine[key]!r}; choose another output folder or move the old run away"
        )
    begun = os.path.exists(f"{job.run}/tests/{job.test}/unfinished")
    return ("test" if trained and not begun else "resume"), ""


def listing(jobs: Sequence[Job], output: str, held=lambda run: False) -> tuple[str, bool]:
    """Return the table of jobs with their states, what stands in their way, and if any is refused.

    Args:
        held: True for a run folder that another process works on.
    """
    rows, notes, counts, todo = [], {}, Counter(), []
    for job in jobs:
        state, why = state_of(job)
        if state not in ("done", "refuse") and held(job.run):
            state = "running"
        counts[state] += 1
        if state != "done":
            todo.append(job)
        if why:
            notes[why] = True
        place = os.path.relpath(job.run, output)
        rows.append((state, job.name, place + (f" ({job.test})" if job.needs else "")))
    table = tabulate(rows, ["", "run", f"folder in {output}"], disable_numparse=True)
    said = ", ".join(f"{counts[state]} {word}" for state, word in STATES.items() if counts[state])
    lines = [table, "", f"{len(jobs)} run{'s' * (len(jobs) != 1)}: {said}."]
    lines += [f"note: {why}" for why in (*notes, *missing(todo))]
    return "\n".join(lines), bool(counts["refuse"])


def missing(jobs: Iterable[Job]) -> list[str]:
    """Return a sentence for each data set and each backbone that is not there."""
    data, names = {}, {}
    for job in jobs:
        data.setdefault(job.dataset, job)
        names.setdefault(job.settings.asked().get("MODEL.BACKBONE.NAME", ""), job)
    found = []
    for name in sorted(data):
        try:
            check_data(data[name])
        except UserError as error:
            found.append(str(error))
    for name in sorted(names):
        path = Path(name.removeprefix("file:").partition("?")[0]).expanduser()
        if name in loading.OPENAI:
            path = Path(loading.CACHE).expanduser() / loading.OPENAI[name][0]
        elif not name.startswith("file:"):
            continue
        if not path.exists():
            more = "; the first run fetches them" if name in loading.OPENAI else ""
            found.append(f"the weights of {name} are not at '{path}'{more}")
    return found


def check_data(job: Job) -> None:
    """Look whether a job's data set is there, without reading it.

    Raises:
        UserError: its folder does not exist.
    """
    host.join()
    cfg = get_cfg_default()
    host.extend_cfg(cfg)
    keys.extend_cfg(cfg)
    merging.merge_file(cfg, job.settings.files[0])
    merging.merge_opts(cfg, list(job.settings.opts))
    cfg.DATASET.ROOT = job.words[job.words.index("--root") + 1]
    made = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if hasattr(made, "counts") or not hasattr(made, "locate"):  # drawn, or a fork's own
        return
    data = object.__new__(made)  # without its images, which __init__ reads
    data.name, data.root = made.__name__, Path(cfg.DATASET.ROOT).expanduser().absolute()
    data.locate(cfg)
