"""What a sweep shows while it runs: a live table in a terminal, lines anywhere else."""

from __future__ import annotations

import shutil
import sys
import time
from statistics import mean
from typing import TextIO

from tabulate import tabulate

from .pool import Entry, Pool, in_words
from .state import epochs, last_lines

_STATES = {
    "done": "done",
    "running": "running",
    "elsewhere": "running elsewhere",
    "waiting": "waiting",
    "failed": "failed",
    "blocked": "blocked",
}
_WIDEST = 44  # characters of a job's progress


class Lines:
    """One line per event, and a summary now and then.

    Args:
        every: seconds between summaries.
    """

    def __init__(self, out: TextIO | None = None, every: float = 600.0):
        self.out, self.every = out or sys.stdout, every
        self.said = time.monotonic()

    def tell(self, text: str) -> None:
        """Print an event."""
        print(time.strftime("%H:%M:%S"), text, file=self.out, flush=True)

    def watch(self, pool: Pool) -> None:
        """Print a summary if it is time."""
        if time.monotonic() - self.said >= self.every:
            self.said = time.monotonic()
            self.tell(summary(pool))

    def close(self, pool: Pool) -> None:
        """Say how it ended."""
        print(summary(pool), file=self.out, flush=True)


class Screen(Lines):
    """The running jobs in a table that is drawn anew, below the events."""

    def __init__(self, out: TextIO | None = None, every: float = 1.0):
        super().__init__(out, every)
        self.rows = 0
        self.rates: dict[str, tuple[float, int]] = {}

    def tell(self, text: str) -> None:
        self._erase()
        super().tell(text)
        self.said = 0.0  # the table comes back with the next look

    def watch(self, pool: Pool) -> None:
        if time.monotonic() - self.said < self.every:
            return
        self.said = time.monotonic()
        size = shutil.get_terminal_size()
        lines = self._table(pool, size.lines)
        self._erase()
        text = "".join(f"{line[: size.columns - 1]}\n" for line in lines)
        self.out.write(text)
        self.out.flush()
        self.rows = len(lines)

    def close(self, pool: Pool) -> None:
        self._erase()
        super().close(pool)

    def _erase(self) -> None:
        if self.rows:
            self.out.write(f"\x1b[{self.rows}F\x1b[J")
            self.rows = 0

    def _table(self, pool: Pool, height: int) -> list[str]:
        active = pool.of("running", "elsewhere")
        shown = active[: max(height - 6, 1)]
        rows = [self._row(pool, entry) for entry in shown]
        lines = [""]
        if rows:
            head = ["job", "where", "progress", "elapsed", "left"]
            lines += tabulate(rows, head, disable_numparse=True).splitlines()
        if len(shown) < len(active):
            lines.append(f"and {len(active) - len(shown)} more")
        return [*lines, summary(pool)]

    def _row(self, pool: Pool, entry: Entry) -> list[str]:
        elapsed = time.monotonic() - entry.began
        lines = last_lines(entry.log, 20)
        at, usual = epochs(lines), pool.place.usual.get(entry.job.kind)
        left = self._left(entry, at)
        if usual is not None and entry.state == "running":
            left = in_words(max(usual - elapsed, 0))
        doing = f"epoch {at[0]}/{at[1]}" if at and epochs(lines[-1:]) else "".join(lines[-1:])
        where = entry.slot if entry.state == "running" else entry.why
        return [entry.job.name, where, doing[:_WIDEST], in_words(elapsed), left]

    def _left(self, entry: Entry, at: tuple[int, int] | None) -> str:
        """Return the rest of the training, from the epochs that this try has passed."""
        now = time.monotonic()
        if at is None or entry.state != "running":
            return ""
        key = f"{entry.job.folder} {entry.tries}"
        began, first = self.rates.setdefault(key, (now, at[0]))
        if at[0] <= first:
            return ""
        return f"> {in_words((now - began) / (at[0] - first) * (at[1] - at[0]))}"


def summary(pool: Pool) -> str:
    """Return one line on all jobs."""
    counts = pool.counts()
    parts = [f"{counts[state]} {words}" for state, words in _STATES.items() if counts[state]]
    text = f"{len(pool.entries)} jobs: {', '.join(parts)}; "
    text += f"{in_words(time.monotonic() - pool.started)} so far"
    rest = remaining(pool)
    return f"{text}, about {in_words(rest)} left" if rest else text


def remaining(pool: Pool) -> float | None:
    """Return the seconds that are left, from what alike jobs took; None where none was done."""
    usual = pool.place.usual
    if not usual:
        return None
    other, now, total = mean(usual.values()), time.monotonic(), 0.0
    for entry in pool.of("waiting", "running", "elsewhere"):
        takes = usual.get(entry.job.kind, other)
        passed = now - entry.began if entry.state == "running" else 0.0
        total += max(takes - passed, 0.0)
    return total / max(len(pool.launcher.slots), 1)


def view(out: TextIO | None = None) -> Lines:
    """Return the table where ``out`` is a terminal, else lines."""
    out = out or sys.stdout
    return Screen(out) if out.isatty() else Lines(out)
