"""Models of open_clip by the name of their architecture: weights, image statistics, tokenizer."""

import logging
import warnings
from pathlib import Path

import torch

from ..config.declared import Key
from ..utils.errors import UserError, nearest
from ..utils.io import json_digest, read_json
from . import tokens
from .adapter import CLIP_MEAN, CLIP_STD
from .providers import Weights, load_strictly
from .weights_files import read_checkpoint

RANDOM = "random"  # the tag of untrained weights
OPENAI_TAG = "openai"  # OpenAI's own files, built with their activation whatever the architecture
UNTRAINED = {"pretrained_image": False, "pretrained_text": False}
FOLDER_CONFIG = "open_clip_config.json"
STATED = {  # in it, of the images
    "mean": Key([0.5] * 3, count=3),
    "std": Key([0.5] * 3, least=1e-6, count=3),
    "interpolation": Key("bicubic"),
}
# how open_clip's folders on the Hugging Face hub call their weights
_FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin", "pytorch_model.pt")
FOLDER_WEIGHTS = tuple(f"open_clip_{name}" for name in _FILES)


def _open_clip():
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            f"open_clip is needed for this backbone but cannot be imported ({error}); run "
            "'pip install open_clip_torch'"
        ) from error
    return open_clip


def check_architecture(arch: str) -> None:
    """Refuse an architecture that open_clip does not know."""
    choices = _open_clip().list_models()
    if arch not in choices:
        raise UserError(f"open_clip has no architecture '{arch}'.{nearest(arch, choices)}")


def check_open_clip(name: str) -> tuple[str, str]:
    """Return architecture and tag of ``ARCH/TAG``; nothing is loaded.

    UserError if open_clip is missing, knows no such weights, or the weights were trained with
    QuickGELU, for which the architecture has a sibling.
    """
    arch, _, tag = name.partition("?")[0].partition("/")
    check_architecture(arch)
    if tag == RANDOM:
        return arch, tag
    check_tag(arch, tag)
    open_clip, sibling = _open_clip(), f"{arch}-quickgelu"
    quick = open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu", False)
    fits = not quick or tag == OPENAI_TAG or open_clip.get_model_config(arch).get("quick_gelu")
    if not fits and tag in open_clip.list_pretrained_tags_by_model(sibling):
        raise UserError(
            f"the weights '{tag}' were trained with QuickGELU, which {arch} does not have; name "
            f"open_clip:{sibling}/{tag}"
        )
    return arch, tag


def check_tag(arch: str, tag: str) -> None:
    """Refuse weights of ``arch`` that open_clip does not know."""
    tags = _open_clip().list_pretrained_tags_by_model(arch)
    if not tags:
        raise UserError(
            f"open_clip has no weights for {arch}; choose another architecture, or '{RANDOM}' for "
            "untrained weights"
        )
    if tag not in tags:
        raise UserError(f"open_clip has no weights '{tag}' for {arch}.{nearest(tag, tags)}")


def tagged_weights(arch: str, tag: str, *, tokenizer: str | None = None) -> Weights:
    """Weights that open_clip knows by a tag; ``random`` are untrained ones, always the same."""
    origin, options, known = f"open_clip:{arch}/{tag}", {"pretrained": tag}, tag
    reader = _tokenizer(arch, origin, tokenizer)
    if tag == RANDOM:
        options, known = UNTRAINED, None
        warnings.warn(
            f"backbone {origin} has untrained weights: good for trying memory and speed, not for "
            "results",
            stacklevel=4,
        )
    model, images = _create(arch, origin, **options), statistics(arch, known)
    return _weights(model, model.state_dict(), reader, arch, origin, **images)


def architecture_weights(
    arch: str,
    state: dict[str, torch.Tensor],
    origin: str,
    *,
    tag: str | None = None,
    tokenizer: str | None = None,
) -> Weights:
    """Weights from a file for an architecture; their images have the statistics of ``tag``'s."""
    check_architecture(arch)
    known = statistics(arch, tag)
    reader = _tokenizer(arch, origin, tokenizer)
    model = _create(arch, origin, **UNTRAINED)
    return _weights(model, state, reader, arch, origin, **known)


def folder_weights(folder: str) -> Weights:
    """Weights from a folder in open_clip's layout: config, weights and tokenizer files."""
    path, origin = Path(folder).expanduser(), f"'{folder}'"
    if not (path / FOLDER_CONFIG).is_file():
        raise UserError(
            f"{origin} is a folder without {FOLDER_CONFIG}; name a checkpoint file, or a folder "
            "downloaded whole from an open_clip model's page"
        )
    config = read_json(path / FOLDER_CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise UserError(f"{FOLDER_CONFIG} in {origin} has no 'model_cfg'; fetch it again")
    names = [*FOLDER_WEIGHTS, *sorted(f.name for f in path.glob("*.safetensors"))]
    file = next((path / name for name in names if (path / name).is_file()), None)
    if file is None:
        raise UserError(f"{origin} holds no weights; put {FOLDER_WEIGHTS[0]} there")
    known = _stated(config.get("preprocess_cfg") or {}, origin)
    schema = f"local-dir:{path}"
    reader = _tokenizer(schema, origin)
    model = _create(schema, origin, load_weights=False, pretrained_text=False)
    variant = f"config {json_digest(config['model_cfg'])}"
    return _weights(model, read_checkpoint(file).state, reader, variant, origin, **known)


def _stated(preprocess, origin: str) -> dict:
    """Image statistics and interpolation as far as a folder's config states them."""
    where = f"'preprocess_cfg' of {origin}"
    if not isinstance(preprocess, dict):
        raise UserError(f"{where} is no table; fetch {FOLDER_CONFIG} again")
    given = {name: preprocess[name] for name in STATED if preprocess.get(name)}
    return {name: STATED[name].read(f"{name} in {where}", v) for name, v in given.items()}


def statistics(arch: str, tag: str | None = None) -> dict:
    """Image statistics and interpolation that weights of ``arch`` were trained with.

    Without a tag they are those of all weights that open_clip knows for it. Where these differ,
    or there are none, they are OpenAI's; a warning names the weights that differ from them.
    """

    def of(entry: dict) -> dict:
        mean, std = (tuple(entry.get(k) or d) for k, d in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
        return {"mean": mean, "std": std, "interpolation": entry.get("interpolation") or "bicubic"}

    open_clip = _open_clip()
    if tag is not None:
        check_tag(arch, tag)
        return of(open_clip.get_pretrained_cfg(arch, tag))
    tags = open_clip.list_pretrained_tags_by_model(arch)
    by_tag = {tag: of(open_clip.get_pretrained_cfg(arch, tag)) for tag in tags}
    if by_tag and all(found == by_tag[tags[0]] for found in by_tag.values()):
        return by_tag[tags[0]]
    if others := [tag for tag, found in by_tag.items() if found != of({})]:
        warnings.warn(
            f"images for {arch} are normalised as by OpenAI; if these weights descend from "
            f"{' or '.join(others)}, whose images are not, add '&tag={others[0]}'",
            stacklevel=3,
        )
    return of({})


def _create(arch: str, origin: str, **options):
    """An open_clip model, its initial values always the same; it may have to fetch files."""
    open_clip, logged = _open_clip(), logging.root.manager.disable
    try:
        logging.disable(max(logged, logging.WARNING))  # of random values, which a file replaces
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return open_clip.create_model(arch, weights_only=True, **options)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        advice = f", or name a local checkpoint as file:PATH?arch={arch}" if ":" not in arch else ""
        raise UserError(
            f"files for {origin} can be neither found nor fetched ({_reason(error)}); fetch them "
            f"where there is a network{advice}"
        ) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"open_clip cannot build {origin} from its config ({_reason(error)}); fetch the config "
            "again, or upgrade open_clip_torch"
        ) from error
    finally:
        logging.disable(logged)


def _tokenizer(arch: str, origin: str, folder: str | None = None):
    """The tokenizer of an architecture; of another family than CLIP's it may need files."""
    open_clip, where = _open_clip(), f"'{folder}'" if folder else "the Hugging Face hub"
    try:
        if folder is None:
            return open_clip.get_tokenizer(arch)
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise OSError("no such folder")
        text = open_clip.get_model_config(arch)["text_cfg"]
        return open_clip.tokenizer.HFTokenizer(
            str(path),
            context_length=text.get("context_length", 77),
            tokenizer_mode=text.get("tokenizer_mode"),
            trust_remote_code=False,
            **text.get("tokenizer_kwargs", {}),
        )
    except ImportError as error:
        raise UserError(
            f"the tokenizer of {origin} needs a package that is missing ({_reason(error)}); run "
            "'pip install transformers sentencepiece'"
        ) from error
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"the tokenizer of {origin} cannot be had from {where} ({_reason(error)}); fetch its "
            "files where there is a network and name their folder as ...?tokenizer=FOLDER"
        ) from error


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def _weights(model, state, tokenizer, variant: str, origin: str, **known) -> Weights:
    """Wrap an open_clip model that takes ``state`` when it is built.

    The model may keep its text tower in a module ``text``; scalars may be vectors of one value.
    """
    own = model.state_dict()
    state = {k if k in own or f"text.{k}" not in own else f"text.{k}": v for k, v in state.items()}
    for key in ("logit_scale", "logit_bias"):
        if key in own and key in state and state[key].numel() == 1:
            state[key] = state[key].reshape(own[key].shape)

    def fill(state: dict[str, torch.Tensor]):
        load_strictly(model, state, origin)
        return model

    def reader():
        if isinstance(tokenizer, _open_clip().SimpleTokenizer):
            return tokens.from_open_clip()
        return tokens.from_hugging_face(tokenizer, getattr(tokenizer, "context_length", None) or 77)

    known = {k: v if isinstance(v, str) else tuple(v) for k, v in known.items()}
    return Weights(state, build=fill, tokenizer=reader, variant=variant, origin=origin, **known)
