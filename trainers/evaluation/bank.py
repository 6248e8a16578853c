"""The adversarial embedding bank: image features computed once, under attack, for prompt tuning.

Row order is item-major: row ``i * views + v`` is view ``v`` of item ``i``. The cache is addressed
by content: every ingredient of the features is in the file's name, so a bank is either right or
not found. The transfer test set is a bank of the test images. Features are mapped from the file,
so that a bank may be larger than memory.

Source: AdvPT (arXiv 2311.11261), phase A.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..attacks import (
    AttackChecks,
    AttackSpec,
    check_pixels,
    gradient_attack,
    objective_for,
    tower_in,
    verify,
)
from ..records.threats import FEATURED
from ..utils.errors import UserError
from ..utils.io import atomic_write, json_digest, load_tensors, save_tensors, sweep, writable_dir
from ..utils.progress import bar
from ..utils.seeds import hash_seed
from .fitting import Fitting
from .samples import ImageList

SCHEMA = 1
BANK, PART = "embedding bank", "part of an embedding bank"
ADVICE = "delete it and run again to compute it again"


@dataclass
class Bank:
    """Features of images, clean or under one attack, with their labels."""

    features: Tensor  # (N * views, D) float32 on the CPU, raw (un-normalised), mapped from the file
    labels: Tensor  # (N * views,) int64
    index: Tensor  # (N * views,) int64, row -> position in the list of items
    key: str  # hex SHA-256 over all ingredients
    checks: dict  # the attack's self-checks; empty for clean features
    warnings: list[str]  # what the self-checks object to
    seconds: float  # wall time of the computation, summed over interrupted runs
    path: Path  # the cache file

    def __len__(self) -> int:
        return len(self.labels)


@torch.inference_mode(False)  # even inside it, the rows are for differentiating with
def build_bank(
    clip,
    images: ImageList,
    *,
    spec: AttackSpec | None,  # with an objective of features; None for clean features
    views: int = 1,  # independent random starts per image
    seed: int = 0,  # of these
    cache_dir,  # folder for <key>.safetensors and, on the way, <key>.parts/
    batch_size: int = 32,  # images per forward
    chunk: int = 256,  # images per part
    title: str = "bank",
) -> Bank:
    """Return the bank from the cache, or compute it; an interrupted computation resumes.

    Every ``chunk`` images the rows are written as a part; whole parts are reused, damaged ones are
    computed again. The result does not depend on ``batch_size`` (up to float noise) or on
    interruptions. ``clip`` is a frozen adapter in eval mode with ``encode_image(pixels) -> (B, D)``
    raw features and the ``sha256`` of its weights. UserError for unusable arguments, an unreadable
    image, a damaged or foreign bank file, features that are not finite, or an unwritable folder.
    """
    _check_arguments(clip, images, spec, views, batch_size, chunk)
    cache_dir = writable_dir(cache_dir)
    ingredients = {
        "schema": SCHEMA,
        "weights": clip.sha256,
        "images": images.digests(title),  # of the files' content
        "labels": images.labels,
        "preprocess": images.preprocess.key,
        "attack": None if spec is None else spec.facts(),
        "views": views,
        "precision": getattr(clip, "precision", "fp32"),
        "seed": seed,
    }
    key = json_digest(ingredients)
    path = cache_dir / f"{key}.safetensors"
    parts = Parts(cache_dir / f"{key}.parts", key, len(images), views, chunk)
    if path.exists():
        return parts.superseded(path)
    device = next(clip.parameters()).device
    fitting = Fitting()
    with bar(len(images), title) as shown:
        for number in range(len(parts)):
            if path.exists():  # another run was faster
                break
            if parts.is_whole(number):
                shown.update(len(parts.span(number)))
                continue
            rows, checks, clock = [], AttackChecks(), time.perf_counter()
            batches = images.batches(parts.span(number), batch_size, device)
            for where, pixels in fitting.parts(batches):
                digests, own = [images.digest(i) for i in where], AttackChecks()
                seeds = [[hash_seed(seed, d, view) for d in digests] for view in range(views)]
                names = [images.paths[i] for i in where]
                # the key names the precision
                with fitting, torch.autocast(device.type, enabled=False):
                    rows.append(_features(clip, pixels, spec, seeds, own, names))
                    checks.merge(own)
                    shown.update(len(where))
            took = time.perf_counter() - clock
            parts.save(number, torch.cat(rows), asdict(checks), took, bank=path)
    if not path.exists():
        try:
            join(parts, path, images.labels, spec)
        except (UserError, RuntimeError):  # another run was faster, and has removed the parts
            if not path.exists():
                raise
    return parts.superseded(path)


def _features(clip, pixels, spec, seeds, checks: AttackChecks, names: Sequence[str]) -> Tensor:
    """Return the rows (B * views, D) of one batch, with ``seeds`` by view."""
    check_pixels(pixels)
    with torch.no_grad():
        clean = clip.encode_image(pixels)  # (B, D)
    views = [clean]
    if spec is not None:
        _check_finite(clean, names)
        loss = objective_for(spec, tower_in(spec.prec, clip.encode_image), reference=clean)
        attack, views = gradient_attack(loss, spec), []
        for starts in seeds:
            result = attack.run(pixels, starts)
            checks.add(result, pixels)
            with torch.no_grad():
                views.append(clip.encode_image(result.images))
    rows = torch.stack(views, dim=1)  # (B, views, D)
    _check_finite(rows.flatten(1), names)
    return rows.flatten(0, 1).float().cpu()


def join(parts: "Parts", path: Path, labels: Sequence[int], spec: AttackSpec | None) -> None:
    """Write the bank from its parts, one of them in memory at a time."""
    checks, seconds, rows = AttackChecks(), 0.0, parts.folder / "features"
    with atomic_write(rows) as temporary, open(temporary, "wb") as file:
        for number in range(len(parts)):
            features, meta = parts.read(number)
            file.write(features.numpy())
            checks.merge(AttackChecks(**meta["checks"]))
            seconds += meta["seconds"]
    count, width = len(labels) * parts.views, features.shape[1]
    summary = {} if spec is None else checks.summary()
    meta = {
        "kind": BANK,
        "schema": SCHEMA,
        "key": parts.key,
        "views": parts.views,
        "attack": None if spec is None else spec.describe(),
        "checks": summary,
        "warnings": [] if spec is None else verify(spec, summary),
        "seconds": seconds,
    }
    tensors = {
        "features": torch.from_file(str(rows), size=count * width).view(count, width),
        "labels": torch.tensor(labels).repeat_interleave(parts.views),
        "index": torch.arange(len(labels)).repeat_interleave(parts.views),
    }
    save_tensors(path, tensors, meta)


def load_bank(path, *, key: str | None = None) -> Bank:
    """Open a bank file and verify that it is whole and, with ``key``, the one that was meant."""
    path = Path(path)
    tensors, meta = load_tensors(path, advice=ADVICE)
    content = tensors | meta
    names = ("features", "labels", "index", "key", "checks", "warnings", "seconds")
    right = (meta.get("kind"), meta.get("schema")) == (BANK, SCHEMA)
    if not right or not content.keys() >= set(names):
        raise UserError(f"'{path}' is not an embedding bank of this version; {ADVICE}")
    if key is not None and meta["key"] != key:
        raise UserError(
            f"'{path}' holds another bank (key {meta['key'][:12]}, expected {key[:12]}); {ADVICE}"
        )
    return Bank(**{name: content[name] for name in names}, path=path)


class Parts:
    """The files ``00000.safetensors``, ... of a bank that is being computed."""

    def __init__(self, folder: Path, key: str, images: int, views: int, chunk: int):
        self.folder, self.key, self.views = folder, key, views
        self.images, self.chunk = images, chunk

    def __len__(self) -> int:
        return -(-self.images // self.chunk)

    def span(self, number: int) -> range:
        """Return the positions of a part's images."""
        return range(self.images)[number * self.chunk : (number + 1) * self.chunk]

    def _file(self, number: int) -> tuple[Path, dict]:
        span = self.span(number)
        header = {"kind": PART, "key": self.key, "begin": span.start, "end": span.stop}
        return self.folder / f"{number:05d}.safetensors", header

    def read(self, number: int) -> tuple[Tensor, dict]:
        """Return a part's rows and metadata; UserError if missing, damaged, or another bank's."""
        path, header = self._file(number)
        tensors, meta = load_tensors(path, advice=ADVICE)
        rows = len(self.span(number)) * self.views
        right = header == {name: meta.get(name) for name in header}
        if not right or len(tensors.get("features", ())) != rows:
            raise UserError(f"'{path}' is not a part of this bank; {ADVICE}")
        return tensors["features"], meta

    def is_whole(self, number: int) -> bool:
        """Return True if a part is there, undamaged, and of this bank."""
        try:
            return bool(self.read(number))
        except UserError:  # it is computed again
            return False

    def superseded(self, path: Path) -> Bank:
        """Open the whole bank, and remove the parts of every run that was killed or overtaken."""
        bank = load_bank(path, key=self.key)
        shutil.rmtree(self.folder, ignore_errors=True)
        sweep(path.parent, path.name)
        return bank

    def save(self, number: int, rows: Tensor, checks: dict, seconds: float, *, bank: Path):
        """Keep a part; a run that finished this ``bank`` meanwhile may have removed the folder."""
        path, header = self._file(number)
        try:
            save_tensors(path, {"features": rows}, {**header, "checks": checks, "seconds": seconds})
        except UserError:
            if not bank.exists():
                raise


# --- refusals ---------------------------------------------------------------------------------


def _check_arguments(clip, images, spec, views, batch_size, chunk) -> None:
    if not len(images):
        raise UserError("a bank needs at least one image, got none")
    for name, value in (("views", views), ("batch size", batch_size), ("chunk", chunk)):
        if value < 1:
            raise UserError(f"the bank's {name} is {value}, expected at least 1")
    if spec is None and views > 1:
        raise UserError(
            f"{views} views of clean features would all be the same; use 1 view or an attack"
        )
    if spec is not None and spec.objective not in FEATURED:
        raise UserError(
            f"a bank knows no text, so its attack cannot ascend '{spec.objective}'; "
            f"use objective {' or '.join(FEATURED)}"
        )
    for name, parameter in clip.named_parameters():
        if parameter.requires_grad:
            raise UserError(
                f"a bank is made by a frozen model, but '{name}' requires gradients; freeze it"
            )


def _check_finite(features: Tensor, names: Sequence[str]) -> None:
    bad = (~torch.isfinite(features)).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise UserError(f"the features of '{names[bad[0]]}' are not finite; load CLIP in fp32")
