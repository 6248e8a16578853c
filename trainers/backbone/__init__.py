"""Frozen CLIP backbones: adapters, towers, text features, loading."""

from .adapter import CLIPAdapter
from .features import Prompts, cosine_logits, text_features
from .loading import OPENAI, load_clip, make_adapter
from .tiny import load_tiny_state

__all__ = [
    "OPENAI",
    "CLIPAdapter",
    "Prompts",
    "cosine_logits",
    "load_clip",
    "load_tiny_state",
    "make_adapter",
    "text_features",
]
