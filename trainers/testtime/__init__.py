"""Test-time defences: models that adapt to every image they are shown.

``TESTTIME.NAME`` wraps one around any model; an input defence stands in front of both. Attacks see
it as they see an input defence: not at all, or with every step of theirs going through it.
"""

from ..config import keys as config
from ..config.keys import Key
from ..defences.base import Defence
from ..utils.errors import UserError
from . import ensemble, et3, mta, rtpt, sstpt, tpt, ttc  # noqa: F401  register themselves
from .base import METHODS, TestTime
from .ensemble import OfViews

__all__ = ["METHODS", "Behind", "TestTime", "extend_cfg", "with_testtime"]


class Behind(Defence):
    """A test-time defence behind an input defence."""

    on_logits = True

    def __init__(self, first: Defence, then: TestTime):
        self.first, self.then, self.copies = first, then, then.copies
        self.random, self.passes = first.random or then.random, then.passes

    def describe(self):
        return self.then.describe() | {"behind": self.first.describe()}

    def answer(self, forward, images, seeds, *, attack=False):
        purify = self.first.straight_through if attack else self.first
        return self.then.answer(forward, purify(images, seeds), seeds, attack=attack)

    def averaged(self, forward, images, seeds):
        return self.then.averaged(forward, self.first(images, seeds), seeds)


def extend_cfg(cfg) -> None:
    """Add the keys of ``TESTTIME``; each method's stand beside it."""
    config.add_defaults(
        cfg,
        "TESTTIME",
        NAME=Key("", "a test-time defence; empty: none", choices=lambda: ("", *METHODS)),
        VIEWS=Key(0, "of an image, with itself; 0: the method's own, 64, sstpt 16", 0, 4096),
        SCALE=Key(0.08, "least area of a view's crop (torchvision's)", 0.01, 1),
        AUGMIX=Key(True, "mix a crop with changed ones (R-TPT's code, but for ImageNet)"),
    )
    for method in METHODS.values():
        if method.keys:
            config.add_defaults(cfg, f"TESTTIME.{method.name.upper()}", **method.keys)


def with_testtime(cfg, victim, defence: Defence | None) -> Defence | None:
    """Put the test-time defence that ``cfg`` names behind an input defence, around ``victim``.

    UserError if the model lacks what the method needs.
    """
    if not (name := cfg.TESTTIME.NAME):
        return defence
    method, node = METHODS[name], cfg.TESTTIME.get(name.upper(), {})
    values = {key.lower(): node[key] for key in method.keys}
    if issubclass(method, OfViews):
        values["views"] = cfg.TESTTIME.VIEWS or method.count
        values |= {"scale": cfg.TESTTIME.SCALE, "augmix": cfg.TESTTIME.AUGMIX}
    made = method(victim, **values)
    return Behind(defence, made) if defence else made


def _check(cfg) -> None:
    if cfg.TESTTIME.VIEWS == 1:
        raise UserError(
            "TESTTIME.VIEWS is 1, the image alone; give 2 or more, or 0 for the method's"
        )


config.section("TESTTIME", extend_cfg, _check)
