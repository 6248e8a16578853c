"""CLIP modules from state dicts: through open_clip, or through a fork's own ``clip`` package."""

import contextlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..utils.errors import UserError, nearest
from . import builtin, tokens
from .adapter import CLIP_MEAN, CLIP_STD

PROVIDERS = ("auto", "open_clip", "clip")
# what a fork whose build_model takes design details calls "no prompts in the encoder"
_DEPTHS = ("vision_depth", "language_depth", "vision_ctx", "language_ctx")
NO_DESIGN = {"trainer": "CoOp"} | dict.fromkeys(_DEPTHS, 0)
# stored in OpenAI's archives in addition to the weights
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


@dataclass
class Weights:
    """A state dict and how to make a model of it."""

    state: dict[str, torch.Tensor]
    # state dict -> open_clip model; None: OpenAI's layout with QuickGELU, which all can build
    build: Callable[[dict], nn.Module] | None = None
    tokenizer: Callable[[], object] = tokens.from_open_clip
    mean: tuple = CLIP_MEAN
    std: tuple = CLIP_STD
    interpolation: str = "bicubic"  # of the images that the weights were trained on
    variant: str = ""  # sets apart equal tensors with other activations or attention
    origin: str = "the state dict"  # for messages
    builtin: bool = False  # on builtin.py's modules unless a provider is asked for


def choose_provider(provider: str = "auto") -> str:
    """Resolve ``auto``: open_clip, else ``clip``; UserError for another one, or without both."""
    if provider not in PROVIDERS:
        raise UserError(f"CLIP provider '{provider}' is unknown.{nearest(provider, PROVIDERS)}")
    if provider != "auto":
        return provider
    for package in ("open_clip", "clip"):
        if importlib.util.find_spec(package) is not None:
            return package
    raise UserError("no CLIP code is installed; run 'pip install open_clip_torch'")


def build(weights: Weights, provider: str = "auto") -> tuple[nn.Module, object]:
    """Build model (float32, CPU) and tokenizer; UserError where weights or provider do not fit."""
    asked, provider = provider, choose_provider(provider)
    with torch.random.fork_rng(devices=[]):  # initial values are drawn and thrown away
        if weights.build is not None:
            if provider != "open_clip":
                raise UserError(
                    "only open_clip can build this backbone, but CLIP provider 'clip' was asked "
                    "for; leave the provider at 'auto' and install open_clip_torch"
                )
            return weights.build(weights.state), weights.tokenizer()
        try:
            if provider == "open_clip":
                make = builtin.CLIP if weights.builtin and asked == "auto" else _open_clip
                model = build_openai_layout(weights.state, make, weights.origin)
                return model, weights.tokenizer()
            return build_with_clip(weights.state, weights.origin), tokens.from_clip()
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise UserError(
                f"{weights.origin} holds no CLIP in OpenAI's layout, its tensors contradict one "
                f"another ({why}); choose other weights"
            ) from error


def build_openai_layout(state: dict[str, torch.Tensor], make: Callable, origin: str) -> nn.Module:
    """Build the model of an OpenAI-layout state dict of any width and depth.

    All sizes are read from the tensors; heads are 64 wide and the activation is QuickGELU, as in
    OpenAI's models. Nothing is rounded to half precision.
    """
    state = _full_precision(state)
    text = {
        "context_length": state["positional_embedding"].shape[0],
        "vocab_size": state["token_embedding.weight"].shape[0],
        "width": state["ln_final.weight"].shape[0],
        "layers": _count_blocks(state, "transformer.resblocks."),
    }
    with _Undrawn():
        model = make(state["text_projection"].shape[1], _vision_config(state), text)
    load_strictly(model, state, origin)
    return model.eval()


class _Undrawn(TorchFunctionMode):
    """Modules made within get no random values, whose drawing takes most of the loading time."""

    DRAWS = ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in self.DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _open_clip(embed_dim: int, vision: dict, text: dict) -> nn.Module:
    import open_clip

    text = {**text, "heads": text["width"] // 64}
    return open_clip.CLIP(embed_dim, vision, text, quick_gelu=True)


def _full_precision(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kept = {k: v for k, v in state.items() if k not in NOT_WEIGHTS}
    return {k: v.float() if v.is_floating_point() else v for k, v in kept.items()}


def _vision_config(state: dict[str, torch.Tensor]) -> dict:
    vit = "visual.proj" in state
    positions = state[f"visual.{'' if vit else 'attnpool.'}positional_embedding"]
    grid = round((positions.shape[0] - 1) ** 0.5)
    if vit:
        width, _, _, patch = state["visual.conv1.weight"].shape
        layers, size = _count_blocks(state, "visual.transformer.resblocks."), grid * patch
    else:
        width, patch, size = state["visual.layer1.0.conv1.weight"].shape[0], None, grid * 32
        layers = tuple(_count_blocks(state, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
    return {"layers": layers, "width": width, "patch_size": patch, "image_size": size}


def _count_blocks(state: dict[str, torch.Tensor], prefix: str) -> int:
    return len({k[len(prefix) :].split(".")[0] for k in state if k.startswith(prefix)})


def is_counter(key: str) -> bool:
    """Return True for the number of batches a normalisation has seen; nothing depends on it."""
    return key.endswith("num_batches_tracked")


def misfit(own: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> str:
    """Return in words why ``state`` cannot take the place of the tensors ``own``, else ""."""
    both = [k for k in own if k in state]
    for what, keys in (
        ("lacks tensor", [k for k in own if k not in state and not is_counter(k)]),
        ("has the unknown tensor", [k for k in state if k not in own]),
        ("has another shape for tensor", [k for k in both if own[k].shape != state[k].shape]),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            return f"{what} '{keys[0]}'{more}"
    return ""


def load_strictly(model: nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Load every tensor; UserError for missing or unknown ones, and for other shapes."""
    own = model.state_dict()
    if wrong := misfit(own, state):
        raise UserError(
            f"{origin} {wrong} and so is not of this CLIP architecture; name the right one, e.g. "
            "file:PATH?arch=ViT-B-32, or choose other weights"
        )
    model.load_state_dict(state, strict=False)
    for key in set(own) - set(state):  # batch counters
        own[key].zero_()


def build_with_clip(state: dict[str, torch.Tensor], origin: str) -> nn.Module:
    """Build with ``build_model(sd)`` or ``build_model(sd, design_details)`` of package ``clip``."""
    build_model = _find_build_model()
    state, parameters = _full_precision(state), inspect.signature(build_model).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    design = [dict(NO_DESIGN)] if len(positional) > 1 else []
    model = build_model(dict(state), *design).float()
    # build_model rounds to half precision on its way: put the exact values back
    load_strictly(model, state, origin)
    return model.eval()


def _find_build_model() -> Callable:
    try:
        package = importlib.import_module("clip")
    except ImportError as error:
        raise UserError(
            f"package 'clip' cannot be imported ({error}); install open_clip_torch instead, or "
            "start from a fork that has its own clip folder"
        ) from error
    for name in ("clip.model", "clip.clip"):
        with contextlib.suppress(ImportError, AttributeError):
            return importlib.import_module(name).build_model
    where = getattr(package, "__file__", None) or "unknown place"
    raise UserError(
        f"the installed package 'clip' ({where}) is not OpenAI's CLIP, probably the clipboard tool "
        "of that name; run 'pip uninstall clip' and install open_clip_torch"
    )
