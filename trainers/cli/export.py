"""Write what a run learned, with a card that says what it is: an entry of a prompt zoo.

    python -m advprompt export output/eurosat/NAPTuning/tiny/seed1 --out zoo/naptuning_eurosat

The folder holds the learned prompts, projections and refiners (of a fine-tuned image tower: that
tower) as safetensors and the card as JSON and markdown. `advprompt.load(FOLDER)` makes a
classifier of it, MODEL.INIT_WEIGHTS starts a training from it. The backbone is not included.
"""

import argparse
import re
from dataclasses import asdict
from pathlib import Path

from dassl.config import get_cfg_default

from .. import records
from ..backbone import load_clip
from ..config.keys import METHODS, extend_cfg, method_called
from ..engine import checkpoints, exports, run_folder
from ..engine.data import MODEL_FILE
from ..engine.saving import UNKNOWN, is_ours
from ..engine.trainer import RobustTrainer
from ..engine.tuning import PromptTrainer
from ..experiments.state import register_datasets
from ..prompting import templates
from ..report.threats import MEANINGS, attack_headings, describe, threat_label
from ..utils.errors import UserError, nearest
from ..utils.io import read_json
from ..utils.machine import environment

UNSTATED = "not stated"
SETTINGS = ("OPTIM.", "TRAINER.ADVERSARIAL.", "DATALOADER.TRAIN_X.", "INPUT.TRANSFORMS")
BACKBONE_NOTE = (
    "The backbone itself is not included: it is loaded by its name, and refused unless its weights "
    "have this SHA-256."
)
TOWER_NOTE = " The image tower, which the training changed, is included."


def checkpoint_of(run: Path, tested: dict, epoch: int | None) -> tuple[dict, bool]:
    """Return what a checkpoint of a run holds, and whether the run's figures are of that epoch."""
    folder = run / checkpoints.LEARNER
    measured = checkpoints.chosen_checkpoint(folder, tested.get("load_epoch"))
    path = measured if epoch is None else checkpoints.chosen_checkpoint(folder, epoch)
    if path is None or not path.is_file():
        there = sorted(p.name for p in folder.glob("model*"))
        raise UserError(
            f"'{path or folder}' does not exist; "
            + (f"there are: {', '.join(there)}" if there else "train the run first")
        )
    state = checkpoints.load_checkpoint(path)
    if path == measured or measured is None or not measured.is_file():
        return state, path == measured
    return state, checkpoints.load_checkpoint(measured).get("epoch") == state.get("epoch")


def classes_of(folder: Path, cfg, facts: dict, trained: dict, root: str | None) -> tuple[list, str]:
    """Return the class names and the hand-made prompt that the run was tested with.

    The checkpoint's ``facts`` know the classes of the training, which had the settings ``trained``.
    """
    template = cfg.DATASET.TEMPLATE or templates.template_for(cfg.DATASET.NAME)
    own = {k: cfg.DATASET[k] for k in ("NAME", "SUBSAMPLE_CLASSES")}
    if (folder / MODEL_FILE).is_file():
        facts = read_json(folder / MODEL_FILE)
    elif root:
        from dassl.data.datasets import DATASET_REGISTRY

        register_datasets()
        cfg.DATASET.ROOT = root
        data = DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
        return data.classnames, getattr(data, "template", "") or template
    elif "classnames" not in facts or any(trained.get(f"DATASET.{k}") != own[k] for k in own):
        raise UserError(
            f"'{folder}' was made by an older version, which did not keep the class names; say "
            "where the data sets are with --root"
        )
    names, template = facts.get("classnames"), facts.get("template") or template
    if not isinstance(names, list) or not all(isinstance(n, str) for n in [*names, template]):
        raise UserError(
            f"'{folder / MODEL_FILE}' holds no class names and template; delete it, test the run "
            "again, and export it then"
        )
    return names, template


def export(args: argparse.Namespace) -> tuple[Path, bool, dict]:
    """Write an export; return its folder, whether it was not there already, and its card.

    Raises:
        UserError: no run, an unfinished one, missing values or backbone, or another export there.
    """
    folder, cfg = Path(args.run), get_cfg_default()
    extend_cfg(cfg)
    trained, tested = run_folder.stored(folder)
    run_folder.restore(cfg, trained, folder)
    run = Path(tested.get("model_dir") or folder)
    if tested:  # whose own settings may not be those of the training
        trained = run_folder.stored(run)[0] if (run / run_folder.CONFIG_FILE).is_file() else {}
    record = records.completed_record(folder)
    if record is None and not args.unfinished:
        raise UserError(
            f"'{folder}' is not finished (it has no completed {records.FILE_NAME}); let it end, or "
            "export it without figures by --unfinished"
        )
    method = method_called(cfg.TRAINER.NAME)
    if method is None:
        raise UserError(
            f"'{folder}' was made by trainer '{cfg.TRAINER.NAME}', which is not one of this "
            f"project's.{nearest(cfg.TRAINER.NAME, METHODS)}"
        )
    if method.image_features not in (RobustTrainer.image_features, PromptTrainer.image_features):
        raise UserError(
            f"{method.__name__} has image features of its own, on which '{folder}' was tested and "
            "which an export does not keep; serve the trainer itself"
        )
    state, measured = {"state_dict": {}}, True
    if method.trainable:
        state, measured = checkpoint_of(run, tested, args.epoch)
        if record and measured:
            run_folder.check_model(folder, record, run, tested.get("load_epoch"))
    facts = state.get("advprompt") or {}
    classnames, template = classes_of(folder, cfg, facts, trained, args.root)
    clip = load_clip(cfg.MODEL.BACKBONE.NAME)
    expected = facts.get("weights_sha256") or (record or {}).get("weights_sha256", clip.sha256)
    if expected != clip.sha256:
        raise UserError(
            f"'{folder}' was trained on weights {expected[:12]}... of backbone {clip.name}, here "
            f"it has {clip.sha256[:12]}...; use those"
        )
    if record:
        check_record(folder, record, method.__name__, clip, classnames)
    spec = method.served_spec(cfg, clip, template)
    tensors = method.deployed(state["state_dict"])
    exports.serve(clip, classnames, spec, tensors, folder)  # what does not load is not written
    made = record or environment()
    card = {
        "format": exports.FORMAT,
        "method": {
            "trainer": method.__name__,
            "paper": method.paper,
            "summary": (method.__doc__ or "").split("\n")[0],
        },
        **training_card(cfg, method, trained, state),
        **model_card(cfg, clip, spec, tensors),
        "figures": figures(record) if record and measured else None,
        "versions": made["versions"],
        "git_commit": made["git_commit"],
        "licence": args.licence,
    }
    card["data"] |= {"classes": list(classnames), "template": spec.template}
    out = Path(args.out) if args.out else Path("zoo", default_name(card))
    return out, exports.write_export(out, tensors, card, page(card, out)), card


def check_record(folder: Path, record: dict, trainer: str, clip, classnames: list) -> None:
    """Refuse (UserError) figures of another trainer, backbone or data than what is exported."""
    path = folder / MODEL_FILE
    noted = read_json(path).get("data_sha256") if path.is_file() else None
    pairs = {
        "trainer": (record["trainer"], trainer),
        "weights": (record["weights_sha256"], clip.sha256),
        "number of classes": (record["classes"], len(classnames)),
        "data": (record.get("data_sha256"), noted or record.get("data_sha256")),
    }
    for what, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise UserError(
                f"the record in '{folder}' is of {what} {theirs}, what would be exported is of "
                f"{ours}; put the run's own {records.FILE_NAME} back, or move it away to test again"
            )


def training_card(cfg, method, settings: dict, state: dict) -> dict:
    """Return what the card says of data and training, from its settings and its checkpoint."""
    training = {"shots": 0, "epochs": 0, "train_threat": None, "seed": cfg.SEED}
    if method.trainable:
        training = state["training"] if is_ours(state) else UNKNOWN
        settings = settings if is_ours(state) else {}
    data, threat = training.get("data") or {}, training["train_threat"]
    named = data.get("name") or training.get("dataset") or settings.get("DATASET.NAME")
    prefixes = (*SETTINGS, f"TRAINER.{method.node}.") if method.node else ()
    return {
        "data": {
            "name": cfg.DATASET.NAME,
            "trained_on": named or "unknown",
            "trained_split": data.get("split") or settings.get("DATASET.SUBSAMPLE_CLASSES"),
            "split": cfg.DATASET.SUBSAMPLE_CLASSES,
        },
        "training": {
            "shots": training["shots"],
            "seed": training.get("seed", cfg.SEED),
            "epoch": state.get("epoch", 0),
            "epochs": training["epochs"],
            "threat": threat,
            "threat_in_words": f"{threat_label(threat)}: {describe(threat)}" if threat else None,
            "started_from_sha256": training.get("init_sha256"),
            "settings": {k: v for k, v in settings.items() if k.startswith(prefixes)},
        },
    }


def model_card(cfg, clip, spec, tensors: dict) -> dict:
    """Return what the card says of backbone, input and learned values."""
    tower = any(key.startswith(exports.TOWER) for key in tensors)
    size, interpolation = list(cfg.INPUT.SIZE), cfg.INPUT.INTERPOLATION
    return {
        "backbone": {
            "name": exports.portable(clip.name),
            "weights_sha256": clip.sha256,
            "included": False,
            "note": BACKBONE_NOTE + TOWER_NOTE * tower,
        },
        "input": {
            "size": size,
            "interpolation": interpolation,
            "range": "[0, 1]",
            "preprocessing": f"smaller edge to {max(size)} pixels ({interpolation}), centre crop, "
            "RGB in [0, 1]; CLIP's mean and std are applied inside the model",
        },
        "prompts": {
            "spec": asdict(spec),
            "values": sum(value.numel() for value in tensors.values()),
            "shapes": {key: list(value.shape) for key, value in sorted(tensors.items())},
        },
    }


def figures(record: dict) -> dict:
    """Return every figure of a record, each attack in words."""
    described = exports.portable(record["attacks"])  # surrogates and defences may be files
    attacks = [
        attack
        | {
            "accuracy": round(records.accuracy(attack), 2),
            "heading": heading,
            "in_words": f"{describe(attack)}; {MEANINGS[attack['target']]}",
        }
        for attack, heading in zip(described, attack_headings(described), strict=True)
    ]
    same = ("dataset", "protocol", "split", "subset", "seed", "device", "created")
    digests = {key: record.get(key) for key in ("prompts_sha256", "data_sha256")}
    clean = record["clean"] | {"accuracy": round(records.accuracy(record["clean"]), 2)}
    first = record["config"].get("TEST.FIRST") or None
    found = {key: record[key] for key in same} | digests
    return found | {"first": first, "clean": clean, "attacks": attacks}


def default_name(card: dict) -> str:
    """Return a folder name such as ``naptuning_eurosat_tiny_16shots_seed1``."""
    data, training = card["data"], card["training"]
    backbone = re.sub("^(file|open_clip):", "", card["backbone"]["name"].partition("?")[0])
    shots = {0: "zeroshot", -1: "all", None: "unknown"}
    shots = shots.get(training["shots"], f"{training['shots']}shots")
    words = [card["method"]["trainer"], data["name"], data["split"].replace("all", "")]
    words += [Path(backbone.replace("/", "-")).stem, shots, f"seed{training['seed']}"]
    return re.sub(r"[^\w.-]", "-", "_".join(filter(None, words)).lower())


def page(card: dict, folder: Path) -> str:
    """Return the card in markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: text.replace("|", "\\|").replace("\n", " ")
    path = folder.name if folder.is_absolute() else folder.as_posix()
    found = card["figures"]
    images = records.test_images(found["subset"], found["first"]) if found else ""
    return environment.get_template("card.md.j2").render(card, path=path, images=images)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("advprompt export", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("run", help="folder of a finished run")
    add("--out", metavar="FOLDER", help="default: zoo/ and what the run is")
    add("--epoch", type=int, help="epoch to export (default: best, else newest)")
    add("--licence", default=UNSTATED, metavar="TEXT", help="licence of the prompts")
    add("--unfinished", action="store_true", help="also a run without a record")
    root = "folder of the data sets: of a run that did not keep its classes (older versions)"
    add("--root", help=root)
    out, written, card = export(parser.parse_args(argv))
    print(f"{'wrote' if written else 'unchanged:'} {out} ({card['prompts']['values']:,} values)")
    if written and card["licence"] == UNSTATED:
        print("note: the card states no licence; add --licence TEXT to give the prompts one")
