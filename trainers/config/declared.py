"""The declaration of a configuration key, and all of them by name."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..utils.errors import UserError, nearest

LARGEST = 10**9  # limit of numbers without a range; larger ones are typing mistakes
KEYS: "dict[str, Key]" = {}  # by full name, such as OPTIM.LR


@dataclass(frozen=True)
class Key:
    """One key: its default, type, range or choices, and what it means.

    The type is that of the default; of a list, that of the default's first entry, else text.
    """

    default: Any
    about: str = ""  # what it means, in one line
    least: float = -LARGEST  # of a number, or of the numbers in a list
    most: float = LARGEST
    choices: Collection | Callable[[], Collection] = ()  # a function: known only later
    any_case: bool = False  # the choices are words in upper or lower case
    count: int | None = None  # of a list's entries; None for any number
    entry: Any = None  # like a list's entries, where its default has none; ... for anything
    check: Callable[[str, Any], object] | None = None  # (name, value); raises a UserError
    form: str = ""  # what is expected, in words, where ``check`` decides, of a text or a number

    def read(self, name: str, value):
        """Return ``value`` in the key's type, or raise a UserError, which begins with ``name``."""
        kind, wrong = type(self.default), [value]
        if not isinstance(self.default, (list, tuple)):
            wrong = wrong if not self._fits(self.default, value) else []
        elif isinstance(value, (list, tuple)) and self.count in (None, len(value)):
            wrong = [one for one in value if not self._fits(self._entry, one)]
        if wrong:
            hint = nearest(wrong[0], self._choices()).rstrip(".") if self.choices else ""
            hint = f".{hint}" if hint.startswith(" Did") else ""
            raise UserError(f"{name} is {value!r:.80}, expected {self.expected()}{hint}")
        if self.check:
            self.check(name, value)
        if self.any_case:
            return value.lower()
        return value if isinstance(value, kind) else kind(value)

    def expected(self) -> str:
        """Return the type with its range or choices, in words."""
        if not isinstance(self.default, (list, tuple)):
            return self._one(self.default)
        such_as = f", such as {self.default!r}" if self.default else ""
        count = f" of {self.count}" if self.count else ""
        each = "" if self._entry is ... else f", each entry {self._one(self._entry)}"
        return f"a list{count}{each}{such_as}"

    @property
    def _entry(self):
        return self.entry if self.entry is not None else self.default[0] if self.default else ""

    def _choices(self) -> Collection:
        return self.choices() if callable(self.choices) else self.choices

    def _one(self, like) -> str:
        if self.form or self.choices:
            words = [repr(choice) for choice in self._choices()]
            return self.form or f"{'one of: ' * (len(words) > 1)}{', '.join(words)}"
        if isinstance(like, bool):
            return "True or False"
        if isinstance(like, (int, float)):
            what = "a whole number" if isinstance(like, int) else "a number"
            least = f" of {self.least} or more" if self.least > -LARGEST else ""
            return what + (f" from {self.least} to {self.most}" if self.most != LARGEST else least)
        return "text" if isinstance(like, str) else "keys and values such as {'EPS': 4}"

    def _fits(self, like, value) -> bool:
        """Return True if a value, or an entry of a list, can replace ``like``."""
        if like is ...:
            return True
        if isinstance(like, bool) or isinstance(value, bool):
            fits = isinstance(like, bool) and isinstance(value, bool)
        elif isinstance(like, (int, float)):
            fits = isinstance(value, int if isinstance(like, int) else (int, float))
            fits = fits and self.least <= value <= self.most
        elif isinstance(like, str):
            fits = isinstance(value, (str, int, float) if self.form else str)
            fits = fits and "\0" not in str(value)
        else:
            fits = isinstance(value, Mapping if isinstance(like, Mapping) else type(like))
        if not fits or not self.choices:
            return fits
        return (value.lower() if self.any_case else value) in self._choices()


def is_text(name: str) -> bool:
    """Return True if a key is a text, and not a number in other words, such as 4/255."""
    key = KEYS.get(name)
    return key is not None and isinstance(key.default, str) and not key.form
