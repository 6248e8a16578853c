"""The files of a prompt zoo: what a run learned, as safetensors, with a card that says what it is.

An export is a folder of ``prompts.safetensors`` (the values, and the card with its checksum),
``card.json`` (the same card) and ``card.md`` (the card for people). Reading executes nothing.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from ..backbone import CLIPAdapter
from ..prompting import PromptedCLIP, PromptSpec
from ..utils import io
from ..utils.errors import UserError
from ..utils.text import visible
from .checkpoints import WEIGHTS, load_checkpoint, load_prompts, weights_file

FORMAT = 1
CARD, PAGE = "card.json", "card.md"
TOWER = "visual."  # heads the names of a trained image tower
ADVICE = "fetch it or export it again"
INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)


class Export(NamedTuple):
    """What an export holds: its file, values by name, card, and the prompts it describes."""

    file: Path
    tensors: dict[str, torch.Tensor]
    card: dict
    spec: PromptSpec


def write_export(folder, tensors: dict[str, torch.Tensor], card: dict, page: str) -> bool:
    """Write an export whole; False where an equal one is there, UserError if something else is."""
    folder = Path(folder)
    io.sweep(folder.parent, folder.name)  # a process was killed while another one wrote it
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if (folder / WEIGHTS).is_file() and (there := read_export(folder)).card == card:
            if io.tensors_digest(there.tensors) == io.tensors_digest(tensors):
                return False
        raise UserError(
            f"'{folder}' holds something else already, which is not overwritten; choose another "
            "folder with --out or move that one away"
        )
    parent = io.writable_dir(folder.parent)
    building = io.temporary_next_to(parent / folder.name)
    try:
        building.mkdir()
        metadata = {"card": card, "card_sha256": io.json_digest(card)}
        io.save_tensors(building / WEIGHTS, tensors, metadata)
        io.write_json(building / CARD, card)
        with io.atomic_write(building / PAGE) as temporary:
            temporary.write_text(visible(page), encoding="utf-8")
        building.replace(folder)
    except OSError:
        if not (folder / WEIGHTS).is_file():
            raise
        return write_export(folder, tensors, card, page)  # another process was faster
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return True


def read_export(path) -> Export:
    """Read an export (folder or file); UserError if missing, damaged, altered, foreign or newer."""
    path = Path(path).expanduser()
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"'{path}' is not an export (there is no {WEIGHTS}); give a folder that "
            "'advprompt export' wrote, or a run folder"
        )
    tensors, metadata = io.load_tensors(file, advice=ADVICE)
    card = metadata.get("card")
    if not isinstance(card, dict):
        raise UserError(f"'{file}' is not an export of this project (it has no card); {ADVICE}")
    if metadata.get("card_sha256") != io.json_digest(card):
        raise UserError(f"the card in '{file}' fails its checksum; {ADVICE}")
    copy = file.with_name(CARD)
    if copy.is_file() and io.read_json(copy) != card:
        raise UserError(f"'{copy}' is not the card of '{file.name}' next to it; {ADVICE}")
    return Export(file, tensors, card, _check(card, tensors, file))


def _text(value) -> bool:
    return isinstance(value, str) and value != ""


_REQUIRED: dict[str, Callable[[object], bool]] = {
    "method.trainer": _text,
    "data.classes": lambda v: isinstance(v, list) and len(v) > 0 and all(map(_text, v)),
    "data.template": _text,
    "backbone.name": lambda v: _text(v) and v == portable(v),
    "backbone.weights_sha256": lambda v: _text(v) and re.fullmatch("[0-9a-f]{64}", v) is not None,
    "input.size": lambda v: isinstance(v, list) and [type(n) for n in v] == [int, int],
    "input.interpolation": INTERPOLATIONS.__contains__,
    "prompts.spec": lambda v: isinstance(v, dict),
}


def _check(card: dict, tensors: dict[str, torch.Tensor], file: Path) -> PromptSpec:
    """Refuse a card without what loading needs and values that are not finite."""
    if card.get("format") != FORMAT:
        raise UserError(
            f"'{file}' is of format {card.get('format')!r}, this version reads format {FORMAT}; "
            "take the version of this project that wrote it"
        )
    for name, accepts in _REQUIRED.items():
        value = card
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not accepts(value):
            raise UserError(f"the card in '{file}' has a wrong '{name}'; {ADVICE}")
    for name, value in tensors.items():
        if value.dtype not in DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise UserError(
                f"'{file}' holds '{name}' as {value.dtype}, expected one of {known}; {ADVICE}"
            )
        if not value.isfinite().all():
            raise UserError(f"'{file}' holds values in '{name}' that are not finite; {ADVICE}")
    try:
        return PromptSpec(**card["prompts"]["spec"])
    except (TypeError, UserError) as error:
        raise UserError(f"the card in '{file}' has wrong 'prompts.spec' ({error})") from error


def portable(value):
    """Return a name, or all texts in a JSON value, without folders of the machine it stems from."""
    if isinstance(value, dict):
        return {key: portable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [portable(inner) for inner in value]
    if not isinstance(value, str):
        return value
    value = re.sub(r"file:[^?]*[/\\]", "file:", value)
    return re.sub(r"(^|[=\s])(~|[A-Za-z]:)?[/\\]([^\s,/\\]*[/\\])*", r"\1", value)


def serve(
    clip: CLIPAdapter, classnames: list[str], spec: PromptSpec, tensors: dict, origin
) -> PromptedCLIP:
    """Return CLIP with what a run learned around it; a trained image tower replaces clip's own.

    ``tensors`` have :class:`PromptedCLIP`'s names, those of an image tower ``visual.*``. UserError
    if values of ``origin`` and ``spec`` contradict one another or do not fit ``clip``.
    """
    _check_room(clip, spec, len(classnames), tensors, origin)
    model = PromptedCLIP(clip, classnames, spec)
    tower = {k.removeprefix(TOWER): v for k, v in tensors.items() if k.startswith(TOWER)}
    prompts = {k: v for k, v in tensors.items() if not k.startswith(TOWER)}
    if tower:
        load_prompts(clip.model.visual, tower, origin)
    load_prompts(model, prompts, origin)
    return model.requires_grad_(False).eval()


def _check_room(clip: CLIPAdapter, spec: PromptSpec, classes: int, tensors: dict, origin) -> None:
    """Refuse prompts larger than all values together before any memory is taken for them."""
    sizes = [spec.text * (classes if spec.csc else 1), spec.vision]
    if (spec.refine_text and spec.text_depth > 1) or (spec.refine_vision and spec.vision_depth > 1):
        sizes.append(spec.refiner_ratio)
    width = min(w for w in (clip.text_width, clip.vision_width) if w) if clip.text_width else 1
    if max(sizes) * width > sum(v.numel() for v in tensors.values()):
        raise UserError(
            f"'{origin}' holds fewer values than the prompts of its card take; {ADVICE}"
        )


def read_start(path, method) -> tuple[dict, dict, Path]:
    """Read what a training may start from: an export, a run folder or a checkpoint.

    Returns the facts it must agree on, as in a checkpoint; its values for ``method``; its file.
    """
    file = weights_file(path)
    if file.suffix != ".safetensors":
        state = load_checkpoint(file)
        facts = state.get("advprompt") or {}
        # another trainer's checkpoint is refused by its name, whatever is in it
        own = facts.get("trainer", method.__name__) == method.__name__
        return facts, method.deployed(state["state_dict"]) if own else {}, file
    export = read_export(file)
    facts = {
        "trainer": export.card["method"]["trainer"],
        "weights_sha256": export.card["backbone"]["weights_sha256"],
        "classnames": export.card["data"]["classes"],
    }
    if facts["trainer"] == method.__name__ and (export.spec.text or export.spec.vision):
        facts["prompts"] = method.prompt_facts(export.spec)
    return facts, export.tensors, file
