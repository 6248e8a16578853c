"""Write what a run learned, with a card that says what it is: an entry of a prompt zoo.

    python -m advprompt export output/eurosat/NAPTuning/tiny/seed1 --out zoo/naptuning_eurosat

The folder holds the learned prompts, projections and refiners (of a fine-tuned image tower: that
tower) as safetensors and the card as JSON and markdown. `advprompt.load(FOLDER)` makes a
classifier of it, MODEL.INIT_WEIGHTS starts a training from it. The backbone is not included.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import asdict
from pathlib import Path

from .. import backbone as prompting
from .. import records
from ..config import keys as config
from ..config.keys import extend_cfg
from ..engine import checkpoints as state
from ..engine import exports, run_folder, testing
from ..prompting import templates
from ..report.threats import MEANINGS, attack_headings, describe, threat_label
from ..utils import errors, machine
from ..utils import io as files
from ..utils.entry import run_tool
from .robustness import register_datasets

UNSTATED = "not stated"
SETTINGS = ("OPTIM.", "TRAINER.ADVERSARIAL.", "DATALOADER.TRAIN_X.", "INPUT.TRANSFORMS")
BACKBONE_NOTE = (
    "The backbone itself is not included: it is loaded by its name, and refused unless its weights "
    "have this SHA-256."
)
TOWER_NOTE = " The image tower, which the training changed, is included."


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="export", description=__doc__.split("\n")[0])
    p.add_argument("run", help="folder of a finished run")
    p.add_argument("--out", metavar="FOLDER", help="default: zoo/ and what the run is")
    p.add_argument("--epoch", type=int, help="epoch to export (default: best, else newest)")
    p.add_argument("--licence", default=UNSTATED, metavar="TEXT", help="licence of the prompts")
    p.add_argument("--unfinished", action="store_true", help="also a run without a record")
    p.add_argument(
        "--root",
        help="folder of the data sets: of a run that did not keep its classes (older versions)",
    )
    return p


# --- what the run is ------------------------------------------------------------------------------


def checkpoint_of(folder: Path, tested: dict, epoch: int | None):
    """Return the file of a run's values, whose figures it has, and what the file holds."""
    where = Path(tested.get("model_dir") or folder)
    measured = state.chosen_checkpoint(where / state.LEARNER, tested.get("load_epoch"))
    path = measured
    if epoch is not None:
        path = state.chosen_checkpoint(where / state.LEARNER, epoch)
    if path is None or not path.is_file():
        there = sorted(p.name for p in (where / state.LEARNER).glob("model*"))
        raise errors.UserError(
            f"'{path or where / state.LEARNER}' does not exist; "
            + (f"there are: {', '.join(there)}" if there else "train the run first")
        )
    stored = state.load_checkpoint(path)
    same = path == measured or (
        measured is not None
        and measured.is_file()
        and state.load_checkpoint(measured).get("epoch") == stored.get("epoch")
    )
    return path, stored, same


def classes_of(folder: Path, cfg, facts: dict, trained: dict, root: str | None) -> tuple[list, str]:
    """Return the class names and the hand-made prompt that the run was tested with.

    Args:
        facts: of the checkpoint, which knows the classes of the training.
        trained: settings of the training.
    """
    which = ("DATASET.NAME", "DATASET.SUBSAMPLE_CLASSES")
    same = [trained.get(key) for key in which] == [cfg.DATASET.NAME, cfg.DATASET.SUBSAMPLE_CLASSES]
    kept = folder / testing.MODEL_FILE
    if kept.is_file():
        facts = files.read_json(kept)
    elif root:
        register_datasets()
        from dassl.data.datasets import DATASET_REGISTRY

        cfg.DATASET.ROOT = root
        data = DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
        return data.classnames, getattr(data, "template", "") or template_of(cfg)
    elif not same or "classnames" not in facts:
        raise errors.UserError(
            f"'{folder}' was made by an older version, which did not keep the class names; say "
            "where the data sets are with --root"
        )
    return facts["classnames"], facts.get("template") or template_of(cfg)


def template_of(cfg) -> str:
    """Return the hand-made prompt that a run's settings imply."""
    return cfg.DATASET.TEMPLATE or templates.template_for(cfg.DATASET.NAME)


def settings_of(folder: Path):
    """Return a run's configuration, and of which model it is if it only tested."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    extend_cfg(cfg)
    stored, tested = run_folder.stored(folder)
    run_folder.restore(cfg, stored, folder)
    return cfg, stored, tested


def training_of(folder: Path, stored: dict, tested: dict) -> dict:
    """Return the settings of the training, {} where a test does not know them any more."""
    if not tested:
        return stored
    where = Path(tested["model_dir"] or folder)
    return run_folder.stored(where)[0] if (where / run_folder.CONFIG_FILE).is_file() else {}


def export(args: argparse.Namespace) -> tuple[Path, bool, dict]:
    """Write the export that ``args`` describes.

    Returns:
        its folder, whether it was written now (an equal one may be there), and its card.

    Raises:
        UserError: no run, an unfinished one, missing values or backbone, or another export there.
    """
    folder = Path(args.run)
    cfg, stored, tested = settings_of(folder)
    record = records.completed_record(folder)
    if record is None and not args.unfinished:
        raise errors.UserError(
            f"'{folder}' is not finished (it has no completed {records.FILE_NAME}); let it end, or "
            "export it without figures by --unfinished"
        )
    name = cfg.TRAINER.NAME
    method = config.method_called(name)
    if method is None:
        raise errors.UserError(
            f"'{folder}' was made by trainer '{name}', which is none of this project's."
            f"{errors.nearest(name, config.METHODS)}"
        )
    checkpoint = {"state_dict": {}, "training": {}}
    measured = True
    if method.trainable:
        path, checkpoint, measured = checkpoint_of(folder, tested, args.epoch)
    facts, trained = checkpoint.get("advprompt") or {}, training_of(folder, stored, tested)
    classnames, template = classes_of(folder, cfg, facts, trained, args.root)
    clip = prompting.load_clip(cfg.MODEL.BACKBONE.NAME)
    expected = facts.get("weights_sha256") or (record or {}).get("weights_sha256", clip.sha256)
    if expected != clip.sha256:
        raise errors.UserError(
            f"'{folder}' was trained on weights {expected[:12]}... of backbone {clip.name}, here "
            f"it has {clip.sha256[:12]}...; use those"
        )
    spec = method.served_spec(cfg, clip, template)
    tensors = method.deployed(checkpoint["state_dict"])
    exports.serve(clip, classnames, spec, tensors, folder)  # what does not load is not written
    card = make_card(
        cfg,
        trained,
        method,
        spec,
        tensors,
        clip,
        classnames=classnames,
        record=record if measured else None,
        training=checkpoint.get("training") or {},
        epoch=checkpoint.get("epoch", 0),
        licence=args.licence,
    )
    out = Path(args.out) if args.out else Path("zoo", default_name(card))
    return out, exports.write_export(out, tensors, card, page(card, out)), card


# --- the card -------------------------------------------------------------------------------------


def make_card(
    cfg, settings, method, spec, tensors, clip, *, classnames, record, training, epoch, licence
) -> dict:
    """Return the card as JSON-able values."""
    shots, threat = cfg.DATASET.NUM_SHOTS, training.get("train_threat")
    made = record or machine.environment()
    prefixes = (*SETTINGS, f"TRAINER.{method.node}.") if method.node else ()
    tower = any(key.startswith(exports.TOWER) for key in tensors)
    return {
        "format": exports.FORMAT,
        "method": {
            "trainer": method.__name__,
            "paper": method.paper,
            "summary": (method.__doc__ or "").split("\n")[0],
        },
        "data": {
            "name": cfg.DATASET.NAME,
            "trained_on": training.get("dataset") or settings.get("DATASET.NAME", "unknown"),
            "split": cfg.DATASET.SUBSAMPLE_CLASSES,
            "classes": list(classnames),
            "template": spec.template,
        },
        "training": {
            "shots": training.get("shots", (shots if shots >= 1 else -1) * method.trainable),
            "seed": cfg.SEED,
            "epoch": epoch,
            "epochs": training.get("epochs", cfg.OPTIM.MAX_EPOCH * method.trainable),
            "threat": threat,
            "threat_in_words": f"{threat_label(threat)}: {describe(threat)}" if threat else None,
            "started_from_sha256": training.get("init_sha256"),
            "settings": {k: v for k, v in settings.items() if k.startswith(prefixes)},
        },
        "backbone": {
            "name": exports.portable(clip.name),
            "weights_sha256": clip.sha256,
            "included": False,
            "note": BACKBONE_NOTE + TOWER_NOTE * tower,
        },
        "input": {
            "size": list(cfg.INPUT.SIZE),
            "interpolation": cfg.INPUT.INTERPOLATION,
            "range": "[0, 1]",
            "preprocessing": f"smaller edge to {max(cfg.INPUT.SIZE)} pixels "
            f"({cfg.INPUT.INTERPOLATION}), centre crop, RGB in [0, 1]; CLIP's mean and std are "
            "applied inside the model",
        },
        "prompts": {
            "spec": asdict(spec),
            "values": sum(value.numel() for value in tensors.values()),
            "shapes": {key: list(value.shape) for key, value in sorted(tensors.items())},
        },
        "figures": figures(record) if record else None,
        "versions": made["versions"],
        "git_commit": made["git_commit"],
        "licence": licence,
    }


def figures(record: dict) -> dict:
    """Return every figure of a record, each attack in words."""
    told = exports.portable(record["attacks"])  # surrogates and defences may be files
    attacks = [
        attack
        | {
            "accuracy": round(records.accuracy(attack), 2),
            "heading": heading,
            "in_words": f"{describe(attack)}; {MEANINGS[attack['target']]}",
        }
        for attack, heading in zip(told, attack_headings(told), strict=True)
    ]
    same = ("dataset", "protocol", "split", "subset", "seed", "device", "created")
    clean = record["clean"] | {"accuracy": round(records.accuracy(record["clean"]), 2)}
    first = record["config"].get("TEST.FIRST") or None
    return {key: record[key] for key in same} | {"first": first, "clean": clean, "attacks": attacks}


def default_name(card: dict) -> str:
    """Return a folder name such as ``naptuning_eurosat_tiny_16shots_seed1``."""
    shots = {0: "zeroshot", -1: "all"}.get(card["training"]["shots"])
    backbone = card["backbone"]["name"].partition("?")[0]
    words = [
        card["method"]["trainer"],
        card["data"]["name"],
        *([card["data"]["split"]] if card["data"]["split"] != "all" else []),
        Path(re.sub("^(file|open_clip):", "", backbone).replace("/", "-")).stem,
        shots or f"{card['training']['shots']}shots",
        f"seed{card['training']['seed']}",
    ]
    return re.sub(r"[^\w.-]", "-", "_".join(words).lower())


def page(card: dict, folder: Path) -> str:
    """Return the card in markdown."""
    data, training, backbone = card["data"], card["training"], card["backbone"]
    shots = {0: "none (zero-shot)", -1: "every training image"}.get(training["shots"])
    threat = training["threat_in_words"] or "clean images only"
    start = training["started_from_sha256"]
    rows = [
        ("method", f"{card['method']['trainer']}: {card['method']['summary']}"),
        ("paper", card["method"]["paper"] or "none"),
        ("trained on", data["trained_on"]),
        ("classes", f"{len(data['classes'])} ({data['split']}) of {data['name']}"),
        ("shots per class", shots or str(training["shots"])),
        ("seed", str(training["seed"])),
        ("epoch", f"{training['epoch']} of {training['epochs']}"),
        *([("started from", f"a file with SHA-256 `{start}`")] if start else []),
        ("threat model in training", threat if training["shots"] else "not trained"),
        ("backbone", f"`{backbone['name']}`, weights' SHA-256 `{backbone['weights_sha256']}`"),
        ("input", f"{'x'.join(map(str, card['input']['size']))}: {card['input']['preprocessing']}"),
        ("hand-made prompt", f"`{data['template']}`"),
        ("learned values", f"{card['prompts']['values']:,}"),
        ("licence of the prompts", card["licence"]),
        ("made with", ", ".join(f"{k} {v}" for k, v in card["versions"].items())),
        ("commit", card["git_commit"] or "an installed package"),
    ]
    text = [f"# {card['method']['trainer']} on {data['trained_on']}", "", backbone["note"], ""]
    text += ["```python", "import advprompt", ""]
    path = folder.name if folder.is_absolute() else folder.as_posix()
    text += [f'model = advprompt.load("{path}")']
    text += ["model.logits(images)  # (B, 3, H, W) in [0, 1], or PIL images", "```", ""]
    text += ["| | |", "|---|---|", *(f"| {k} | {_cell(v)} |" for k, v in rows), ""]
    text += ["## Figures", "", *_figures(card["figures"]), ""]
    text += ["## Classes", "", ", ".join(data["classes"]), ""]
    return "\n".join(text)


def _figures(found: dict | None) -> list[str]:
    if found is None:
        return ["None: the run was not finished, or this is another epoch than the one it tested."]
    taken = records.test_images(found["subset"], found.get("first"))
    subset = f"{found['clean']['n']} images ({taken})"
    lines = [
        f"{found['dataset']} ({found['protocol']}, classes: {found['split']}), {subset}; robust "
        "means right clean and right under the attack.",
        "",
        "| attack | accuracy in % | images | threat model |",
        "|---|---|---|---|",
        f"| none (clean) | {found['clean']['accuracy']:.1f} | {found['clean']['n']} | |",
    ]
    lines += [
        f"| {_cell(a['heading'])} | {a['accuracy']:.1f} | {a['n']} | {_cell(a['in_words'])} |"
        for a in found["attacks"]
    ]
    if any(attack.get("defence") for attack in found["attacks"]):
        lines += ["", "Measured behind an input defence, which is not part of this export."]
    warnings = [f"- {a['heading']}: {w}" for a in found["attacks"] for w in a["warnings"]]
    return lines + (["", "Self-checks of the attacks:", "", *warnings] if warnings else [])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(argv: list[str] | None = None) -> int:
    out, written, card = export(parser().parse_args(argv))
    print(f"{'wrote' if written else 'unchanged:'} {out} ({card['prompts']['values']:,} values)")
    if written and card["licence"] == UNSTATED:
        print("note: the card states no licence; add --licence TEXT to give the prompts one")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
