"""Baselines on the same engine: one short file each."""

from . import advivlp, advvpt, coop, defeat, fap, fare, maple, pmgaft, tecoa, tgazsr, zsclip  # noqa: F401
