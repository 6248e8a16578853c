"""The one exception for mistakes of the user, and the hint that goes with a wrong name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can fix; its text is one sentence that says how.

    Entry points print it as ``error: ...`` and exit with code 2. Several mistakes, each of which is
    an argument, are a line each.
    """

    def __str__(self):
        if len(self.args) < 2:
            return super().__str__()
        return "\n".join([f"{len(self.args)} mistakes", *(f"  {text}" for text in self.args)])


class Mistakes(list):
    """Collect UserErrors, to raise them as one: ``with`` it around each check and around all."""

    depth = 0

    def __enter__(self):
        self.depth += 1
        return self

    def __exit__(self, kind, error, trace) -> bool:
        self.depth -= 1
        if isinstance(error, UserError):
            self.extend(error.args)
        if (error is None or isinstance(error, UserError)) and not self.depth and self:
            raise UserError(*dict.fromkeys(self)) from error
        return isinstance(error, UserError)


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean A or B?``, or all choices where none is close."""
    choices = sorted(map(str, choices))
    by_lower = {c.lower(): c for c in choices}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.6)
    if close:
        return f" Did you mean {' or '.join(by_lower[c] for c in close)}?"
    return f" Choose one of: {', '.join(choices)}."
