"""Checkpoints of the public code of CoOp, MaPLe, AdvPT, FAP, APT and AdvVPT's group, by our names.

Their trainers save a prompt learner (CoOp, AdvPT, APT) or the whole model (the others). Such a file
shows number, depth and coupling of the prompts and the embeddings of the words around them, but
neither how they were trained nor where the class name stands.
"""

import re
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor

from ..backbone.adapter import CLIPAdapter
from ..prompting import PromptSpec, templates
from ..prompting.frame import context_words, prompt_layout
from ..utils.errors import UserError
from ..utils.io import sha256_file

FOLDERS = ("prompt_learner", "MultiModalPromptLearner", "VLPromptLearner")  # in a run
MARKS = ("token_prefix", "prompt_learner.", "image_encoder.")  # start names that only theirs have
NAMES = (  # without "prompt_learner." -> ours, and the number of the first layer
    (r"ctx", "text_prompts", 0),
    (r"compound_prompts_text\.(?P<i>\d+)", "text_prompts", 1),
    (r"text_encoder\.transformer\.resblocks\.(?P<i>\d+)\.VPT_shallow", "text_prompts", 0),
    (r"compound_prompts_image\.(?P<i>\d+)", "vision_prompts", 0),
    (r"image_encoder\.VPT", "vision_prompts", 0),
    (r"image_encoder\.transformer\.resblocks\.(?P<i>\d+)\.VPT_shallow", "vision_prompts", 0),
    (r"proj\.(?P<part>weight|bias)", "projections", 0),
    (r"compound_prompt_projections\.(?P<i>\d+)\.(?P<part>weight|bias)", "projections", 1),
    (r"token_(?P<part>prefix|suffix)", "around", 0),
    (r"image_encoder\.(?P<part>.+)", "visual", 0),
    (r"text_encoder\.(?P<part>.+)", "clip", 0),
    (r"(?P<part>logit_scale)", "clip", 0),
)
SERVED_BY = {  # text vectors, visual ones, coupling -> our trainers of that model
    (True, False, "none"): ("CoOp", "AdvPT", "AdvCoOp"),
    (False, True, "none"): ("AdvVPT",),
    (True, True, "none"): ("AdvIVLP",),
    (True, True, "text_to_vision"): ("MaPLe", "AdvMaPLe"),
    (True, True, "vision_to_text"): ("FAP",),
}
WORDS = "a photo of a"  # that the vectors start from in the public configurations


class Released(NamedTuple):
    """What a file of public code says besides the values of its prompts."""

    spec: PromptSpec  # without the words after the vectors
    around: dict[str, Tensor]  # embeddings (K, L, d_t) before and after them, K classes in training
    clip: dict[str, Tensor]  # values of CLIP, if they are inside
    epoch: int | None


def convert(state: dict, path) -> dict | None:
    """Return a checkpoint by :class:`PromptedCLIP`'s names, with ``released``; None if it is ours.

    UserError if it holds something else than their prompts around CLIP, or a part of them.
    """
    if not any(name.startswith(MARKS) for name in state["state_dict"]):
        return None
    placed: dict[str, dict] = {own: {} for _, own, _ in NAMES}
    for name, value in state["state_dict"].items():
        bare = name.removeprefix("prompt_learner.")
        found = ((re.fullmatch(pattern, bare), own, first) for pattern, own, first in NAMES)
        match, own, first = next((one for one in found if one[0]), (None, "", 0))
        if match is None:
            raise UserError(f"checkpoint '{path}' is foreign: it has {name!r}; use another file")
        part = match.groupdict()
        layer = first + int(part.get("i") or 0)
        place = f"{layer}.{part['part']}" if own == "projections" else part.get("part") or layer
        placed[own][place] = value.float()
    tensors = {f"projections.{name}": value for name, value in placed["projections"].items()}
    try:
        for own in ("text_prompts", "vision_prompts"):
            if layers := placed[own]:
                tensors[own] = torch.stack([layers[i] for i in range(len(layers))])
        spec = _spec(tensors)
        if spec.text and len(placed["around"]) < 2 or _kind(spec) not in SERVED_BY:
            raise ValueError("prompts, token_prefix or token_suffix are missing")
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        why = f"layer {error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"checkpoint '{path}' is damaged ({why}); fetch it again") from error
    clip = placed["clip"] | {f"visual.{name}": value for name, value in placed["visual"].items()}
    what = Released(spec, placed["around"], clip, state.get("epoch"))
    return {"state_dict": tensors, "epoch": what.epoch, "released": what}


def _kind(spec: PromptSpec) -> tuple[bool, bool, str]:
    return spec.text > 0, spec.vision > 0, spec.coupling


def _spec(tensors: dict[str, Tensor]) -> PromptSpec:
    text, vision = tensors.get("text_prompts"), tensors.get("vision_prompts")
    facts = {} if text is None else {"text": text.shape[-2], "text_depth": len(text)}
    if vision is not None:
        facts |= {"vision": vision.shape[-2], "vision_depth": len(vision)}
    if made := sum(name.endswith("weight") for name in tensors):  # the other tower's, by a Linear
        facts["text_depth"] = facts["vision_depth"] = made
        facts["coupling"] = "text_to_vision"
        if vision is not None:
            facts |= {"coupling": "vision_to_text", "first_coupling": "text_to_vision"}
        facts["vision"] = facts.get("text", 0)
    return PromptSpec(**facts, csc=text is not None and text.dim() == 4)


def fit(trainer, theirs: Released, path) -> dict:
    """Have a :class:`.tuning.PromptTrainer` serve a file; return what its record says of it.

    UserError for other prompts, words around them or backbone, or other classes of specific ones.
    """
    name, own, spec = type(trainer).__name__, theirs.spec, trainer.spec or PromptSpec()
    check_model(theirs, spec, name, trainer.clip, path)
    differ = {k: v for k, v in _settings(own).items() if v != _settings(spec)[k]}
    words = " ".join(f"TRAINER.{trainer.node}.{key} {value}" for key, value in differ.items())
    advice = f"end the command line with {words}"
    unequal = (own.text, own.text_depth) != (own.vision, own.vision_depth)
    if unequal and own.text and own.vision or not trainer.keys.keys() >= differ.keys():
        advice = "no setting says them; use advprompt.load and advprompt.evaluate"
    elif not differ:
        trainer.use_public_text(own)
        check_text(theirs, trainer.spec, trainer.clip, trainer.classnames, path)
        facts = {"SHA256": sha256_file(path), "EPOCH": theirs.epoch}
        facts |= {"PROMPTS": asdict(trainer.spec)}
        return {f"MODEL.RELEASED_{key}": value for key, value in facts.items()}
    raise UserError(
        f"checkpoint '{path}' has {own.text} text and {own.vision} visual vectors in "
        f"{own.text_depth} and {own.vision_depth} layers, unlike this configuration; {advice}"
    )


def _settings(spec: PromptSpec) -> dict:
    depth = spec.text_depth if spec.text else spec.vision_depth
    return {"N_CTX": spec.text or spec.vision, "PROMPT_DEPTH": depth, "CSC": spec.csc}


def check_model(theirs: Released, spec: PromptSpec, name: str, clip: CLIPAdapter, path) -> None:
    """Refuse prompts of another kind than trainer ``name``'s ``spec``, or around another CLIP."""
    served = SERVED_BY[_kind(theirs.spec)]
    if name not in served and (spec is theirs.spec or _kind(theirs.spec) != _kind(spec)):
        raise UserError(
            f"checkpoint '{path}' holds the prompts of {' or '.join(served)}, not of {name}; give "
            f"{served[0]} as the trainer"
        )
    file, here = dict(theirs.clip), clip.model.state_dict()
    if "prefix" in theirs.around:
        file["start token"] = theirs.around["prefix"][:1]
        here["start token"] = clip.embed_tokens(torch.tensor([clip.tokenizer.start]))
    for name in sorted(file.keys() & here.keys()):
        if not _close(file[name], here[name]):
            raise UserError(
                f"checkpoint '{path}' was trained around another CLIP than backbone {clip.name}: "
                f"its {name} differs; give the weights that it was trained with"
            )


def _close(theirs: Tensor, mine: Tensor) -> bool:
    """Return True if values agree as far as half precision keeps them."""
    same, mine = theirs.shape == mine.shape, mine.float().to(theirs.device)
    return same and torch.allclose(theirs, mine, atol=1e-3, rtol=1e-2)


def words_after(theirs: Released, clip: CLIPAdapter) -> str:
    """Return the text whose further words follow the vectors in the file; "" if none is known."""
    known = (WORDS, *templates.TEMPLATES.values())
    texts = [text for text in known if _follow(_spare(text, theirs, clip), theirs, clip)]
    return max(texts, key=lambda text: len(context_words(clip, text)), default="")


def _spare(text: str, theirs: Released, clip: CLIPAdapter) -> list[int]:
    return context_words(clip, text)[theirs.spec.text :]


def _follow(ids: list[int], theirs: Released, clip: CLIPAdapter) -> bool:
    """Return True if these words follow the vectors in every class of the file."""
    if not ids or "suffix" not in theirs.around:
        return False
    rest = theirs.around["suffix"][:, : len(ids)]
    return _close(rest, clip.embed_tokens(torch.tensor([ids])).expand(len(rest), -1, -1))


def check_text(theirs: Released, spec: PromptSpec, clip: CLIPAdapter, names, path) -> None:
    """Refuse other words after the vectors than ``spec`` has, and class-specific ones of others."""
    if not spec.text:
        return
    found, ids = words_after(theirs, clip), _spare(spec.text_init, theirs, clip)
    same = _spare(found, theirs, clip) == ids or _follow(ids, theirs, clip)
    if not same and "{}" not in spec.text_init:  # FAP's are those of the data set that is tested
        raise UserError(
            f"checkpoint '{path}' was trained with the words of '{found}' around its vectors, not "
            f"with those of CTX_INIT '{spec.text_init}'; set CTX_INIT to the words in training"
        )
    rows = prompt_layout(list(names), clip, spec.text, "end", ids)[:, 1 + spec.text :]
    rest = theirs.around["suffix"][:, : rows.shape[1]]
    if spec.csc and not _close(rest, clip.embed_tokens(rows)):
        raise UserError(
            f"checkpoint '{path}' has vectors of its own {len(rest)} classes, not of these "
            f"{len(rows)} in this order; use the data set that it was trained on"
        )
