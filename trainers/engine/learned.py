"""What a run learned, read from its folder: what an export holds, and what ``load`` serves."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from dassl.data.datasets import DATASET_REGISTRY

from .. import records
from ..backbone import CLIPAdapter, load_clip
from ..config import host
from ..config.keys import METHODS, default_cfg, method_called
from ..prompting import PromptSpec, templates
from ..utils.errors import UserError, nearest
from ..utils.io import read_json
from . import checkpoints, exports, run_folder
from .data import MODEL_FILE
from .saving import UNKNOWN, is_ours
from .trainer import RobustTrainer
from .tuning import PromptTrainer

SETTINGS = ("OPTIM.", "TRAINER.ADVERSARIAL.", "DATALOADER.TRAIN_X.", "INPUT.TRANSFORMS")
BACKBONE_NOTE = (
    "The backbone itself is not included: it is loaded by its name, and refused unless its weights "
    "have this SHA-256."
)
TOWER_NOTE = " The image tower, which the training changed, is included."


class Learned(NamedTuple):
    """The model of a run, in parts, and what is known of its training and its test."""

    cfg: Any
    method: type[RobustTrainer]
    clip: CLIPAdapter
    classnames: list[str]
    spec: PromptSpec
    tensors: dict
    state: dict  # of the checkpoint
    trained: dict  # settings of the training
    record: dict | None
    measured: bool  # whether the record is of this checkpoint

    def card(self) -> dict:
        """Return what an export's card says of the model."""
        tower = any(key.startswith(exports.TOWER) for key in self.tensors)
        size, interpolation = list(self.cfg.INPUT.SIZE), self.cfg.INPUT.INTERPOLATION
        card = {
            "format": exports.FORMAT,
            "method": {
                "trainer": self.method.__name__,
                "paper": self.method.paper,
                "summary": (self.method.__doc__ or "").split("\n")[0],
            },
            **training_card(self.cfg, self.method, self.trained, self.state),
            "backbone": {
                "name": exports.portable(self.clip.name),
                "weights_sha256": self.clip.sha256,
                "included": False,
                "note": BACKBONE_NOTE + TOWER_NOTE * tower,
            },
            "input": {
                "size": size,
                "interpolation": interpolation,
                "range": "[0, 1]",
                "preprocessing": f"smaller edge to {max(size)} pixels ({interpolation}), centre "
                "crop, RGB in [0, 1]; CLIP's mean and std are applied inside the model",
            },
            "prompts": {
                "spec": asdict(self.spec),
                "values": sum(value.numel() for value in self.tensors.values()),
                "shapes": {key: list(t.shape) for key, t in sorted(self.tensors.items())},
            },
        }
        card["data"] |= {"classes": list(self.classnames), "template": self.spec.template}
        return card


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
        from .. import datasets  # noqa: F401  registers them

        host.join()
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


def learned_by(
    run,
    *,
    epoch: int | None = None,
    unfinished: bool = False,
    root: str | None = None,
    backbone: str | None = None,
    weights_dir=None,
) -> Learned:
    """Read what a run learned.

    Args:
        run: the folder of a run, or of a test of it.
        epoch: default: the one that was tested, else the best on validation, else the newest.
        unfinished: also a run without a record.
        backbone: another name for the same weights.
        root: folder of the data sets, for runs of versions that did not keep the class names.

    UserError: no run, an unfinished one, or missing values or backbone.
    """
    folder, cfg = Path(run), default_cfg()
    trained, tested = run_folder.stored(folder)
    run_folder.restore(cfg, trained, folder)
    run = Path(tested.get("model_dir") or folder)
    if tested:  # whose own settings may not be those of the training
        trained = run_folder.stored(run)[0] if (run / run_folder.CONFIG_FILE).is_file() else {}
    record = records.completed_record(folder)
    if record is None and not unfinished:
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
        state, measured = checkpoint_of(run, tested, epoch)
        if record and measured:
            run_folder.check_model(folder, record, run, tested.get("load_epoch"))
    facts = state.get("advprompt") or {}
    classnames, template = classes_of(folder, cfg, facts, trained, root)
    clip = load_clip(backbone or cfg.MODEL.BACKBONE.NAME, weights_dir=weights_dir)
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
    return Learned(cfg, method, clip, classnames, spec, tensors, state, trained, record, measured)


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
            "started_from_sha256": training.get("init_sha256"),
            "settings": {k: v for k, v in settings.items() if k.startswith(prefixes)},
        },
    }
