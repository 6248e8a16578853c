"""What an attack has found so far, on disk, so that an interrupted evaluation resumes."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..attacks import AttackChecks
from ..utils import distributed
from ..utils.io import read_json, write_json


@dataclass
class Partial:
    """Results of an attack, of all processes or of one.

    Attributes:
        key: of the evaluation, see :class:`Progress`.
        right: whether a sample is still right; None, or not in the list: not known yet.
        checks: the fields of :class:`AttackChecks`.
        seconds: wall time, summed over interrupted runs.
    """

    key: str
    right: list[bool | None] = field(default_factory=list)
    checks: dict = field(default_factory=dict)
    seconds: float = 0.0

    def pad(self, count: int) -> None:
        """Extend ``right`` to ``count`` samples."""
        self.right += [None] * (count - len(self.right))

    def unknown(self) -> list[int]:
        """Return the samples that are still to be attacked."""
        return [i for i, right in enumerate(self.right) if right is None]

    def add(self, parts: list[Partial]) -> None:
        """Add what several processes found at the same time; nothing counts twice."""
        took = 0.0
        for part in parts:
            self.pad(len(part.right))
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
        self.path, self.count = folder / f"{key[:16]}.json", count
        self.whole = Partial(**distributed.agree(lambda: asdict(load(self.path, key))))
        self.whole.pad(count)
        self.own = Partial(key, [None] * count)
        self._checks, self._clock = AttackChecks(), time.perf_counter()

    @property
    def known(self) -> int:
        """The number of samples that need no attack any more."""
        return self.count - len(self.whole.unknown())

    def forget(self) -> None:
        """Start again from nothing."""
        self.whole = Partial(self.own.key, [None] * self.count)

    def todo(self, size: int) -> list[int]:
        """Return this process's samples, dealt out in batches of ``size``."""
        return distributed.deal(self.whole.unknown(), size)

    def add(self, samples: list[int], right: list[bool], result, clean) -> None:
        """Note one batch: who is still right, and the attack's result for its self-checks."""
        for sample, still in zip(samples, right, strict=True):
            self.own.right[sample] = still
        self._checks.add(result, clean)
        self.own.checks = asdict(self._checks)

    def save(self) -> None:
        """Write what this process has found."""
        self.own.seconds = time.perf_counter() - self._clock
        write_json(self.path.with_suffix(f".{distributed.rank()}.json"), asdict(self.own))

    def finish(self) -> Partial:
        """Return what all processes have found, and keep it as one file."""
        self.own.seconds = time.perf_counter() - self._clock
        self.whole.add([Partial(**found) for found in distributed.gather(asdict(self.own))])
        if distributed.is_main():
            _keep(self.path, self.whole)
        return self.whole


def load(path: Path, key: str) -> Partial:
    """Return what is known of an evaluation, from however many processes."""
    whole = _read(path, key) or Partial(key)
    if parts := _parts(path):
        whole.add([part for file in parts if (part := _read(file, key))])
        _keep(path, whole)
    return whole


def _read(path: Path, key: str) -> Partial | None:
    if not path.is_file():
        return None
    stored = Partial(**read_json(path))
    return stored if stored.key == key else None


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}.*.json"))


def _keep(path: Path, whole: Partial) -> None:
    """Write what is known as one file, which replaces those of single processes."""
    write_json(path, asdict(whole))
    for part in _parts(path):
        part.unlink()
