"""Runs jobs one after another in this process, which imports everything once."""

import gc
import glob
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from ..utils.errors import Mistakes, UserError, plainly
from .commands import Step
from .jobs import Job, Key
from .settings import Settings

Command = Callable[[list[str]], int | None]  # main(argv) of a command
PACKAGE = __package__.rpartition(".")[0]


def refused(jobs: Iterable[Job], build: Callable[[list[str]], object]) -> dict[Key, UserError]:
    """Return why jobs are refused, by their keys; ``build`` makes a configuration of words."""
    kinds: dict[Settings, list[Job]] = {}
    for job in jobs:
        kinds.setdefault(replace(job.settings, seed=0, shots=0), []).append(job)
    found = {}
    for alike in kinds.values():
        try:
            build(alike[0].words)
        except UserError as error:
            found |= {job.key: error for job in alike}
    return found


def refuse(wrong: dict[Key, UserError]) -> None:
    """Raise one UserError for all that :func:`refused` has found, if anything."""
    Mistakes(text for error in wrong.values() for text in error.args).end()


def run(steps: Sequence[Step], train: Command, show: Command) -> list[str]:
    """Run all jobs, and show what each step shows.

    A job that fails ends its part (``Job.part``) and nothing else. Returns the outermost parts that
    did not finish; "" for a job that belongs to none.
    """
    ended: list[tuple[str, ...]] = []
    for step in steps:
        done = [job for job in step.jobs if _run(job, ended, train)]
        if () in ended:
            break
        for words in step.shows if done or not step.jobs else ():
            _show(words, show)
    return list(dict.fromkeys(part[0] if part else "" for part in ended))


def _run(job: Job, ended: list[tuple[str, ...]], train: Command) -> bool:
    if any(job.part[: len(part)] == part for part in ended):
        return False
    print(f"== {job.name} -> {job.run}" + (f" ({job.test})" if job.needs else ""), flush=True)
    code = _here(job.words, train)
    if code:
        ended.append(job.part)
    return not code


def _here(words: list[str], train: Command) -> int:
    stdout = sys.stdout
    try:
        with plainly():
            return train(words) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception:  # of one job, which must not end the others
        traceback.print_exc()
        return 1
    finally:
        if sys.stdout is not stdout:  # Dassl's logger replaces it
            logger, sys.stdout = sys.stdout, stdout
            if file := getattr(logger, "file", None):
                file.close()
        gc.collect()  # of the job's model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _show(words: list[str], command: Command) -> None:
    """Run a command over those folders that are there; not at all where none is."""
    name, *words = words
    count = next((i for i, word in enumerate(words) if os.sep not in word), len(words))
    found = [path for pattern in words[:count] for path in sorted(glob.glob(pattern))]
    if count and not found:
        return
    here = f"{os.getcwd()}/"
    found = [path.removeprefix(here) for path in found]
    try:
        command([name, *found, *words[count:]])
    except UserError as error:
        print(f"note: no {name}: {error}", file=sys.stderr)
