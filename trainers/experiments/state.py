"""What a sweep keeps beside its runs, in ``OUTPUT/sweep``: logs that are locks, and a journal.

Whether a job is done is said by its record alone. The journal tells how long jobs took and which
failed; without it nothing is lost but these.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from ..engine import run_folder
from ..utils import errors
from ..utils import io as files
from .jobs import Job
from .settings import completed
from .worker import lock

FOLDER = "sweep"
HOST = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()) or "here"
_TAIL = 4096  # bytes of a log that are read for its last lines
_EPOCH = re.compile(r"epoch\s*\[?\s*(\d+)\s*/\s*(\d+)", re.IGNORECASE)


def state_of(job: Job) -> str:
    """Return done, other (done with other settings), resume (begun) or run, from the run folder."""
    record = completed(job.folder)
    if record:
        return "done" if job.settings.agree(record["config"]) else "other"
    begun = any(
        os.path.exists(f"{job.folder}/{name}") for name in (run_folder.CONFIG_FILE, "unfinished")
    )
    return "resume" if begun else "run"


class Place:
    """The folder ``OUTPUT/sweep``: a log for each job, and the journal of each machine."""

    def __init__(self, output: str):
        self.output, self.folder = output, Path(output) / FOLDER
        self.journal = self.folder / f"{HOST}.jsonl"
        self.file: int | None = None
        self.seconds: dict[tuple, list[float]] = defaultdict(list)  # kind of job -> durations
        self.usual: dict[tuple, float] = {}  # kind of job -> the median of these
        self.last: dict[str, dict] = {}  # job -> its last event

    def log(self, job: Job) -> Path:
        """Return the log of a job."""
        return Path(f"{self.folder}/logs/{job.place}.log")

    def read(self) -> Place:
        """Read the journals of all machines; a line that a crash has cut is passed over."""
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    event = json.loads(line)
                    self._learn(event)
                except (ValueError, KeyError, TypeError):
                    continue
        return self

    def _learn(self, event: dict) -> None:
        if event["time"] >= self.last.get(event["job"], event)["time"]:
            self.last[event["job"]] = event
        if event["event"] == "done":
            kind = tuple(event["kind"])
            self.seconds[kind].append(float(event["seconds"]))
            self.usual[kind] = median(self.seconds[kind])

    def take(self) -> None:
        """Become the one sweep of this machine that works on the output folder.

        Raises:
            UserError: another sweep does, or the folder cannot be written.
        """
        files.writable_dir(self.folder / "logs")
        self.file = os.open(self.journal, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if not lock(self.file):
            owner = self.folder / f"{HOST}.pid"
            who = owner.read_text(encoding="utf-8").strip() if owner.is_file() else "unknown"
            raise errors.UserError(
                f"another sweep (process {who}) works on '{self.output}'; wait for it, stop it, or "
                "choose another --output"
            )
        (self.folder / f"{HOST}.pid").write_text(f"{os.getpid()}\n", encoding="utf-8")

    def note(self, event: str, job: Job, **facts) -> None:
        """Write an event into the journal."""
        entry = {"time": round(time.time(), 3), "event": event, "job": job.place, "host": HOST}
        entry |= {**facts, "kind": list(job.kind)}
        self._learn(entry)
        if self.file is not None:
            with contextlib.suppress(OSError):  # a full disk; the runs say so
                os.write(self.file, (json.dumps(entry) + "\n").encode())

    def busy(self, job: Job) -> bool:
        """Tell whether a process has the job, here or on a machine that shares the folder."""
        return held(f"{self.folder}/logs/{job.place}.log")


def held(log: str) -> bool:
    """Tell whether a process has the job of this log."""
    try:
        file = os.open(log, os.O_RDWR)
    except OSError:
        return False
    try:
        return not lock(file)
    finally:
        os.close(file)


def last_lines(log: Path, count: int = 1) -> list[str]:
    """Return the last lines of a log that say something; of a progress bar its last state."""
    try:
        with open(log, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - _TAIL, 0))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = (line.rstrip("\r").rpartition("\r")[2].strip() for line in text.split("\n"))
    return [line for line in lines if line][-count:]


def epochs(lines: Iterable[str]) -> tuple[int, int] | None:
    """Return the (epoch, epochs) that the last of some log lines speaks of."""
    found = [_EPOCH.search(line) for line in lines]
    told = [match for match in found if match]
    return (int(told[-1][1]), int(told[-1][2])) if told else None
