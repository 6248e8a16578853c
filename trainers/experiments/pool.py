"""Runs jobs as processes of this machine, some at a time, in the order in which they may start."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from . import worker as jobs_worker
from .jobs import Job
from .settings import completed
from .state import HOST, Place, last_lines, state_of

REFUSED = 2  # exit code of a mistake of the user, which a second try would repeat
PATIENCE = 10.0  # s that a stopped job has to end by itself
GLANCE = 2.0  # s between looks at jobs that other processes have
ENDED = ("done", "failed", "blocked")


class Handle(Protocol):
    """A started job."""

    def poll(self) -> int | None:
        """Return its exit code (negative: the signal that ended it), None while it lives."""

    def stop(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


class Launcher(Protocol):
    """Where jobs run; at most one at a time in each of the ``slots``."""

    slots: Sequence[str]

    def start(self, job: Job, command: list[str], log: Path, slot: str) -> Handle:
        """Start the command through :mod:`jobs_worker`."""


class Process:
    """A job on this machine, with the processes that it started."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: str | None):
        self.process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the sweep, which stops its jobs
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self, number: int = signal.SIGTERM) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)


class Local:
    """Processes of this machine: one per slot, which is a GPU or a share of the CPU's cores.

    Args:
        jobs: at a time.
        gpus: their indices; empty for the CPU. With more jobs than GPUs these share them.
        cwd: folder to run in.
    """

    def __init__(self, jobs: int, gpus: Sequence[str] = (), cwd: str | None = None):
        turns: Counter[str] = Counter()
        self.slots, self.cwd = [], cwd
        for i in range(jobs):
            device = f"gpu{gpus[i % len(gpus)]}" if gpus else "cpu"
            self.slots.append(f"{device}.{turns[device]}")
            turns[device] += 1
        self.threads = max(cores() // jobs, 1)

    def environment(self, slot: str) -> dict[str, str]:
        """Return the environment of a job: its GPU, its share of the cores, calm progress bars."""
        device = slot.partition(".")[0]
        env = {"TQDM_MININTERVAL": "5"} | os.environ  # lines of a log, not frames of a screen
        env["CUDA_VISIBLE_DEVICES"] = device.removeprefix("gpu") if device != "cpu" else ""
        return env | {"OMP_NUM_THREADS": str(self.threads)}

    def start(self, job: Job, command: list[str], log: Path, slot: str) -> Process:
        words = [sys.executable, jobs_worker.__file__, str(log), *command]
        return Process(words, self.environment(slot), self.cwd)


def cores() -> int:
    """Return the number of CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(eq=False)
class Entry:
    """A job and how it fares: ``state`` is waiting, running, elsewhere or one of ``ENDED``."""

    job: Job
    log: Path
    state: str = "waiting"
    tries: int = 0
    began: float = 0.0
    slot: str = ""
    handle: Handle | None = None
    why: str = ""


@dataclass
class Pool:
    """The jobs of a sweep and those that run.

    Attributes:
        jobs: in the order in which they start where they can.
        command: what to start for a job.
        tell: is given a line for each thing that happens.
        watch: is called between looks, with this pool.
        retries: how often a job that failed is tried again.
    """

    jobs: Sequence[Job]
    place: Place
    launcher: Launcher
    command: Callable[[Job], list[str]]
    tell: Callable[[str], None] = print
    watch: Callable[[Pool], None] = lambda pool: None
    retries: int = 1
    pause: float = 0.2  # s between looks
    entries: dict[str, Entry] = field(default_factory=dict)

    def __post_init__(self):
        self.queue: list[Entry] = []
        self.looked = self.started = time.monotonic()
        for job in self.jobs:
            entry = Entry(job, self.place.log(job))
            self.entries[job.folder] = entry
            if state_of(job) == "done":
                entry.state, entry.why = "done", "before"
            elif self.place.busy(job):
                self._elsewhere(entry)
            else:
                self.queue.append(entry)

    def of(self, *states: str) -> list[Entry]:
        """Return the entries in one of these states."""
        return [entry for entry in self.entries.values() if entry.state in states]

    def counts(self) -> Counter:
        """Count the entries by state."""
        return Counter(entry.state for entry in self.entries.values())

    def run(self) -> bool:
        """Run everything; True if all jobs are done. However it is left, no job goes on."""
        try:
            while self._step():
                self.watch(self)
                time.sleep(self.pause)
        finally:
            self.stop()
        return all(entry.state == "done" for entry in self.entries.values())

    def _step(self) -> bool:
        """Look after the running jobs and start others; False when there is nothing left."""
        for entry in self.of("running"):
            code = entry.handle.poll()
            if code is not None:
                self._ended(entry, code)
        away = self.of("elsewhere")
        if away and time.monotonic() - self.looked > GLANCE:
            self.looked = time.monotonic()
            for entry in away:
                self._look_again(entry)
        free = self._free_slots()
        for entry in self._ready() if free else ():
            self._start(entry, free.pop(0))
            if not free:
                break
        return bool(self.queue or self.of("running", "elsewhere"))

    def _free_slots(self) -> list[str]:
        taken = {entry.slot for entry in self.of("running", "elsewhere")}
        return [slot for slot in self.launcher.slots if slot not in taken]

    def _ready(self) -> Iterator[Entry]:
        """Yield the waiting jobs that may start now; those that never will are taken out."""
        for entry in list(self.queue):
            needed = [self.entries[folder] for folder in entry.job.needs]
            lost = [other for other in needed if other.state in ("failed", "blocked")]
            if lost:
                self.queue.remove(entry)
                entry.state, entry.why = "blocked", f"needs {lost[0].job.name}"
                self.tell(f"blocked: {entry.job.name}, which {entry.why}")
            elif all(other.state == "done" for other in needed) and all(
                self.entries[folder].state in ENDED for folder in entry.job.after
            ):
                yield entry

    def _start(self, entry: Entry, slot: str) -> None:
        self.queue.remove(entry)
        entry.state, entry.slot, entry.began = "running", slot, time.monotonic()
        entry.tries += 1
        try:
            entry.log.parent.mkdir(parents=True, exist_ok=True)
            entry.handle = self.launcher.start(entry.job, self.command(entry.job), entry.log, slot)
        except (OSError, RuntimeError) as error:  # submitit raises these where sbatch fails
            self._failed(entry, f"cannot be started: {error}")
            return
        who = getattr(entry.handle, "pid", None)
        self.place.note("start", entry.job, slot=slot, attempt=entry.tries, pid=who)
        self.tell(f"start: {entry.job.name} on {slot}")

    def _ended(self, entry: Entry, code: int) -> None:
        seconds = time.monotonic() - entry.began
        if code == jobs_worker.BUSY:
            entry.tries -= 1
            self._elsewhere(entry)
        elif code == 0 and completed(entry.job.folder):  # train.py has judged the rest
            entry.state, entry.slot, entry.handle = "done", "", None
            self.place.note("done", entry.job, seconds=round(seconds, 1))
            self.tell(f"done: {entry.job.name} in {in_words(seconds)}")
        else:
            self._failed(entry, _reason(code), final=code == REFUSED)

    def _failed(self, entry: Entry, why: str, *, final: bool = False) -> None:
        """Try a job again, or give it up."""
        entry.why, entry.slot, entry.handle = why, "", None
        self.place.note("failed", entry.job, why=why, attempt=entry.tries)
        if entry.tries <= self.retries and not final:
            entry.state = "waiting"
            self.queue.append(entry)  # behind the others, whose end may be what it lacked
            self.tell(f"failed: {entry.job.name} ({why}), to be tried again")
        else:
            entry.state = "failed"
            self.tell(f"failed: {entry.job.name} ({why}), see {entry.log}")

    def _elsewhere(self, entry: Entry) -> None:
        """Wait for another process that has the job: of a sweep that was killed, or far away."""
        entry.state, entry.began, entry.handle = "elsewhere", time.monotonic(), None
        event = self.place.last.get(entry.job.place, {})
        entry.slot = event.get("slot", "") if event.get("host") == HOST else ""
        entry.why = f"on {event['host']}" if "host" in event else "by another process"
        self.tell(f"wait: {entry.job.name} is being run {entry.why}")

    def _look_again(self, entry: Entry) -> None:
        if self.place.busy(entry.job):
            return
        entry.slot = ""
        if state_of(entry.job) == "done":
            entry.state = "done"
            self.tell(f"done: {entry.job.name}, by another process")
        else:
            entry.state = "waiting"
            self.queue.insert(0, entry)

    def stop(self) -> None:
        """Stop what runs: ask, wait a while, then end it."""
        running = [entry for entry in self.of("running") if entry.handle]
        for how in ("stop", "kill", "kill"):
            with contextlib.suppress(KeyboardInterrupt):  # who asks twice does not want to wait
                _end([entry.handle for entry in running], how)
        for entry in running:
            self.place.note("stopped", entry.job)
            entry.state, entry.slot, entry.handle = "waiting", "", None


def _end(handles: Sequence[Handle], how: str) -> None:
    """Stop or kill those that live, and wait a while for all of them."""
    alive = [handle for handle in handles if handle.poll() is None]
    for handle in alive:
        getattr(handle, how)()
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and any(handle.poll() is None for handle in alive):
        time.sleep(0.05)


def _reason(code: int) -> str:
    """Say an exit code in words."""
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        names = {int(s): s.name for s in signal.Signals}
        oom = ", as where memory runs out" if number == signal.SIGKILL else ""
        return f"ended by {names.get(number, f'signal {number}')}{oom}"
    if code == 0:
        return "ended without a completed record"
    return f"exit code {code}"


def failures(pool: Pool, lines: int = 5) -> str:
    """Return each job that failed or was blocked, with the last lines of its log."""
    parts = []
    for entry in pool.of("failed", "blocked"):
        parts.append(f"{entry.state}: {entry.job.name}: {entry.why}")
        if entry.state == "failed":
            parts += [f"    {line}" for line in last_lines(entry.log, lines)]
            parts.append(f"    in {entry.log}")
    return "\n".join(parts)


def in_words(seconds: float) -> str:
    """Return a duration as ``42 s``, ``7 min``, ``3 h 05``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d}"
