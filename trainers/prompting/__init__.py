"""Learned prompts around a frozen backbone."""

from .learner import PromptLearner
from .prompted import PromptedCLIP
from .prompts import PromptSpec
from .refiner import TokenRefiner

__all__ = ["PromptLearner", "PromptSpec", "PromptedCLIP", "TokenRefiner"]
