"""Checkpoints of the public code of CoOp, MaPLe, AdvPT, FAP, APT and AdvVPT's group, by our names.

Their Dassl trainers save a prompt learner (CoOp, AdvPT, APT) or the whole model (the others). Such
a file shows number, depth and coupling of the prompts, and the embeddings of the words around the
vectors; what it does not show is how they were trained and where the class name stands.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from ..backbone.adapter import CLIPAdapter
from ..prompting import PromptSpec, templates
from ..prompting.frame import context_words, prompt_layout
from ..utils.errors import UserError

FOLDERS = ("prompt_learner", "MultiModalPromptLearner", "VLPromptLearner")  # in a run
MARKS = ("token_prefix", "prompt_learner.", "image_encoder.")  # start names that only theirs have
VECTORS = (  # their names without "prompt_learner." -> ours, and the layer of the first
    (r"ctx()", "text_prompts", 0),
    (r"compound_prompts_text\.(\d+)", "text_prompts", 1),
    (r"text_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow", "text_prompts", 0),
    (r"compound_prompts_image\.(\d+)", "vision_prompts", 0),
    (r"image_encoder\.VPT()", "vision_prompts", 0),
    (r"image_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow", "vision_prompts", 0),
)
SERVED_BY = {  # text vectors, visual ones, coupling -> our trainers of that model
    (True, False, "none"): ("CoOp", "AdvPT", "AdvCoOp"),
    (False, True, "none"): ("AdvVPT",),
    (True, True, "none"): ("AdvIVLP",),
    (True, True, "text_to_vision"): ("MaPLe", "AdvMaPLe"),
    (True, True, "vision_to_text"): ("FAP",),
}
WORDS = "a photo of a"  # that the vectors start from in the public configurations
CLOSE = {"atol": 1e-3, "rtol": 1e-2}  # CLIP's values in half precision


class Released(NamedTuple):
    """What a file of the public code says besides the values of its prompts.

    Attributes:
        spec: the prompts, without the words that follow the text vectors.
        start: (K, 1, d_t) embedding of the start token; None where there are no text vectors.
        rest: (K, L, d_t) embeddings of what follows the vectors, of the K classes in training.
        clip: tensors of the CLIP inside, by OpenAI's names; none in a prompt learner.
        epoch: how many were done; None: unknown.
        widths: of text and visual vectors; 0 where there are none.
    """

    spec: PromptSpec
    start: Tensor | None
    rest: Tensor | None
    clip: dict[str, Tensor]
    epoch: int | None
    widths: tuple[int, int]

    @property
    def kind(self) -> tuple[bool, bool, str]:
        return kind_of(self.spec)


def kind_of(spec: PromptSpec) -> tuple[bool, bool, str]:
    """Return which towers have vectors, and which are made from which."""
    return spec.text > 0, spec.vision > 0, spec.coupling


def is_released(weights: dict) -> bool:
    """Return True if a state dict has names that only the public code gives."""
    return any(name.startswith(MARKS) for name in weights)


def convert(weights: dict[str, Tensor], epoch, path) -> tuple[dict[str, Tensor], Released]:
    """Return a state dict of the public code by :class:`PromptedCLIP`'s names, and what it is.

    Raises:
        UserError: it holds something else than their prompts around CLIP, or only a part of them.
    """
    vectors: dict[str, dict[int, Tensor]] = {"text_prompts": {}, "vision_prompts": {}}
    found, clip, around = {}, {}, {}
    for name, value in weights.items():
        bare, value = name.removeprefix("prompt_learner."), value.float()
        layer = _layer(bare)
        if layer is not None:
            vectors[layer[0]][layer[1]] = value
        elif own := _projection(bare):
            found[own] = value
        elif bare in ("token_prefix", "token_suffix"):
            around[bare] = value
        elif bare == "logit_scale" or bare.startswith(("image_encoder.", "text_encoder.")):
            bare = bare.replace("image_encoder.", "visual.").removeprefix("text_encoder.")
            clip[bare] = value
        else:
            known = ", ".join(sorted({name for names in SERVED_BY.values() for name in names}))
            raise UserError(
                f"checkpoint '{path}' is foreign: it has {name!r}, which no public code that is "
                f"read here saves; the prompts of {known} are"
            )
    for own, layers in vectors.items():
        shapes = {value.shape for value in layers.values()}
        flat = all(len(shape) == 2 or (own, len(shape)) == ("text_prompts", 3) for shape in shapes)
        if sorted(layers) != list(range(len(layers))) or len(shapes) > 1 or not flat:
            raise UserError(
                f"checkpoint '{path}' is damaged: its {own.replace('_', ' ')} are of layers "
                f"{sorted(layers)} with shapes {sorted(map(tuple, shapes))}; fetch it again"
            )
        if layers:
            found[own] = torch.stack([layers[i] for i in range(len(layers))])
    spec = _spec(found, path)
    if spec.text and len(around) < 2:
        raise UserError(
            f"checkpoint '{path}' has no 'token_prefix' or no 'token_suffix', so the words around "
            "its vectors are unknown; use the file as the public code saved it"
        )
    start, rest = around.get("token_prefix"), around.get("token_suffix")
    linear, visual = found.get("projections.0.weight"), found.get("vision_prompts")
    wide = [
        0 if value is None else value.shape[-1] for value in (found.get("text_prompts"), visual)
    ]
    widths = (wide[0], wide[1] if linear is None else len(linear))
    return found, Released(spec, start, rest, clip, epoch, widths)


def _layer(name: str) -> tuple[str, int] | None:
    """Return to which of our prompts, and to which layer, a name belongs."""
    for pattern, own, first in VECTORS:
        if match := re.fullmatch(pattern, name):
            return own, first + int(match[1] or 0)
    return None


def _projection(name: str) -> str:
    """Return our name of a projection's tensor; "" if it is none."""
    if match := re.fullmatch(r"(?:proj|compound_prompt_projections\.(\d+))\.(weight|bias)", name):
        return f"projections.{int(match[1]) + 1 if match[1] else 0}.{match[2]}"
    return ""


def _spec(tensors: dict[str, Tensor], path) -> PromptSpec:
    text, vision = tensors.get("text_prompts"), tensors.get("vision_prompts")
    made = sum(name.endswith(".weight") for name in tensors)  # projections
    layers = [0 if value is None else len(value) for value in (text, vision)]
    count = [0 if value is None else value.shape[-2] for value in (text, vision)]
    whole = made in (0, sum(layers)) and (made == 0 or layers[0] > 0)
    if not whole or (text is None and vision is None):
        raise UserError(
            f"checkpoint '{path}' is damaged: it has {layers[0]} layers of text vectors, "
            f"{layers[1]} of visual ones and {made} projections; fetch it again"
        )
    if made:
        coupling = {"coupling": "text_to_vision"}
        if vision is not None:  # the deeper layers'
            coupling = {"coupling": "vision_to_text", "first_coupling": "text_to_vision"}
        depths = {"text_depth": made, "vision_depth": made}
        return PromptSpec(text=count[0], vision=count[0], **depths, **coupling)
    depths = {"text_depth": max(1, layers[0]), "vision_depth": max(1, layers[1])}
    csc = text is not None and text.dim() == 4
    return PromptSpec(text=count[0], vision=count[1], **depths, csc=csc)


def fit(trainer, theirs: Released, path) -> None:
    """Have a trainer serve what a file of the public code holds.

    Args:
        trainer: a :class:`.tuning.PromptTrainer` without the file's values.

    Raises:
        UserError: the file is of another trainer, backbone, number or depth of prompts, of other
            words around them or, if they are class-specific, of other classes.
    """
    name, spec = type(trainer).__name__, trainer.spec or PromptSpec()
    check_kind(theirs, spec, name, path)
    check_clip(theirs, trainer.clip, path)
    own = theirs.spec
    file, mine = (
        {
            "N_CTX": prompts.text or prompts.vision,
            "PROMPT_DEPTH": prompts.text_depth if prompts.text else prompts.vision_depth,
            "CSC": prompts.csc,
        }
        for prompts in (own, spec)
    )
    differ = [key for key in file if file[key] != mine[key]]
    unequal = (own.text, own.text_depth) != (own.vision, own.vision_depth)
    if (own.text and own.vision and unequal) or not all(key in trainer.keys for key in differ):
        raise UserError(
            f"checkpoint '{path}' has {own.text} text vectors in {own.text_depth} layers and "
            f"{own.vision} visual ones in {own.vision_depth}, which no setting of {name} says; "
            "open it with advprompt.load and test it with advprompt.evaluate"
        )
    if differ:
        words = " ".join(f"TRAINER.{trainer.node}.{key} {file[key]}" for key in differ)
        raise UserError(
            f"checkpoint '{path}' was trained with other prompts than this configuration has; end "
            f"the command line with {words}"
        )
    trainer.use_public_text(own)
    check_text(theirs, trainer.spec, trainer.clip, trainer.classnames, path)


def check_kind(theirs: Released, spec: PromptSpec, name: str, path) -> None:
    """Refuse a file of a trainer with other prompts than trainer ``name``, whose are ``spec``.

    Raises:
        UserError: naming the trainers that serve it.
    """
    served = SERVED_BY[theirs.kind]
    known = {trainer for names in SERVED_BY.values() for trainer in names}
    if theirs.kind != kind_of(spec) or (name in known and name not in served):
        raise UserError(
            f"checkpoint '{path}' holds the prompts of {' or '.join(served)}, not of {name}; give "
            f"{served[0]} as the trainer"
        )


def check_clip(theirs: Released, clip: CLIPAdapter, path) -> None:
    """Refuse a CLIP other than the one that the file was trained around.

    Raises:
        UserError: another width, too few blocks, or other values of what of CLIP is in the file.
    """
    own, state = theirs.spec, clip.model.state_dict()
    sizes = {
        "width of the text vectors": (theirs.widths[0], clip.text_width),
        "width of the visual vectors": (theirs.widths[1], clip.vision_width),
    }
    for what, (file, here) in sizes.items():
        if file and file != here:
            raise UserError(
                f"checkpoint '{path}' has {file} as the {what}, but backbone {clip.name} has "
                f"{here}; give the backbone that it was trained with"
            )
    for tower, depth, layers in (
        ("text", own.text_depth, clip.text_layers),
        ("image", own.vision_depth, clip.vision_layers),
    ):
        if layers and depth > layers:
            raise UserError(
                f"checkpoint '{path}' has prompts for {depth} layers, but the {tower} tower of "
                f"backbone {clip.name} has {layers}; give the backbone that it was trained with"
            )
    mine = dict(theirs.clip)
    if theirs.start is not None:
        state["start token"] = clip.embed_tokens(torch.tensor([clip.tokenizer.start]))
        mine["start token"] = theirs.start[:1]
    for name in mine.keys() & state.keys():
        if not _close(mine[name], state[name]):
            raise UserError(
                f"checkpoint '{path}' was trained around another CLIP than backbone {clip.name}: "
                f"its {name} differs; give the weights that it was trained with"
            )


def _close(mine: Tensor, theirs: Tensor) -> bool:
    same = mine.shape == theirs.shape
    return same and torch.allclose(mine.cpu().float(), theirs.cpu().float(), **CLOSE)


def words_after(theirs: Released, clip: CLIPAdapter) -> str:
    """Return the text whose further words follow the vectors in the file; "" if none is known."""
    known = (WORDS, *templates.TEMPLATES.values())
    texts = [text for text in known if _follows(text, theirs, clip)]
    return max(texts, key=lambda text: len(context_words(clip, text)), default="")


def _spare(text: str, theirs: Released, clip: CLIPAdapter) -> list[int]:
    return context_words(clip, text)[theirs.spec.text :]


def _follows(text: str, theirs: Released, clip: CLIPAdapter) -> bool:
    """Return True if further words of ``text`` follow the vectors in every class of the file."""
    ids, rest = _spare(text, theirs, clip), theirs.rest
    if not ids or rest is None:
        return False
    words = clip.embed_tokens(torch.tensor([ids])).expand(len(rest), -1, -1)  # (K, n, d_t)
    return _close(words, rest[:, : len(ids)])


def check_text(theirs: Released, spec: PromptSpec, clip: CLIPAdapter, names, path) -> None:
    """Compare the text around the vectors with that of ``spec`` and the class names.

    Raises:
        UserError: other words follow the vectors, or class-specific ones are of other classes.
    """
    if not spec.text:
        return
    found, ids = words_after(theirs, clip), _spare(spec.text_init, theirs, clip)
    same = _spare(found, theirs, clip) == ids or _follows(spec.text_init, theirs, clip)
    if not same and "{}" not in spec.text_init:  # FAP's are those of the data set that is tested
        raise UserError(
            f"checkpoint '{path}' was trained with the words of '{found}' around its vectors, not "
            f"with those of CTX_INIT '{spec.text_init}'; set CTX_INIT to the words in training"
        )
    if not spec.csc:
        return
    rows = prompt_layout(list(names), clip, spec.text, "end", ids)[:, 1 + spec.text :]
    rest = theirs.rest[:, : rows.shape[1]]
    if len(rest) != len(rows) or not _close(clip.embed_tokens(rows), rest):
        raise UserError(
            f"checkpoint '{path}' has class-specific vectors of {len(rest)} classes, and they are "
            f"not these {len(rows)} ({', '.join(names[:3])}, ...), in this order; use the data "
            "set that it was trained on"
        )
