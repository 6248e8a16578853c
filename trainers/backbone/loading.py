"""``load_clip``: from a backbone's name to a frozen adapter."""

import hashlib
import os
import socket
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from ..config.keys import Key, add_defaults, section
from ..utils.errors import UserError, nearest
from ..utils.io import sha256_file, tensors_digest, writable_dir
from . import architectures, tiny
from .adapter import CLIP_MEAN, CLIP_STD, CLIPAdapter
from .providers import NOT_WEIGHTS, Weights, build
from .weights_files import read_checkpoint

# the SHA-256 that OpenAI publishes with its files
OPENAI = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}
OPENAI_URL = "https://openaipublic.azureedge.net/clip/models"
CACHE = "~/.cache/clip"
DOWNLOAD_TIMEOUT = 20  # seconds without an answer


def load_clip(
    name: str,
    *,
    device: str | torch.device = "cpu",
    weights_dir=None,
    provider: str | None = None,
) -> CLIPAdapter:
    """Load a backbone by name.

    Args:
        name: an OpenAI model (``ViT-B/16``, ``RN50``, ...); ``tiny`` or ``tiny-robust``;
            ``open_clip:ARCH/TAG``; ``file:PATH`` for a local checkpoint or a folder in open_clip's
            layout, with ``?base=BACKBONE`` for an image tower alone and ``?arch=ARCH&tag=TAG`` for
            weights that are not of OpenAI's kind. ``?tokenizer=FOLDER`` names tokenizer files.
        device: where the adapter lives.
        weights_dir: folder of OpenAI's files; default ``~/.cache/clip``.
        provider: ``open_clip``, ``clip`` (a fork's or OpenAI's package) or ``auto``; default is
            the environment variable ``ADVPROMPT_CLIP_PROVIDER``, else ``auto``.

    UserError: unknown name, missing, damaged, foreign or refused weights.
    """
    weights = find_weights(name, weights_dir)
    return make_adapter(weights, name=name, provider=provider).to(device)


def make_adapter(
    weights: Weights | dict[str, torch.Tensor],
    *,
    name: str,
    provider: str | None = None,
) -> CLIPAdapter:
    """Build the adapter of a state dict (OpenAI layout) or of :class:`Weights`, on the CPU."""
    weights = Weights(weights) if isinstance(weights, dict) else weights
    digest = weights_digest(weights)
    model, tokenizer = build(weights, provider or os.environ.get("ADVPROMPT_CLIP_PROVIDER", "auto"))
    images = {key: getattr(weights, key) for key in ("mean", "std", "interpolation")}
    return CLIPAdapter(model, tokenizer, name=name, sha256=digest, **images)


def weights_digest(weights: Weights) -> str:
    """Hex digest of the weights' values and of what the images are normalised by.

    The same for any provider or file format.
    """
    values = {k: v for k, v in weights.state.items() if v.is_floating_point()}
    digest = tensors_digest({k: v.float() for k, v in values.items() if k not in NOT_WEIGHTS})
    variant = weights.variant
    if (weights.mean, weights.std) != (CLIP_MEAN, CLIP_STD):  # the same values see other images
        variant += f"|{weights.mean}|{weights.std}"
    return hashlib.sha256(f"{variant}|{digest}".encode()).hexdigest() if variant else digest


def find_weights(name: str, weights_dir=None) -> Weights:
    """Resolve a backbone's name to weights on the CPU. See :func:`load_clip` for names."""
    check_name(name)
    if name in tiny.NAMES:
        return Weights(tiny.load_tiny_state(name), origin=f"backbone '{name}'", builtin=True)
    if name in OPENAI:
        path = _openai_file(name, weights_dir)
        return Weights(read_checkpoint(path).state, origin=f"'{path}'")
    kind, _, rest = name.partition(":")
    return (_file_weights if kind == "file" else _open_clip_weights)(rest, weights_dir)


def digest_of_name(name: str) -> str | None:
    """Return the digest of a backbone's weights; None where they are not on this machine."""
    kept = OPENAI.get(name) and Path(CACHE, openai_url(name).rpartition("/")[2]).expanduser()
    if name in tiny.NAMES or name.startswith("file:") or (kept and kept.is_file()):
        return weights_digest(find_weights(name))
    return None


def check_name(name: str) -> None:
    """Raise a UserError if no backbone can have that name; nothing is looked for."""
    kind, _, rest = name.partition(":")
    if name not in (*OPENAI, *tiny.NAMES) and not (rest and kind in ("open_clip", "file")):
        choices = [*OPENAI, *tiny.NAMES, "open_clip:ARCH/TAG", "file:PATH"]
        raise UserError(f"backbone '{name}' is unknown.{nearest(name, choices)}")


def _extend_cfg(cfg) -> None:
    compiled = Key(False, "torch.compile the blocks of the towers (not measured on a GPU yet)")
    last = Key(False, "convolutions with the channels last (not measured yet)")
    add_defaults(cfg, "MODEL.BACKBONE", COMPILE=compiled, CHANNELS_LAST=last)


def _check_cfg(cfg) -> None:
    if name := cfg.MODEL.BACKBONE.NAME:  # where none is set, perhaps because a file is missing
        check_name(name)


section("MODEL", _extend_cfg, _check_cfg)


def _openai_file(name: str, weights_dir) -> Path:
    url = openai_url(name)
    path = Path(weights_dir or CACHE).expanduser() / url.rpartition("/")[2]
    if not path.is_file() and not _download(url, path):
        raise UserError(
            f"the weights of {name} are neither at '{path}' nor to be had over the network; put "
            f"OpenAI's {path.name} there, or take the built-in backbone 'tiny'"
        )
    if sha256_file(path) != OPENAI[name]:
        raise UserError(
            f"'{path}' is not OpenAI's {path.name} (its SHA-256 differs), perhaps a broken "
            "download; delete it to have it fetched again, or name another checkpoint as "
            f"file:{path}"
        )
    return path


def openai_url(name: str) -> str:
    """Return where OpenAI publishes the file of a model."""
    return f"{OPENAI_URL}/{OPENAI[name]}/{name.replace('/', '-').replace('@', '-')}.pt"


def _download(url: str, path: Path) -> bool:
    """Try to fetch a file, whole or not at all."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        writable_dir(path.parent)
        torch.hub.download_url_to_file(url, str(path))
        return True
    except (OSError, RuntimeError):
        return False
    finally:
        socket.setdefaulttimeout(before)


def _file_weights(rest: str, weights_dir) -> Weights:
    path, options = _options(rest, ("base", "arch", "tag", "tokenizer"), "file:PATH")
    if Path(path).expanduser().is_dir():
        _need_none(options, rest, "a folder says by itself what it is")
        return architectures.folder_weights(path)
    found = read_checkpoint(path)
    if found.image_tower_only:
        return _over_base(path, found.state, options, rest, weights_dir)
    options.pop("base", None)
    if arch := options.pop("arch", None):
        return architectures.architecture_weights(arch, found.state, f"'{path}'", **options)
    if not found.openai_layout:
        raise UserError(
            f"'{path}' is no CLIP of OpenAI's layout; name its open_clip architecture, e.g. "
            f"file:{path}?arch=ViT-B-16-SigLIP"
        )
    _need_none(options, rest, "it goes with the name of an architecture, '?arch=ARCH'")
    return Weights(found.state, origin=f"'{path}'")


def _over_base(path: str, state: dict, options: dict[str, str], rest: str, weights_dir) -> Weights:
    """Put an image tower over the backbone that ``base`` names."""
    if not options.get("base"):
        raise UserError(
            f"'{path}' holds an image tower only; name the backbone it belongs to, e.g. "
            f"file:{path}?base=ViT-B/32"
        )
    name = options.pop("base")
    _need_none(options, rest, "an image tower takes everything else from its base")
    base = find_weights(name, weights_dir)
    tower = {k for k in base.state if k.startswith("visual.") and not k.endswith("_tracked")}
    for key in [*state, *sorted(tower - set(state))]:
        here, there = state.get(key), base.state.get(key)
        if here is None or there is None or here.shape != there.shape:
            what = "is missing in it" if here is None else "is missing there or has another shape"
            raise UserError(
                f"the image tower in '{path}' does not fit base '{name}' (tensor "
                f"'{key}' {what}); name the backbone it was fine-tuned from"
            )
    return replace(base, state={**base.state, **state}, origin=f"'{path}' over its base")


def _open_clip_weights(rest: str, weights_dir) -> Weights:
    name, options = _options(rest, ("tokenizer",), "open_clip:ARCH/TAG")
    arch, tag = architectures.check_open_clip(name)
    if tag == architectures.OPENAI_TAG:  # the same files, read without running them
        by_arch = {name.replace("/", "-").replace("@336px", "-336"): name for name in OPENAI}
        return find_weights(by_arch[arch.removesuffix("-quickgelu")], weights_dir)
    return architectures.tagged_weights(arch, tag, tokenizer=options.get("tokenizer"))


def _options(rest: str, known: tuple[str, ...], form: str) -> tuple[str, dict[str, str]]:
    """Split ``NAME?key=value&...``, values as they stand; a base keeps what follows it."""
    name, _, query = rest.partition("?")
    query, based, base = f"&{query}".partition("&base=")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    if based:
        options["base"] = base
    if unknown := sorted(set(options) - set(known)):
        raise UserError(
            f"'{unknown[0]}' in '{form.partition(':')[0]}:{rest}' is unknown; {form} may be "
            f"followed by {', '.join(f'?{key}=' for key in known)}"
        )
    return name, options


def _need_none(options: Collection[str], rest: str, why: str) -> None:
    if options:
        raise UserError(f"'{min(options)}' in 'file:{rest}' has no effect: {why}; leave it out")
