"""What an attack has found so far, on disk, so that an interrupted evaluation resumes."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..attacks import AttackChecks
from ..utils.errors import UserError
from ..utils.io import read_json, write_json


@dataclass
class Partial:
    """Results of an attack."""

    key: str  # of the evaluation, see :class:`Progress`
    right: list[bool | None]  # whether each sample is still right; None: not attacked yet
    checks: dict = field(default_factory=dict)  # the fields of :class:`AttackChecks`
    seconds: float = 0.0  # wall time, summed over interrupted runs


class Progress:
    """The progress of one attack on ``count`` samples, kept in ``FOLDER/KEY.json``.

    ``key`` is a hex digest of everything the evaluation depends on; another is never continued.
    """

    def __init__(self, folder: Path, key: str, count: int):
        self.path, self.key = folder / f"{key[:16]}.json", key
        self.whole = load(self.path, key, count)
        self._begin()

    def _begin(self) -> None:
        self._checks, self._before = AttackChecks(**self.whole.checks), self.whole.seconds
        self._clock = time.perf_counter()

    def known(self) -> int:
        """Return the number of samples that are attacked already."""
        return len(self.whole.right) - len(self.todo())

    def forget(self) -> None:
        """Start again from nothing."""
        self.whole = Partial(self.key, [None] * len(self.whole.right))
        self._begin()

    def todo(self) -> list[int]:
        """Return the samples that are still to be attacked."""
        return [i for i, right in enumerate(self.whole.right) if right is None]

    def add(self, samples: list[int], right: list[bool], result, clean, again=None) -> None:
        """Note a batch: who is still right, the result, and how many are right by other answers."""
        for sample, still in zip(samples, right, strict=True):
            self.whole.right[sample] = still
        self._checks.add(result, clean)
        self._checks.merge(AttackChecks(again=again or {}))
        self.whole.checks = asdict(self._checks)
        self.whole.seconds = self._before + time.perf_counter() - self._clock

    def save(self) -> None:
        """Write what was found so far."""
        write_json(self.path, asdict(self.whole))

    def finish(self) -> Partial:
        """Return what was found, and keep it."""
        self.save()
        return self.whole


def load(path: Path, key: str, count: int) -> Partial:
    """Return what is known of ``count`` samples; UserError for a file of other results."""
    if not path.is_file():
        return Partial(key, [None] * count)
    try:
        part = Partial(**read_json(path))
        AttackChecks().merge(AttackChecks(**part.checks))
        fits = len(part.right) == count and all(r in (True, False, None) for r in part.right)
        if fits and part.seconds >= 0 and isinstance(part.key, str):
            return part if part.key == key else Partial(key, [None] * count)
    except (TypeError, AttributeError):
        pass
    raise UserError(f"'{path}' is no result of an unfinished attack; delete it to attack again")
