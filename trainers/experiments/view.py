"""What a sweep shows while it runs: a live table in a terminal, lines anywhere else."""

import re
import shutil
import sys
import time
from statistics import mean, median
from typing import TextIO

from tabulate import tabulate

from .pool import Entry, Pool, in_words, last_lines

STATES = ("done", "running", "elsewhere", "waiting", "failed", "blocked")
_EPOCH = re.compile(r"epoch\s*\[?\s*(\d+)\s*/\s*(\d+)", re.IGNORECASE)


class View:
    """A line per event; between them a table of the running jobs, or a summary now and then."""

    def __init__(self, out: TextIO | None = None):
        self.out = out or sys.stdout
        self.live = self.out.isatty()
        self.every = 1.0 if self.live else 600.0  # s between tables, or summaries
        self.shown, self.rows = time.monotonic(), 0

    def tell(self, text: str) -> None:
        self._erase()
        print(time.strftime("%H:%M:%S"), text, file=self.out, flush=True)

    def watch(self, pool: Pool) -> None:
        """Show how the jobs fare, if it is time."""
        if time.monotonic() - self.shown < self.every and (self.rows or not self.live):
            return
        self.shown = time.monotonic()
        if not self.live:
            self.tell(summary(pool))
            return
        size = shutil.get_terminal_size()
        lines = table(pool, size.lines)
        self._erase()
        self.out.write("".join(f"{line[: size.columns - 1]}\n" for line in lines))
        self.out.flush()
        self.rows = len(lines)

    def close(self, pool: Pool) -> None:
        self._erase()
        print(summary(pool), file=self.out, flush=True)

    def _erase(self) -> None:
        if self.rows:
            getattr(self.out, "raw", self.out).write(f"\x1b[{self.rows}F\x1b[J")
            self.rows = 0


def table(pool: Pool, height: int) -> list[str]:
    """Return the running jobs, as many as fit, and the summary."""
    active = pool.of("running", "elsewhere")
    rows = [_row(pool, entry) for entry in active[: max(height - 6, 1)]]
    head = ["job", "where", "progress", "elapsed", "left"]
    lines = tabulate(rows, head, disable_numparse=True).splitlines() if rows else []
    more = [f"and {len(active) - len(rows)} more"] if len(rows) < len(active) else []
    return ["", *lines, *more, summary(pool)]


def _row(pool: Pool, entry: Entry) -> list[str]:
    elapsed, left = time.monotonic() - entry.began, ""
    if entry.job.kind in pool.seconds and entry.state == "running":
        left = in_words(max(median(pool.seconds[entry.job.kind]) - elapsed, 0))
    progress = "".join(last_lines(entry.log))
    if at := _EPOCH.search(progress):
        progress = f"epoch {at[1]}/{at[2]}"
    where = entry.slot if entry.state == "running" else entry.why
    return [entry.job.name, where, progress[:44], in_words(elapsed), left]


def summary(pool: Pool) -> str:
    """Return one line on all jobs, with the time left as far as alike jobs tell it."""
    counts, now, left = pool.counts(), time.monotonic(), 0.0
    said = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    text = f"{len(pool.entries)} jobs: {', '.join(said)}; {in_words(now - pool.started)} so far"
    usual = {kind: median(seconds) for kind, seconds in pool.seconds.items()}
    for entry in pool.of("waiting", "running", "elsewhere") if usual else ():
        passed = now - entry.began if entry.state == "running" else 0.0
        left += max(usual.get(entry.job.kind, mean(usual.values())) - passed, 0.0)
    return f"{text}, about {in_words(left / len(pool.launcher.slots))} left" if left else text
