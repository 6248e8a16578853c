"""Frozen CLIP backbones and learned prompts around them."""

from .adapter import CLIPAdapter
from .features import Prompts, text_features
from .learner import PromptLearner
from .loading import OPENAI, load_clip, make_adapter
from .prompted import PromptedCLIP
from .prompts import PromptSpec
from .refiner import TokenRefiner
from .tiny import expand_tiny, load_tiny_state

__all__ = [
    "OPENAI",
    "CLIPAdapter",
    "PromptLearner",
    "PromptSpec",
    "PromptedCLIP",
    "Prompts",
    "TokenRefiner",
    "expand_tiny",
    "load_clip",
    "load_tiny_state",
    "make_adapter",
    "text_features",
]
