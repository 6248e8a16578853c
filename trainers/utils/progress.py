"""Progress bars over images that also move within a batch, by the steps of an attack."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

EVERY = 1.0  # seconds between two looks at the steps
_open: list["_Bar"] = []  # the innermost bar is the last


class _Bar(tqdm):
    """Knows the next time to show a step; a finished batch takes the step away."""

    due = 0.0

    def update(self, n=1):
        self.set_postfix_str("", refresh=False)
        return super().update(n)


@contextmanager
def bar(count: int, title: str, **look) -> Iterator[tqdm]:
    """Show a bar over ``count`` images; without a title nothing is shown."""
    with _Bar(total=count, desc=title, unit="image", disable=not title, **look) as shown:
        shown.due = time.monotonic() + 2 * EVERY
        _open.append(shown)
        try:
            yield shown
        finally:
            _open.remove(shown)


def steps(count: int) -> Iterator[int]:
    """Yield 0 to ``count`` - 1, and show the step in the innermost bar every second."""
    for step in range(count):
        now = time.monotonic()
        if _open and not _open[-1].disable and now > _open[-1].due:
            _open[-1].due = now + EVERY
            _open[-1].set_postfix_str(f"step {step} of {count}")
        yield step
