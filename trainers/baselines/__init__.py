"""Baselines on the same engine: one short file each."""

from . import advivlp, advvpt, coop, fap, maple, tecoa, zsclip  # noqa: F401
