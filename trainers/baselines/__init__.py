"""The methods that the four are compared with; importing this package registers them."""

from . import advcoop, advivlp, advmaple, advvpt, coop, fap, maple, tecoa, zsclip  # noqa: F401
