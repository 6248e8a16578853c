"""What an attack has found so far, on disk, so that an interrupted evaluation resumes."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..attacks import AttackChecks
from ..utils import distributed
from ..utils.errors import UserError
from ..utils.io import read_json, write_json


@dataclass
class Partial:
    """Results of an attack, of all processes or of one.

    Attributes:
        key: of the evaluation, see :class:`Progress`.
        right: whether each sample is still right; None: not known yet.
        checks: the fields of :class:`AttackChecks`.
        seconds: wall time, summed over interrupted runs.
    """

    key: str
    right: list[bool | None]
    checks: dict = field(default_factory=dict)
    seconds: float = 0.0

    def unknown(self) -> list[int]:
        """Return the samples that are still to be attacked."""
        return [i for i, right in enumerate(self.right) if right is None]

    def add(self, parts: list[Partial]) -> None:
        """Add what several processes found at the same time; nothing counts twice."""
        took = 0.0
        for part in parts:
            found = {i: right for i, right in enumerate(part.right) if right is not None}
            if not found or any(self.right[i] is not None for i in found):
                continue
            for i, right in found.items():
                self.right[i] = right
            checks = AttackChecks(**self.checks)
            checks.merge(AttackChecks(**part.checks))
            self.checks, took = asdict(checks), max(took, part.seconds)
        self.seconds += took


class Progress:
    """The progress of one attack on ``count`` samples.

    Every process keeps what it finds in FOLDER/KEY.RANK.json; these files become FOLDER/KEY.json
    in the end, or when the attack starts again.

    Args:
        key: hex digest of everything the evaluation depends on; another one is never continued.
    """

    def __init__(self, folder: Path, key: str, count: int):
        self.path, self._nothing = folder / f"{key[:16]}.json", Partial(key, [None] * count)
        self.whole = Partial(**distributed.agree(lambda: asdict(load(self.path, self._nothing))))
        self.own = copy.deepcopy(self._nothing)
        self._checks, self._clock = AttackChecks(), time.perf_counter()

    def known(self) -> int:
        """Return the number of samples that are attacked already."""
        return len(self.whole.right) - len(self.whole.unknown())

    def forget(self) -> None:
        """Start again from nothing."""
        self.whole = copy.deepcopy(self._nothing)

    def todo(self, size: int) -> list[int]:
        """Return this process's samples, dealt out in batches of ``size``."""
        return distributed.deal(self.whole.unknown(), size)

    def add(self, samples: list[int], right: list[bool], result, clean, again=None) -> None:
        """Note one batch: who is still right, and the attack's result for its self-checks.

        Args:
            again: how many are right by other answers to the same images.
        """
        for sample, still in zip(samples, right, strict=True):
            self.own.right[sample] = still
        self._checks.add(result, clean)
        self._checks.merge(AttackChecks(again=again or {}))
        self.own.checks = asdict(self._checks)
        self.own.seconds = time.perf_counter() - self._clock

    def save(self) -> None:
        """Write what this process has found."""
        write_json(self.path.with_suffix(f".{distributed.rank()}.json"), asdict(self.own))

    def finish(self) -> Partial:
        """Return what all processes have found, and keep it as one file."""
        self.whole.add([Partial(**found) for found in distributed.gather(asdict(self.own))])
        if distributed.is_main():
            _keep(self.path, self.whole)
        return self.whole


def load(path: Path, nothing: Partial) -> Partial:
    """Return what is known of an evaluation, from however many processes, or ``nothing``."""
    files = [path] if path.is_file() else []
    parts = sorted(path.parent.glob(f"{path.stem}.*.json"))
    found = [_read(file, len(nothing.right)) for file in (*files, *parts)]
    whole = copy.deepcopy(nothing)
    for group in (found[: len(files)], found[len(files) :]):
        whole.add([part for part in group if part.key == nothing.key])
    if parts:
        _keep(path, whole)
    return whole


def _read(path: Path, count: int) -> Partial:
    """Read one file.

    Raises:
        UserError: it does not hold the results of ``count`` samples.
    """
    try:
        part = Partial(**read_json(path))
        AttackChecks().merge(AttackChecks(**part.checks))
        fits = len(part.right) == count and all(r in (True, False, None) for r in part.right)
        if fits and part.seconds >= 0 and isinstance(part.key, str):
            return part
    except (TypeError, AttributeError):
        pass
    raise UserError(f"'{path}' is no result of an unfinished attack; delete it to attack again")


def _keep(path: Path, whole: Partial) -> None:
    """Write what is known as one file, which replaces those of single processes."""
    write_json(path, asdict(whole))
    for part in path.parent.glob(f"{path.stem}.*.json"):
        part.unlink()
