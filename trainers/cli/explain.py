"""What learned text vectors resemble: the words nearest to them in CLIP's token embedding.

    advprompt explain output/shapes/AdvPT/tiny_tiny_shapes_16shots/seed1 --top 5

AdvPT's analysis (arXiv 2311.11261): the Euclidean distance of every vector to every row of the
token embedding. A word with ~ is the head or the middle of a longer one. Vectors of deeper layers
replace the outputs of blocks, not word embeddings: their distances are larger and mean less.
Needs the run's checkpoint and its backbone, no data set.
"""

import argparse
import json
from pathlib import Path

import torch
from tabulate import tabulate

from ..backbone import load_clip
from ..engine import run_folder
from ..engine.checkpoints import chosen_checkpoint, load_checkpoint
from ..utils.errors import UserError
from ..utils.io import atomic_write


def text_vectors(weights: dict[str, torch.Tensor], prompts: dict) -> list[torch.Tensor]:
    """Return a checkpoint's text vectors by layer, each (M, d_t) or, class-specific, (K, M, d_t).

    Args:
        weights: the state dict of a prompt learner; of a student and teacher, the student counts.
        prompts: the facts on its prompts that the checkpoint keeps.
    """
    weights = {name.removeprefix("student."): value.float() for name, value in weights.items()}
    if "ctx" in weights:  # of a CoOp learner
        return [weights["ctx"]]
    depth = prompts.get("text_depth", 1)
    if prompts.get("coupling") == "vision_to_text":
        first = list(weights["text_prompts"]) if "text_prompts" in weights else []  # FAP's
        driving = list(weights.get("vision_prompts", ()))[: depth - len(first)]
        return first + [
            torch.nn.functional.linear(
                vectors, weights[f"projections.{i}.weight"], weights[f"projections.{i}.bias"]
            )
            for i, vectors in enumerate(driving, len(first))
        ]
    return list(weights["text_prompts"][:depth]) if "text_prompts" in weights else []


def nearest(
    vectors: list[torch.Tensor], table: torch.Tensor, words: list[str], names: list[str], top: int
) -> list[dict]:
    """Find the ``top`` rows of ``table`` (V, d_t) that lie nearest to every vector.

    Args:
        vectors: by layer, (M, d_t) or (K, M, d_t).
        words: the V rows in words.
        names: the K classes.

    Returns:
        of every vector its ``layer`` (0: the input; l: what enters block l), ``class_name`` (None
        where all classes share it), ``number`` in the prompt from 1, ``norm``, and its ``words``
        with their ``distances``, nearest first.
    """
    found = []
    for layer, group in enumerate(vectors):
        classes = names if group.ndim == 3 else [None]
        group = group.reshape(len(classes), -1, group.shape[-1])  # (K or 1, M, d_t)
        for name, members in zip(classes, group, strict=True):
            # the exact form: by way of dot products, small distances drown in rounding
            exact = "donot_use_mm_for_euclid_dist"
            distances = torch.cdist(members, table, compute_mode=exact)  # (M, V)
            close, rows = distances.topk(top, largest=False)
            for i, vector in enumerate(members):
                about = {"layer": layer, "class_name": name, "number": i + 1}
                about["norm"] = round(float(vector.norm()), 4)
                about["words"] = [words[row] for row in rows[i].tolist()]
                about["distances"] = [round(distance, 4) for distance in close[i].tolist()]
                found.append(about)
    return found


def vocabulary(clip) -> tuple[torch.Tensor, list[str]]:
    """Return the token embedding (V, d_t) in float32 and its rows in words."""
    table = clip.embed_tokens(torch.arange(clip.vocabulary)[None])[0].float().cpu()  # (V, d_t)
    known = min(clip.vocabulary, clip.tokenizer.size)  # rows beyond the tokenizer's have no word
    return table[:known], [_word(clip.tokenizer, i) for i in range(known)]


def _word(tokenizer, row: int) -> str:
    text = tokenizer.decode([row])
    whole = text.endswith(" ") or row in (*tokenizer.start, *tokenizer.end)
    return text.strip() + ("" if whole else "~")


def explain(folder: str, top: int = 5, epoch: int | None = None) -> tuple[dict, list[dict]]:
    """Return facts on a run and the words nearest to its text vectors; UserError if it has none."""
    settings, tested = run_folder.stored(folder)
    trainer, backbone = settings["TRAINER.NAME"], settings["MODEL.BACKBONE.NAME"]
    learner = Path(tested.get("model_dir") or folder) / "prompt_learner"
    path = chosen_checkpoint(learner, epoch if epoch is not None else tested.get("load_epoch"))
    checkpoint = load_checkpoint(path) if path else {"state_dict": {}}
    facts = checkpoint.get("advprompt") or {}
    vectors = text_vectors(checkpoint["state_dict"], facts.get("prompts") or {})
    if not vectors or not vectors[0].numel():
        raise UserError(
            f"'{folder}' ({trainer}) has no learned text vectors; give a run of a method that "
            "learns text prompts, such as AdvPT"
        )
    clip = load_clip(backbone, image_tower=False)
    if facts.get("weights_sha256", clip.sha256) != clip.sha256:
        raise UserError(
            f"'{path}' was trained on other weights than backbone {backbone} has here; use those"
        )
    table, words = vocabulary(clip)
    if not 1 <= top <= len(words):
        raise UserError(f"--top is {top}, expected from 1 to {len(words)}")
    spread = (table - table.mean(0)).norm(dim=1).mean()
    about = {
        "run": str(folder),
        "checkpoint": str(path),
        "trainer": trainer,
        "backbone": backbone,
        "weights_sha256": clip.sha256,
        "distance": "Euclidean",
        "mean_distance_of_words_from_their_mean": round(float(spread), 4),
    }
    return about, nearest(vectors, table, words, facts.get("classnames") or [], top)


def render(about: dict, vectors: list[dict], style: str) -> str:
    """Return the table as ``terminal``, ``markdown`` or ``json`` text."""
    if style == "json":
        return json.dumps(about | {"vectors": vectors}, indent=2)
    terminal = style == "terminal"
    shown = {"layer": "layer", "class_name": "class"}
    shown = {key: head for key, head in shown.items() if len({v[key] for v in vectors}) > 1}
    heads = [*shown.values(), "vector", "norm"]
    heads += [f"nearest {i + 1}" for i in range(len(vectors[0]["words"]))]
    rows = []
    for v in vectors:
        words = v["words"] if terminal else map(_escaped, v["words"])
        near = [f"{word} {d:.3f}" for word, d in zip(words, v["distances"], strict=True)]
        rows.append([*(str(v[key]) for key in shown), str(v["number"]), f"{v['norm']:.3f}", *near])
    tablefmt = "simple" if terminal else "github"
    table = tabulate(rows, heads, disable_numparse=True, tablefmt=tablefmt)
    notes = [
        f"{about['trainer']} on {about['backbone']}, {about['checkpoint']}",
        "a word and its Euclidean distance in the token embedding; ~ is a part of a longer word; "
        f"words lie {about['mean_distance_of_words_from_their_mean']:.3f} from their mean",
    ]
    if any(v["layer"] for v in vectors):
        notes.append(
            "vectors of layer 1 and beyond are among the outputs of blocks, where words have no "
            "embedding: read their distances with care"
        )
    bullet = "  " if terminal else "- "
    return "\n".join([table, "", *(bullet + note for note in notes)])


def _escaped(word: str) -> str:
    """Keep a word from being read as markdown."""
    return "".join("\\" * (c in r"\`*_|<>#~[]") + c for c in word)


def main(argv: list[str]) -> None:
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser("advprompt explain", description=about)
    add = parser.add_argument
    add("run", help="folder of a finished run")
    add("--top", type=int, default=5, metavar="K", help="words per vector")
    add("--load-epoch", type=int, help="epoch to load (default: best, else newest)")
    add("--format", choices=("terminal", "markdown", "json"), default="terminal")
    add("--out", metavar="FILE", help="write there instead of printing")
    args = parser.parse_args(argv)
    text = render(*explain(args.run, args.top, args.load_epoch), args.format)
    if args.out:
        with atomic_write(args.out) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {args.out}" if args.out else text)
