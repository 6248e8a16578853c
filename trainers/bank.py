"""The adversarial embedding bank: image features made once, under attack, for prompt tuning.

Row order is item-major: row ``i * views + v`` is view ``v`` of item ``i``. The cache is addressed
by content: every ingredient of the features is in the file's name, so a bank is either right or
not found. The transfer test set is a bank of the test images.

Source: AdvPT (arXiv 2311.11261), phase A.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .attacks import (
    AttackChecks,
    AttackSpec,
    check_pixels,
    gradient_attack,
    objective_for,
    tower_in,
    verify,
)
from .errors import UserError
from .images import batches
from .io import load_tensors, save_tensors, sha256_file, writable_dir

SCHEMA = 1
BANK, PART = "embedding bank", "part of an embedding bank"


@dataclass
class Bank:
    """Features of images, clean or under one attack, with their labels.

    Attributes:
        features: (N * views, D) float32 on the CPU, raw (un-normalised).
        labels: (N * views,) int64.
        index: (N * views,) int64, row -> position in the list of items.
        key: hex SHA-256 over all ingredients.
        checks: the attack's self-checks; empty for clean features.
        warnings: what the self-checks object to, in words.
        seconds: wall time of the computation, summed over interrupted runs.
        path: the cache file.
    """

    features: Tensor
    labels: Tensor
    index: Tensor
    key: str
    checks: dict
    warnings: list[str]
    seconds: float
    path: Path

    def __len__(self) -> int:
        return len(self.labels)


def bank_key(
    *,
    weights: str,
    images: Sequence[str],
    labels: Sequence[int],
    preprocess: str,
    spec: AttackSpec | None,
    views: int,
    precision: str,
    seed: int,
) -> str:
    """Return the hex SHA-256 over everything the features depend on.

    Args:
        weights: hex SHA-256 of the model's weights.
        images: hex SHA-256 of each image file's bytes, in order.
        labels: the class of each image.
        preprocess: the key that names resizing, cropping and interpolation.
        spec: the attack with all its fields; None for clean features.
    """
    ingredients = {
        "schema": SCHEMA,
        "weights": str(weights),
        "images": list(images),
        "labels": [int(label) for label in labels],
        "preprocess": str(preprocess),
        "attack": None if spec is None else spec.facts(),
        "views": int(views),
        "precision": str(precision),
        "seed": int(seed),
    }
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def sample_seed(seed: int, digest: str, view: int) -> int:
    """Return the seed of one random start, a stable hash of (seed, image content, view).

    The same image gets the same start whichever set it stands in, and at whatever position.
    """
    word = hashlib.sha256(f"{seed}:{digest}:{view}".encode()).digest()[:8]
    return int.from_bytes(word, "big") >> 1  # 63 bits


@torch.inference_mode(False)  # whatever surrounds it, the rows are for differentiating with
def build_bank(
    clip,
    items: Sequence,
    *,
    spec: AttackSpec | None,
    views: int = 1,
    seed: int = 0,
    preprocess: Callable[[Image.Image], Tensor],
    cache_dir,
    batch_size: int = 32,
    chunk: int = 256,
    device=None,
    precision: str = "fp32",
    title: str = "bank",
) -> Bank:
    """Return the bank from the cache, or compute it; a run that was killed goes on where it was.

    Every ``chunk`` images the rows are written as a part; whole parts are reused, damaged ones are
    computed again. The result does not depend on ``batch_size`` (up to float noise) and not on
    interruptions.

    Args:
        clip: frozen adapter in eval mode with ``encode_image(pixels) -> (B, D)`` raw features,
            ``sha256`` (of the weights) and parameters that do not require gradients.
        items: (path, label) pairs, or objects with ``impath`` and ``label``.
        spec: the attack, with objective ``embedding_kl``; None for clean features.
        views: independent random starts per image.
        seed: of the random starts.
        preprocess: RGB image -> (3, H, W) float in [0, 1], deterministic; its attribute ``key``
            names it.
        cache_dir: folder for ``<key>.safetensors`` and, on the way, ``<key>.parts/``.
        batch_size: images per forward.
        chunk: images per part.
        device: where to compute; the default is where the weights are.
        precision: the one the model was loaded in; fp32 is the sound choice for an attack.
        title: of the progress bar.

    Raises:
        UserError: unusable arguments, an unreadable image (with its path), a damaged or foreign
            bank file, features that are not finite, an unwritable folder.
    """
    pairs = [_pair(item) for item in items]
    _check_arguments(pairs, spec, views, batch_size, chunk)
    _check_model(clip, precision)
    cache_dir = writable_dir(cache_dir)
    digests = [_digest(path) for path, _ in _progress(pairs, f"{title}: reading")]
    labels = [label for _, label in pairs]
    key = bank_key(
        weights=clip.sha256,
        images=digests,
        labels=labels,
        preprocess=preprocess.key,
        spec=spec,
        views=views,
        precision=precision,
        seed=seed,
    )
    path = cache_dir / f"{key}.safetensors"
    if path.exists():
        return load_bank(path, key=key)

    folder = cache_dir / f"{key}.parts"
    device = next(clip.parameters()).device if device is None else torch.device(device)
    rows, checks, seconds = [], AttackChecks(), 0.0
    with tqdm(total=len(pairs), desc=title, unit="image") as bar:
        for number, begin in enumerate(range(0, len(pairs), chunk)):
            if path.exists():  # another run was faster
                return load_bank(path, key=key)
            span = range(begin, min(begin + chunk, len(pairs)))
            header = {"kind": PART, "key": key, "begin": span.start, "end": span.stop}
            part_path = folder / f"{number:05d}.safetensors"
            part = _read_part(part_path, header, len(span) * views)
            if part is None:
                clock = time.perf_counter()
                paths = [pairs[i][0] for i in span]
                seeds = [[sample_seed(seed, digests[i], v) for v in range(views)] for i in span]
                with torch.autocast(device.type, enabled=False):  # the key names the precision
                    features, found = _attack_chunk(
                        clip, paths, seeds, spec, preprocess, batch_size, device, precision, bar
                    )
                part = features, asdict(found), time.perf_counter() - clock
                meta = {**header, "checks": part[1], "seconds": part[2]}
                _save_part(part_path, features, meta, bank=path)
            else:
                bar.update(len(span))
            rows.append(part[0])
            checks.merge(AttackChecks(**part[1]))
            seconds += part[2]

    summary = {} if spec is None else checks.summary()
    bank = Bank(
        features=torch.cat(rows),  # (N * views, D)
        labels=torch.tensor(labels).repeat_interleave(views),
        index=torch.arange(len(pairs)).repeat_interleave(views),
        key=key,
        checks=summary,
        warnings=[] if spec is None else verify(spec, summary),
        seconds=seconds,
        path=path,
    )
    save_tensors(
        path,
        {"features": bank.features, "labels": bank.labels, "index": bank.index},
        {
            "kind": BANK,
            "schema": SCHEMA,
            "key": key,
            "views": views,
            "attack": None if spec is None else spec.describe(),
            "checks": bank.checks,
            "warnings": bank.warnings,
            "seconds": seconds,
        },
    )
    shutil.rmtree(folder, ignore_errors=True)
    return bank


def load_bank(path, *, key: str | None = None) -> Bank:
    """Read a bank file and verify that it is whole and, with ``key``, the one that was meant.

    Raises:
        UserError: missing, truncated, altered, no bank, or another bank.
    """
    path = Path(path)
    tensors, meta = load_tensors(path)
    advice = "delete it and run again to make it anew"
    whole = {"features", "labels", "index"} <= tensors.keys()
    whole = whole and {"key", "checks", "warnings", "seconds"} <= meta.keys()
    if not whole or meta.get("kind") != BANK or meta.get("schema") != SCHEMA:
        raise UserError(f"'{path}' is no embedding bank of this version; {advice}")
    if key is not None and meta["key"] != key:
        raise UserError(
            f"'{path}' holds another bank (key {meta['key'][:12]}, expected {key[:12]}); {advice}"
        )
    return Bank(
        features=tensors["features"],
        labels=tensors["labels"],
        index=tensors["index"],
        key=meta["key"],
        checks=meta["checks"],
        warnings=meta["warnings"],
        seconds=meta["seconds"],
        path=path,
    )


# --- checks before the work -------------------------------------------------------------------


def _pair(item) -> tuple[str, int]:
    path, label = (item.impath, item.label) if hasattr(item, "impath") else item
    return str(path), int(label)


def _check_arguments(pairs, spec, views, batch_size, chunk) -> None:
    if not pairs:
        raise UserError("a bank needs at least one image, got none")
    for name, value in (("views", views), ("batch size", batch_size), ("chunk", chunk)):
        if value < 1:
            raise UserError(f"the bank's {name} is {value}, expected at least 1")
    if spec is None and views > 1:
        raise UserError(
            f"{views} views of clean features would all be the same; use 1 view or an attack"
        )
    if spec is not None and spec.objective != "embedding_kl":
        raise UserError(
            f"a bank knows no text, so its attack cannot ascend '{spec.objective}'; "
            "use objective 'embedding_kl'"
        )


def _check_model(clip, precision: str) -> None:
    for name, parameter in clip.named_parameters():
        if parameter.requires_grad:
            raise UserError(
                f"a bank is made by a frozen model, but '{name}' requires gradients; freeze it"
            )
    for name, module in clip.named_modules():
        if module.training:
            raise UserError(
                f"a bank is made in eval mode, but '{name or 'the model'}' is in train mode"
            )
    loaded = getattr(clip, "precision", "fp32")
    if loaded != precision:
        raise UserError(
            f"the bank's precision is '{precision}' but the model was loaded in '{loaded}'; "
            "use one for both"
        )


def _digest(path: str) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise UserError(
            f"cannot read image '{path}' ({error.strerror}); put it in its place"
        ) from error


def _progress(sequence, description):
    return tqdm(sequence, desc=description, unit="image", leave=False, delay=2)


# --- one chunk --------------------------------------------------------------------------------


def _read_part(path: Path, header: dict, rows: int):
    """Return (features, checks, seconds) of a whole part that belongs here, else None."""
    try:
        tensors, meta = load_tensors(path)
    except UserError:  # not there yet, or damaged: it is computed again
        return None
    features = tensors.get("features")
    if any(meta.get(k) != v for k, v in header.items()) or features is None:
        return None
    return (features, meta["checks"], meta["seconds"]) if len(features) == rows else None


def _save_part(part: Path, features: Tensor, meta: dict, *, bank: Path) -> None:
    """Keep a part; a run that finished the same bank meanwhile may have taken its folder away."""
    try:
        save_tensors(part, {"features": features}, meta)
    except UserError:
        if not bank.exists():
            raise


def _attack_chunk(
    clip, paths, seeds, spec, preprocess, batch_size, device, precision, bar
) -> tuple[Tensor, AttackChecks]:
    """Return the rows (n * views, D) of these images and what the attack did."""
    rows, checks = [], AttackChecks()
    done = 0
    for pixels in batches(paths, preprocess, batch_size):
        check_pixels(pixels)
        names, starts = paths[done : done + len(pixels)], seeds[done : done + len(pixels)]
        pixels = pixels.to(device)
        with torch.no_grad():
            clean = clip.encode_image(pixels)  # (B, D)
        views = [clean]
        if spec is not None:
            _check_finite(clean, names, precision)
            loss = objective_for(spec, tower_in(spec.prec, clip.encode_image), reference=clean)
            attack = gradient_attack(loss, spec, spec.kwargs)
            views = []
            for view_seeds in zip(*starts, strict=True):  # B seeds of one view
                result = attack.run(pixels, view_seeds)
                checks.add(result, pixels)
                with torch.no_grad():
                    views.append(clip.encode_image(result.images))
        for features in views:
            _check_finite(features, names, precision)
        rows.append(torch.stack(views, dim=1).flatten(0, 1).float().cpu())  # (B * views, D)
        done += len(pixels)
        bar.update(len(pixels))
    return torch.cat(rows), checks


def _check_finite(features: Tensor, names: Sequence[str], precision: str) -> None:
    bad = (~torch.isfinite(features)).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"the features of '{names[bad[0]]}' are not finite at precision {precision}; use fp32"
        )
