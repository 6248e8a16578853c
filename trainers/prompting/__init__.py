"""Learned prompts around a frozen backbone."""

from .prompted import PromptedCLIP
from .refiner import TokenRefiner
from .spec import PromptSpec

__all__ = ["PromptSpec", "PromptedCLIP", "TokenRefiner"]
