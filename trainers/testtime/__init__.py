"""Test-time defences: models that adapt to every image they are shown.

``TESTTIME.NAME`` wraps one around any model; an input defence stands in front of both. Attacks see
it as they see an input defence: not at all, or with every step of theirs going through it.
"""

from __future__ import annotations

from ..config import keys as config
from ..config.keys import Key
from ..defences.base import Defence
from . import ensemble, et3, mta, rtpt, sstpt, tpt, ttc  # noqa: F401  register themselves
from .base import METHODS, TestTime

__all__ = ["METHODS", "Behind", "TestTime", "extend_cfg", "with_testtime"]


class Behind(Defence):
    """A test-time defence behind an input defence."""

    on_logits = True

    def __init__(self, first: Defence, then: TestTime):
        self.first, self.then, self.copies = first, then, then.copies
        self.random = first.random or then.random

    def describe(self):
        inner = self.then.describe()
        return self.first.describe() | {"then": inner.pop("name")} | inner

    def answer(self, forward, images, seeds, *, attack=False):
        purify = self.first.straight_through if attack else self.first
        return self.then.answer(forward, purify(images, seeds), seeds, attack=attack)


def extend_cfg(cfg) -> None:
    """Add the keys of ``TESTTIME``; each method's stand beside it."""
    name = Key("", "a test-time defence; empty: none", choices=lambda: ("", *METHODS))
    config.add_defaults(cfg, "TESTTIME", NAME=name)
    for method in METHODS.values():
        config.add_defaults(cfg, f"TESTTIME.{method.name.upper()}", **method.keys)


def with_testtime(cfg, victim, defence: Defence | None) -> Defence | None:
    """Put the test-time defence that ``cfg`` names behind an input defence, around ``victim``.

    Raises:
        UserError: the model lacks what the method needs.
    """
    name = cfg.TESTTIME.NAME
    if not name:
        return defence
    node = cfg.TESTTIME[name.upper()]
    method = METHODS[name](victim, **{key.lower(): node[key] for key in METHODS[name].keys})
    return Behind(defence, method) if defence else method


def _check(cfg) -> None:
    config.KEYS["TESTTIME.NAME"].read("TESTTIME.NAME", cfg.TESTTIME.NAME)


config.section("TESTTIME", extend_cfg, _check)
