"""Runs the jobs of a sweep through submitit, some at a time, each in a process of its own."""

import contextlib
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from ..engine import run_folder
from ..utils.entry import run_tool
from ..utils.errors import UserError
from ..utils.machine import cores
from .jobs import Job, Key
from .settings import recorded
from .state import Look

LOGS = "sweep"  # folder of the logs in the output folder
ENDED = ("done", "failed", "blocked")
PATIENCE = 10.0  # s that stopped jobs have to end
GLANCE = 2.0  # s between looks at runs that other processes work on
FOREVER = 60 * 24 * 365  # minutes; a local job has no limit


class Work:
    """``train(words)``, here or on a node; what Slurm cuts short is queued again and resumes."""

    def __init__(self, train: Callable[[list[str]], int | None]):
        self.train = train

    def __call__(self, words: list[str]) -> None:
        if code := run_tool(self.train, words):
            sys.exit(code)

    def checkpoint(self, words: list[str]):
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, words)


class Local:
    """Processes of this machine: one per slot, which is a GPU or a share of the CPU's cores.

    With more ``jobs`` at a time than ``gpus`` (indices) these share them.
    """

    def __init__(self, jobs: int, gpus: Sequence[str] = ()):
        devices = [f"gpu{gpus[i % len(gpus)]}" if gpus else "cpu" for i in range(jobs)]
        self.slots = [f"{device}.{devices[:i].count(device)}" for i, device in enumerate(devices)]
        self.threads = max(cores() // jobs, 1)

    def submit(self, job: Job, folder: Path, slot: str, work: Callable):
        """Start a job; return submitit's."""
        import submitit

        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(timeout_min=FOREVER, stderr_to_stdout=True)
        if not slot.startswith("cpu"):  # past its check: a part of a GPU has a name, no number
            gpu = slot.partition(".")[0].removeprefix("gpu")
            executor.parameters |= {"gpus_per_node": 1, "visible_gpus": (gpu,)}
        environment = {"OMP_NUM_THREADS": str(self.threads), "TQDM_MININTERVAL": "5"}
        with submitit.helpers.environment_variables(**environment):
            return executor.submit(work, job.words)


class Slurm:
    """At most ``jobs`` in the queue of a cluster, whose nodes share the output folder.

    ``options`` are submitit's, such as ``timeout_min`` and ``slurm_partition``.
    """

    def __init__(self, jobs: int, **options):
        self.slots, self.options = [f"slurm.{i}" for i in range(jobs)], options

    def submit(self, job: Job, folder: Path, slot: str, work: Callable):
        """Submit a job; return submitit's."""
        import submitit

        try:
            executor = submitit.AutoExecutor(folder, cluster="slurm")
        except RuntimeError as error:
            text = f"--slurm finds no cluster here ({error}); start it where sbatch works"
            raise UserError(text) from error
        name = f"{job.trainer}-{job.dataset}-{job.seed}"
        executor.update_parameters(name=name, stderr_to_stdout=True, **self.options)
        with submitit.helpers.environment_variables(TQDM_MININTERVAL="5"):
            return executor.submit(work, job.words)


def holder(run: str) -> str:
    """Return who works in a run's folder, such as ``41@node``; "" for nobody."""
    path = Path(run, ".lock")
    if not path.is_file():
        return ""
    try:
        with FileLock(path, timeout=0):
            return ""
    except Timeout:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"


@dataclass(eq=False)
class Entry:
    """A job and what becomes of it: waiting, running, elsewhere, or one of ``ENDED``."""

    job: Job
    folder: Path  # of its logs
    state: str = "waiting"
    tries: int = 0
    began: float = 0.0
    slot: str = ""
    handle: object = None  # submitit's job
    why: str = ""

    @property
    def log(self) -> Path:
        return Path(self.handle.paths.stdout) if self.handle else self.folder


@dataclass
class Pool:
    """The jobs of a sweep."""

    jobs: Sequence[Job]  # in the order in which they start where they can
    output: str
    launcher: Local | Slurm
    work: Callable[[list[str]], None]  # does the words of a job
    tell: Callable[[str], None] = print  # is given a line for each event
    watch: "Callable[[Pool], None]" = lambda pool: None  # is called between looks
    retries: int = 1  # of a job that failed
    pause: float = 0.2  # s between looks
    entries: dict[Key, Entry] = field(default_factory=dict)
    seconds: dict[tuple, list[float]] = field(default_factory=dict)  # kind of job -> durations

    def __post_init__(self):
        self.queue: list[Entry] = []
        self.look = Look()
        self.looked = self.started = time.monotonic()
        for job in self.jobs:
            place = os.path.relpath(job.run, self.output)
            entry = Entry(job, Path(self.output, LOGS, place, job.test))
            self.entries[job.key] = entry
            if not self._done(entry):
                self.queue.append(entry)

    def of(self, *states: str) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.state in states]

    def counts(self) -> Counter:
        return Counter(entry.state for entry in self.entries.values())

    def run(self) -> bool:
        """Run everything; True if all jobs are done. However it is left, no job goes on."""
        try:
            while self._step():
                self.watch(self)
                time.sleep(self.pause)
        finally:
            self._stop()
        return self.counts()["done"] == len(self.entries)

    def _step(self) -> bool:
        """Look after the running jobs and start others; False when there is nothing left."""
        for entry in self.of("running"):
            if entry.handle.done():
                self._ended(entry)
        if time.monotonic() - self.looked > GLANCE:
            self.looked = time.monotonic()
            for entry in self.of("elsewhere"):
                if not holder(entry.job.run) and not self._done(entry):
                    entry.state, entry.slot = "waiting", ""
                    self.queue.insert(0, entry)
        busy = self.of("running", "elsewhere")
        free = [s for s in self.launcher.slots if s not in {entry.slot for entry in busy}]
        runs = {entry.job.run for entry in busy}  # one job at a time works in a run's folder
        for entry in self._ready() if free else ():
            if free and entry.job.run not in runs:
                runs.add(entry.job.run)
                self._start(entry, free)
        return bool(self.queue or self.of("running", "elsewhere"))

    def _ready(self) -> Iterator[Entry]:
        """Yield the waiting jobs that may start now; those that never will are taken out."""
        for entry in list(self.queue):
            needed = self.entries.get(entry.job.needs)
            if needed and needed.state in ("failed", "blocked"):
                self.queue.remove(entry)
                entry.state, entry.why = "blocked", f"needs {needed.job.name}"
                self.tell(f"blocked: {entry.job.name}, which {entry.why}")
            elif (not needed or needed.state == "done") and all(
                self.entries[key].state in ENDED for key in entry.job.after
            ):
                yield entry

    def _start(self, entry: Entry, free: list[str]) -> None:
        self.queue.remove(entry)
        entry.began = time.monotonic()
        if who := holder(entry.job.run):  # a job of a sweep that was killed, or of another machine
            entry.state, entry.why = "elsewhere", f"by {who}"
            if who.endswith(f"@{socket.gethostname()}"):
                entry.slot = free.pop(0)
            self.tell(f"wait: {entry.job.name} is being run {entry.why}")
            return
        entry.state, entry.slot, entry.tries = "running", free.pop(0), entry.tries + 1
        try:
            entry.handle = self.launcher.submit(entry.job, entry.folder, entry.slot, self.work)
            self.tell(f"start: {entry.job.name} on {entry.slot}")
        except (OSError, RuntimeError) as error:  # submitit raises these where sbatch fails
            self._failed(entry, f"cannot be started: {error}")

    def _done(self, entry: Entry) -> bool:
        """Look for the job's record; where it is there, note what the job took.

        One of other data or another model counts only if a run has left it just now; before that
        the run is started, and refuses it.
        """
        job, before = entry.job, entry.state
        record, place = recorded(job.settings, job.run)
        if record and before == "waiting" and self.look.refusal(job, record, place):
            return False
        if record:
            run_folder.clear(place)
            spent = record.get("seconds") or {}
            parts = ("eval",) if job.needs else ("train", "bank", "eval")
            seconds = float(sum(spent.get(part) or 0 for part in parts))
            if before == "running":
                seconds = time.monotonic() - entry.began
            self.seconds.setdefault(job.kind, []).append(seconds)
            entry.state, entry.slot = "done", ""
            if before != "waiting":
                by = ", by another process" if before == "elsewhere" else f" in {in_words(seconds)}"
                self.tell(f"done: {job.name}{by}")
        return bool(record)

    def _ended(self, entry: Entry) -> None:
        last = last_lines(entry.log)
        refused = bool(last) and last[0].startswith("error: ")  # again, if it is tried again
        if refused or not self._done(entry):
            why = "refused" if refused else "ended without a completed record"
            self._failed(entry, why, final=refused)

    def _failed(self, entry: Entry, why: str, *, final: bool = False) -> None:
        """Try a job again, or give it up."""
        again = entry.tries <= self.retries and not final
        entry.state, entry.slot, entry.why = "waiting" if again else "failed", "", why
        if again:
            self.queue.append(entry)  # after the others, whose end may be what it lacked
        more = "to be tried again" if again else f"see {entry.log}"
        self.tell(f"failed: {entry.job.name} ({why}), {more}")

    def _stop(self) -> None:
        """Stop what runs and wait a while for it; submitit ends what does not end by itself."""
        running = [entry for entry in self.of("running") if entry.handle]
        for entry in running:
            entry.handle.cancel(check=False)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not all(entry.handle.done() for entry in running):
            with contextlib.suppress(KeyboardInterrupt):  # asked twice: it is being done
                time.sleep(0.05)
        for entry in running:
            entry.state, entry.slot = "waiting", ""


def failures(pool: Pool, lines: int = 5) -> str:
    """Return each job that failed or was blocked, with the last lines of its log."""
    parts = []
    for entry in pool.of("failed", "blocked"):
        parts.append(f"{entry.state}: {entry.job.name}: {entry.why}")
        if entry.state == "failed":
            parts += [f"    {line}" for line in [*last_lines(entry.log, lines), f"in {entry.log}"]]
    return "\n".join(parts)


def last_lines(log: Path, count: int = 1) -> list[str]:
    """Return the last lines of a log that say something; of a progress bar its last state."""
    try:
        with open(log, "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - 4096, 0))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = (line.rstrip("\r").rpartition("\r")[2].strip() for line in text.split("\n"))
    return [line for line in lines if line][-count:]


def in_words(seconds: float) -> str:
    """Return a duration as ``42 s``, ``7 min``, ``3 h 05``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d}"
