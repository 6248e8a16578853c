"""Examples of attacks that runs have kept, reduced to a size suitable for a page."""

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..records import examples as kept
from ..utils import errors
from .tables import Row, empty_row, known_settings, name_sources, name_variants, setting

RUNS, ROWS, EDGE = 16, 3, 160  # runs shown, images of each, pixels of the longer edge
_SMALL = 100  # pixels; below it images are shown with hard edges


@dataclass
class Gallery:
    """What is shown, how much there is, and what could not be read."""

    shown: list[dict]  # of each run what the page says of it
    runs: int  # models that have examples
    problems: list[str]


def data_uri(pixels, edge: int = EDGE) -> str:
    """Return a tensor (3, H, W) in [0, 1] as a PNG data URI no longer than ``edge``."""
    array = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()  # (H, W, 3)
    image = Image.fromarray(array)
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, format="png")
    return png_uri(out.getvalue())


def png_uri(png: bytes) -> str:
    """Return the bytes of a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def build_gallery(records: Mapping[Path, dict], each: Iterable | None = None) -> Gallery:
    """Read the examples next to completed records, one seed of each model, trainer by trainer.

    ``each`` wraps the chosen paths, for a progress bar.
    """
    ordered = sorted(name_sources(records).items(), key=lambda item: (item[1]["seed"], item[0]))
    with_examples = {p: r for p, r in ordered if (p.parent / kept.EXAMPLES).is_file()}
    known = known_settings(with_examples.values())
    groups = defaultdict(dict)  # data and protocol -> model -> its first record: seeds look alike
    for path, record in with_examples.items():
        row = empty_row(record, known)
        groups[setting(record), record["protocol"]].setdefault(row.identity, (path, row))
    variants: dict[Path, str] = {}
    for models in groups.values():
        chosen, rows = zip(*models.values(), strict=True)
        variants |= dict(zip(chosen, _variants(list(rows)), strict=True))
    paths = sorted(variants, key=lambda p: (records[p]["dataset"], records[p]["trainer"], p))
    gallery = Gallery([], len(paths), [])
    if len(paths) > RUNS:  # some of them, evenly
        paths = [paths[(2 * i + 1) * len(paths) // (2 * RUNS)] for i in range(RUNS)]
    for path in (each or iter)(paths):
        try:
            shown = _show(path.parent / kept.EXAMPLES, records[path], variants[path])
            gallery.shown.append(shown)
        except (errors.UserError, ValueError, TypeError, IndexError, RuntimeError) as error:
            gallery.problems.append(f"pictures: {error}")
    return gallery


def _variants(rows: list[Row]) -> list[str]:
    """Return in words how each row differs from others of its trainer and shots."""
    name_variants(rows)
    threats = defaultdict(set)
    for row in rows:
        threats[row.full_name].add(row.trained_with)
    texts = []
    for row in rows:
        threat = f"trained with {row.trained_with}" if len(threats[row.full_name]) > 1 else ""
        texts.append(", ".join(filter(None, [row.variant, threat])))
    return texts


def _show(path: Path, record: Mapping, variant: str) -> dict:
    found = kept.load_examples(path)
    clean, adversarial = found["clean"].float(), found["adversarial"].float()
    noise = kept.perturbation(clean, adversarial)
    texts = (found["labels"], found["before"], found["after"])
    if clean.ndim != 4 or clean.shape[1] != 3 or {len(t) for t in texts} != {len(clean)}:
        raise errors.UserError(f"'{path}' holds examples of another shape than (N, 3, H, W)")
    examples = [
        {
            "images": [data_uri(images[i]) for images in (clean, noise, adversarial)],
            "label": str(label),
            "before": (str(before[0]), float(before[1])),
            "after": (str(after[0]), float(after[1])),
            "small": max(clean.shape[-2:]) < _SMALL,
        }
        for i, (label, before, after) in enumerate(zip(*texts, strict=True))
        if i < ROWS
    ]
    title = f"{found['title']} ({variant})" if variant else str(found["title"])
    words = {0: "zero-shot", -1: "all shots", 1: "1 shot", None: "unknown shots"}
    shots = words.get(record["shots"], f"{record['shots']} shots")
    split = "" if record["split"] == "all" else f", {record['split']} classes"
    about = f"{shots}, seed {record['seed']}{split}"
    return {"title": title, "about": about, "examples": examples, "kept": len(clean)}
