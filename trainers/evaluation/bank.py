"""The adversarial embedding bank: image features made once, under attack, for prompt tuning.

Row order is item-major: row ``i * views + v`` is view ``v`` of item ``i``. The cache is addressed
by content: every ingredient of the features is in the file's name, so a bank is either right or
not found. The transfer test set is a bank of the test images. A bank that is larger than
``IN_MEMORY`` stays on disk, and its rows are read as they are asked for.

Source: AdvPT (arXiv 2311.11261), phase A.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..attacks import (
    AttackChecks,
    AttackSpec,
    check_pixels,
    gradient_attack,
    objective_for,
    tower_in,
    verify,
)
from ..utils import distributed
from ..utils.errors import UserError
from ..utils.images import batches
from ..utils.io import load_tensors, save_tensors, sha256_file, writable_dir
from ..utils.seeds import hash_seed
from .rows import Rows, save_rows

SCHEMA = 1
BANK, PART = "embedding bank", "part of an embedding bank"
IN_MEMORY = 1 << 28  # bytes of features: 131,072 rows of 512
ADVICE = "delete it and run again to make it anew"


@dataclass
class Bank:
    """Features of images, clean or under one attack, with their labels.

    Attributes:
        features: (N * views, D) float32 on the CPU, raw (un-normalised); ``Rows`` of the file
            where they are too large for the memory.
        labels: (N * views,) int64.
        index: (N * views,) int64, row -> position in the list of items.
        key: hex SHA-256 over all ingredients.
        checks: the attack's self-checks; empty for clean features.
        warnings: what the self-checks object to, in words.
        seconds: wall time of the computation, summed over interrupted runs.
        path: the cache file.
    """

    features: Tensor | Rows
    labels: Tensor
    index: Tensor
    key: str
    checks: dict
    warnings: list[str]
    seconds: float
    path: Path

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self) -> Iterator[Tensor]:
        """Yield the features in order: as they are in memory, or from the file bit by bit."""
        if isinstance(self.features, Rows):
            yield from self.features.blocks()
        else:
            yield self.features


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
    digest = hashlib.sha256()
    for piece in json.JSONEncoder(sort_keys=True).iterencode(ingredients):
        digest.update(piece.encode())
    return digest.hexdigest()


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
    computed again. Several processes share the parts, in a folder that all of them see. The result
    does not depend on ``batch_size`` (up to float noise), on interruptions or on processes.

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
    with _progress(len(pairs[distributed.rank() :: distributed.world()]), title) as bar:
        digests = distributed.spread(lambda pair: _digest(pair[0], bar), pairs)
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
    if distributed.agree(path.exists):
        return load_bank(path, key=key)

    folder = cache_dir / f"{key}.parts"
    device = next(clip.parameters()).device if device is None else torch.device(device)
    parts = Parts(folder, key, len(pairs), views, chunk)
    own = range(distributed.rank(), len(parts), distributed.world())
    images = sum(len(parts.span(number)) for number in own)
    with tqdm(total=images, desc=title, unit="image", disable=not distributed.is_main()) as bar:
        for number in own:
            if path.exists():  # another run was faster
                break
            span = parts.span(number)
            if parts.is_whole(number):
                bar.update(len(span))
                continue
            clock = time.perf_counter()
            paths = [pairs[i][0] for i in span]
            seeds = [[hash_seed(seed, digests[i], v) for v in range(views)] for i in span]
            with torch.autocast(device.type, enabled=False):  # the key names the precision
                features, found = _attack_chunk(
                    clip, paths, seeds, spec, preprocess, batch_size, device, precision, bar
                )
            took = time.perf_counter() - clock
            parts.save(number, features, asdict(found), took, bank=path)
    distributed.wait()
    if distributed.is_main() and not path.exists():
        try:
            join(parts, path, labels, spec)
        except UserError:  # another run was faster after all, and took the parts away
            if not path.exists():
                raise
    distributed.wait()
    return load_bank(path, key=key)


def join(parts: Parts, path: Path, labels: list[int], spec: AttackSpec | None) -> None:
    """Write the bank from its parts, one of them in memory at a time, and remove them."""
    checks, seconds = AttackChecks(), 0.0
    for number in range(len(parts)):
        meta = parts.meta(number)
        checks.merge(AttackChecks(**meta["checks"]))
        seconds += meta["seconds"]
    summary = {} if spec is None else checks.summary()
    views = parts.views
    meta = {
        "kind": BANK,
        "schema": SCHEMA,
        "key": parts.key,
        "views": views,
        "attack": None if spec is None else spec.describe(),
        "checks": summary,
        "warnings": [] if spec is None else verify(spec, summary),
        "seconds": seconds,
    }
    columns = {
        "labels": torch.tensor(labels).repeat_interleave(views),
        "index": torch.arange(len(labels)).repeat_interleave(views),
    }
    blocks = (parts.features(number) for number in range(len(parts)))
    shape = len(labels) * views, parts.width
    save_rows(path, "features", blocks, shape, columns, meta)
    shutil.rmtree(parts.folder, ignore_errors=True)


def load_bank(path, *, key: str | None = None) -> Bank:
    """Read a bank file and verify that it is whole and, with ``key``, the one that was meant.

    Raises:
        UserError: missing, truncated, altered, no bank, or another bank.
    """
    path = Path(path)
    rows = _rows_on_disk(path)
    tensors, meta = _columns(rows) if rows else load_tensors(path, advice=ADVICE)
    whole = {"features", "labels", "index"} <= tensors.keys()
    whole = whole and {"key", "checks", "warnings", "seconds"} <= meta.keys()
    if not whole or meta.get("kind") != BANK or meta.get("schema") != SCHEMA:
        raise UserError(f"'{path}' is no embedding bank of this version; {ADVICE}")
    if key is not None and meta["key"] != key:
        raise UserError(
            f"'{path}' holds another bank (key {meta['key'][:12]}, expected {key[:12]}); {ADVICE}"
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


def _rows_on_disk(path: Path) -> Rows | None:
    """Return the rows of a large bank; None for one that is read whole, or is none."""
    if not path.is_file() or path.stat().st_size <= IN_MEMORY:
        return None
    return Rows(path, "features", advice=ADVICE)


def _columns(rows: Rows) -> tuple[dict, dict]:
    """Return what of a large bank is in memory, and its metadata, once its content is verified."""
    columns = {name: rows.column(name) for name in ("index", "labels")}
    rows.verify(**columns)
    return {"features": rows, **columns}, rows.meta


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


def _digest(path: str, bar: tqdm) -> str:
    try:
        bar.update()
        return sha256_file(path)
    except OSError as error:
        raise UserError(
            f"cannot read image '{path}' ({error.strerror}); put it in its place"
        ) from error


def _progress(count: int, title: str) -> tqdm:
    quiet = not distributed.is_main()
    return tqdm(
        total=count, desc=f"{title}: reading", unit="image", leave=False, delay=2, disable=quiet
    )


# --- one chunk --------------------------------------------------------------------------------


class Parts:
    """The files ``00000.safetensors``, ... of a bank that is being made."""

    def __init__(self, folder: Path, key: str, images: int, views: int, chunk: int):
        self.folder, self.key, self.views = folder, key, views
        self.images, self.chunk = images, chunk

    def __len__(self) -> int:
        return -(-self.images // self.chunk)

    def span(self, number: int) -> range:
        """Return the positions of a part's images."""
        begin = number * self.chunk
        return range(begin, min(begin + self.chunk, self.images))

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    def _header(self, number: int) -> dict:
        span = self.span(number)
        return {"kind": PART, "key": self.key, "begin": span.start, "end": span.stop}

    def _read(self, number: int) -> tuple[Tensor, dict]:
        tensors, meta = load_tensors(self.path(number))
        features = tensors.get("features")
        right = all(meta.get(k) == v for k, v in self._header(number).items())
        rows = len(self.span(number)) * self.views
        if not right or features is None or len(features) != rows:
            raise UserError(f"'{self.path(number)}' is no part of this bank; {ADVICE}")
        return features, meta

    @property
    def width(self) -> int:
        return Rows(self.path(0), "features", advice=ADVICE).shape[1]

    def is_whole(self, number: int) -> bool:
        """Tell whether a part is there, undamaged, and belongs here."""
        try:
            self._read(number)
        except UserError:  # it is computed again
            return False
        return True

    def features(self, number: int) -> Tensor:
        return self._read(number)[0]

    def meta(self, number: int) -> dict:
        """Return a part's ``checks`` and ``seconds``."""
        return Rows(self.path(number), "features", advice=ADVICE).meta

    def save(self, number: int, features: Tensor, checks: dict, seconds: float, *, bank: Path):
        """Keep a part; a run that finished this bank meanwhile may have taken the folder away."""
        meta = {**self._header(number), "checks": checks, "seconds": seconds}
        try:
            save_tensors(self.path(number), {"features": features}, meta)
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
