"""Baselines on the same engine: one short file each."""

from . import (  # noqa: F401
    advcoop,
    advivlp,
    advmaple,
    advvpt,
    coop,
    fap,
    maple,
    tecoa,
    zsclip,
)
