"""Progress bars over images that also move within a batch, by the steps of an attack."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

EVERY = 1.0  # seconds between two looks
_open: list[tqdm] = []  # the innermost bar is the last


@contextmanager
def bar(count: int, title: str, **look) -> Iterator[tqdm]:
    """Show a bar over ``count`` images; without a title nothing is shown."""
    with tqdm(total=count, desc=title, unit="image", disable=not title, **look) as shown:
        _open.append(shown)
        try:
            yield shown
        finally:
            _open.pop()


def steps(count: int) -> Iterator[int]:
    """Yield 0 to ``count`` - 1; meanwhile the innermost bar shows the step."""
    last = time.monotonic()
    for step in range(count):
        if _open and time.monotonic() - last > EVERY:
            _open[-1].set_postfix_str(f"step {step} of {count}")
            last = time.monotonic()
        yield step
