"""The trainer all methods share: backbone, checkpoints, clean and robust test, record, picture."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch
from dassl.engine import TRAINER_REGISTRY, TrainerX

from .. import records
from ..attacks import compare, specs_from_cfg
from ..backbone import load_clip, text_features
from ..config import host
from ..config.keys import METHODS, check_cfg, extend_cfg
from ..defences import build_defence
from ..evaluation.evaluator import Evaluation
from ..evaluation.samples import ImageList
from ..evaluation.victim import TrainerVictim
from ..prompting import PromptSpec, templates
from ..utils import distributed
from ..utils.errors import UserError
from ..utils.images import Preprocess
from ..utils.io import atomic_write, sha256_file, tensors_digest, write_json
from ..utils.subset import images_to_test
from .checkpoints import (
    chosen_checkpoint,
    load_checkpoint,
    load_prompts,
    newest_checkpoint,
    rng_state,
    save_checkpoint,
    scheduler_state,
    set_rng_state,
    set_scheduler_state,
)
from .exports import read_start

MODEL_FILE = "model.json"  # what a run's figures are of: trainer, backbone, classes, prompts


def register(cls):
    """Register a trainer under its class name; a fork's trainer of that name comes first.

    Ours is then called ``advprompt.NAME``.

    Raises:
        UserError: another of our trainers has that name.
    """
    there = METHODS.setdefault(cls.__name__, cls)
    if there.__module__ != cls.__module__:
        raise UserError(
            f"trainer {cls.__name__!r} of {cls.__module__} has the name of one in "
            f"{there.__module__}; give it another class name"
        )
    METHODS[cls.__name__] = cls
    host.lend(TRAINER_REGISTRY, cls, alias=True)
    return cls


class RobustTrainer(TrainerX):
    """A Dassl trainer whose test measures clean and robust accuracy and writes a record.

    A method defines ``build_model`` (sets ``self.clip`` and registers its prompt module),
    ``text_features`` and, where it trains, ``forward_backward``.

    Attributes:
        paper: address of the method's paper.
        node: its config keys are ``cfg.TRAINER.<node>``; "" where it has none.
        trainable: whether there is anything to train.
        frozen_image_tower: image features do not depend on the prompts, so those of the test set
            are shared by all runs.
        tuning: training goes on without the image tower.
        spec: the prompts that are trained; None where there are none.
    """

    paper: str | None = None
    node = ""
    trainable = True
    tuning = False
    frozen_image_tower = True
    spec: PromptSpec | None = None

    def __init__(self, cfg):
        distributed.join()  # in a fork, whose train.py does not
        super().__init__(cfg)
        distributed.refuse_data_parallel(vars(self).values())

    @classmethod
    def extend_cfg(cls, cfg) -> None:
        """Add the method's own config keys with their defaults."""

    @classmethod
    def check_keys(cls, cfg) -> None:
        """Refuse values of the method's keys, before anything is written or loaded."""

    @classmethod
    def image_forwards(cls, cfg, images: int) -> dict[str, int]:
        """Return how many images go through the image tower in training on ``images`` images.

        Returns:
            ``train`` and ``bank``, as far as the method has them; gradient steps count once.
        """
        return {}

    def check_cfg(self, cfg):
        host.complete(cfg, extend_cfg)
        check_cfg(cfg)
        torch.backends.cudnn.allow_tf32 = False  # attacks are measured in true float32
        self.claimed = False  # the run folder is ours
        self.tested: dict = {}  # of a run that only tests: which model
        if cfg.TEST.SAVE_ADV and distributed.world() > 1:
            raise UserError(
                f"TEST.SAVE_ADV is True, but {distributed.world()} processes test together; set "
                "it False, and test the trained model again in one process with --eval-only"
            )
        self.seconds = {"train": 0.0, "bank": 0.0, "eval": 0.0}
        self.preprocess = Preprocess(cfg)
        self.origin: dict = {}  # of loaded prompts: how they were trained
        self.init_sha256 = ""  # of the file that training starts from

    def build_data_loader(self):
        self.device = distributed.device(self.device)  # Dassl's is the first GPU
        super().build_data_loader()
        self.test_images = images_to_test(self.dm.dataset.test, self.cfg)

    def load_clip(self):
        """Load the frozen backbone and compare its images with ``INPUT``."""
        cfg = self.cfg
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip = load_clip(cfg.MODEL.BACKBONE.NAME, device=self.device)
        clip.check_input(cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION)
        return clip

    # --- what a method puts around CLIP -----------------------------------------------------------

    @classmethod
    def prompt_spec(cls, keys, clip) -> PromptSpec:
        """Return the method's prompts; the default is the hand-made text alone.

        Args:
            keys: the method's config node, None where it has none.
            clip: the backbone; depths beyond its towers are cut by :meth:`served_spec`.
        """
        return PromptSpec()

    @classmethod
    def served_spec(cls, cfg, clip, template: str) -> PromptSpec:
        """Return the prompts of a trained model: with these :class:`PromptedCLIP` serves it."""
        spec = cls.prompt_spec(cfg.TRAINER[cls.node] if cls.node else None, clip)
        return replace(spec.cut_to(clip), template=template)

    @classmethod
    def prompt_facts(cls, spec: PromptSpec) -> dict:
        """Return what of the prompts a checkpoint must agree with."""
        return spec.facts()

    @classmethod
    def deployed(cls, weights: dict) -> dict:
        """Return what of a checkpoint's weights serves, under :class:`PromptedCLIP`'s names.

        Weights of a trained image tower are called ``visual.*``.
        """
        return weights

    def adopt(self, weights: dict, path) -> None:
        """Start from weights that :meth:`deployed` has named; ``path`` is for the message."""
        load_prompts(self.model, weights, path)

    # --- what a method offers to the test --------------------------------------------------------

    @property
    def classnames(self) -> list[str]:
        return self.dm.dataset.classnames

    @property
    def template(self) -> str:
        """The data set's hand-made prompt, with ``{}`` for the class name."""
        cfg = self.cfg.DATASET
        own = getattr(self.dm.dataset, "template", None)  # of our data sets; a fork's have none
        return cfg.TEMPLATE or own or templates.template_for(cfg.NAME)

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return raw features (B, D) of pixels (B, 3, H, W) in [0, 1]."""
        return self.clip.encode_image(pixels)

    def text_features(self) -> torch.Tensor:
        """Return the classes' unit-length text features (K, D) with the current prompts."""
        raise NotImplementedError

    def handmade_features(self) -> torch.Tensor:
        """Return unit-length text features (K, D) of the data set's hand-made prompt."""
        return text_features(self.clip, templates.fill(self.template, self.classnames))

    def prompt_digest(self) -> str:
        """Return a hex digest of everything that was trained."""
        state = {
            f"{name}.{key}": value
            for name, module in self._models.items()
            for key, value in module.state_dict().items()
        }
        return tensors_digest(state)

    def prompt_parameters(self) -> int:
        """Return the number of trained values."""
        return sum(p.numel() for m in self._models.values() for p in m.parameters())

    # --- training ---------------------------------------------------------------------------------

    def train(self):
        self.check_training()
        self.load_init_weights()
        if not self.claim():
            return
        images = ImageList(self.dm.dataset.train_x, self.preprocess)
        distributed.check_same("training images", images.names)
        if self.trainable:
            super().train()
        else:
            self.test()

    def claim(self) -> bool:
        """Take the run folder, which a fork's train.py leaves to us; False if there is no need.

        Raises:
            UserError: the folder holds a run of another configuration.
        """
        if self.claimed:
            return True
        from . import runs  # which imports this module

        self.claimed = True
        if distributed.agree(lambda: runs.is_done(self.cfg, **self.tested)):
            print(f"skipped: {self.output_dir} holds a completed record of this configuration")
            return False
        if distributed.is_main():
            runs.claim(self.cfg, **self.tested)
        return True

    def check_training(self) -> None:
        """Refuse to train on a data set that is fit for tests only.

        Raises:
            UserError: it has nothing to train on, too few images for the shots, or no
                validation images to choose the model by.
        """
        data, name = self.dm.dataset, self.cfg.DATASET.NAME
        if not self.trainable:
            return
        if getattr(data, "test_only", False):
            raise UserError(
                f"data set {name} is for tests only; train on another one and test here "
                "with --eval-only --model-dir RUN, as scripts/<method>/dg.sh does"
            )
        if short := getattr(data, "short", ""):  # of our data sets; a fork's have none
            raise UserError(short)
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not data.val:
            raise UserError(
                f"TEST.FINAL_MODEL is 'best_val', but data set {name} has no "
                "validation images and the test images must not choose the model; use last_step"
            )

    def load_init_weights(self) -> None:
        """Start from ``MODEL.INIT_WEIGHTS``, an export, run folder or checkpoint, if it is set.

        Raises:
            UserError: nothing there, damaged, or of another trainer, backbone or kind of prompts.
        """
        path, name = self.cfg.MODEL.INIT_WEIGHTS, type(self).__name__
        if not path or self.init_sha256:  # asked for before the run folder is claimed
            return
        if not self.trainable:
            raise UserError(
                f"MODEL.INIT_WEIGHTS is '{path}', but {name} learns nothing; leave it empty"
            )
        facts, weights, file = read_start(path, type(self))
        self._check_facts({"advprompt": facts}, file)
        self.adopt(weights, file)
        self.init_sha256 = sha256_file(file)
        print(f"Starting from {file}")

    def before_train(self):
        super().before_train()
        for module in self._models.values():
            distributed.align(module)

    def before_epoch(self):
        self._clock = time.perf_counter()

    def after_epoch(self):
        self.seconds["train"] += time.perf_counter() - self._clock
        super().after_epoch()

    def init_writer(self, log_dir):
        if distributed.is_main():
            super().init_writer(log_dir)

    def checkpoint_facts(self) -> dict:
        """Return what a checkpoint must agree with before it is loaded."""
        return {
            "trainer": type(self).__name__,
            "backbone": self.cfg.MODEL.BACKBONE.NAME,
            "weights_sha256": self.clip.sha256,
            "classnames": list(self.classnames),
            "template": self.template,
        } | ({"prompts": self.prompt_facts(self.spec)} if self.spec else {})

    def training_facts(self) -> dict:
        """Return what a record says of the training; kept in checkpoints for later tests."""
        shots = self.cfg.DATASET.NUM_SHOTS
        return {
            "train_threat": self.train_threat(),
            "epochs": self.cfg.OPTIM.MAX_EPOCH if self.trainable else 0,
            "shots": (shots if shots >= 1 else -1) if self.trainable else 0,
            "dataset": self.cfg.DATASET.NAME if self.trainable else None,
        } | ({"init_sha256": self.init_sha256} if self.init_sha256 else {})

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        """Write Dassl's files ``<directory>/<name>/model.pth.tar-<epoch>``, atomically."""
        for name in self.get_model_names() if distributed.is_main() else ():
            folder = Path(directory) / name
            state = {
                "state_dict": {k: v.cpu() for k, v in self._models[name].state_dict().items()},
                "epoch": epoch + 1,
                "optimizer": self._optims[name].state_dict() if self._optims[name] else None,
                "scheduler": scheduler_state(self._scheds[name]),
                "val_result": None if val_result is None else float(val_result),
                "rng": rng_state(),
                "seconds": dict(self.seconds),
                "best_result": float(self.best_result),
                "advprompt": self.checkpoint_facts(),
                "training": self.training_facts(),
            }
            if hasattr(self, "scaler"):
                state["scaler"] = self.scaler.state_dict()
            file = model_name or f"model.pth.tar-{epoch + 1}"
            save_checkpoint(folder / file, state)
            if is_best:
                save_checkpoint(folder / "model-best.pth.tar", state)
            # Dassl's pointer to the newest file, which resuming reads
            with atomic_write(folder / "checkpoint") as temporary:
                temporary.write_text(f"{file}\n", encoding="utf-8")
            print(f"Checkpoint saved to {folder / file}")
        distributed.wait()  # it is there before anybody looks for it

    def resume_model_if_exist(self, directory):
        """Go on from the newest checkpoint; return the epoch to start with.

        The run's own folder comes before ``directory``, which differs from it under ``--resume``.

        Raises:
            UserError: ``--resume`` names a folder without a checkpoint, or one that does not fit.
        """
        start = 0
        for name in self.get_model_names():
            folders = [Path(self.output_dir) / name, Path(directory) / name]
            path = distributed.agree(lambda among=folders: _newest_of(among))
            if path is None and self.cfg.RESUME:
                raise UserError(
                    f"there is no checkpoint to resume from in '{folders[-1]}'; give --resume the "
                    "folder of a run, or leave it out to train from the start"
                )
            if path is None:
                return 0
            state = load_checkpoint(path)
            self._check_facts(state, path, resuming=True)
            load_prompts(self._models[name], state["state_dict"], path)
            if state.get("optimizer") is not None:
                self._optims[name].load_state_dict(state["optimizer"])
            set_scheduler_state(self._scheds[name], state.get("scheduler"))
            if state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
            set_rng_state(state["rng"])
            self.seconds = dict(state["seconds"])
            self.best_result = state["best_result"]
            start = state["epoch"]
            print(f"Resuming {name} from {path} (epoch {start})")
        return start

    def load_model(self, directory, epoch=None):
        """Load prompts for evaluation: of ``epoch``, else the best on validation, else the newest.

        Raises:
            UserError: nothing there, damaged, or made by another trainer, width or class set.
        """
        from .runs import test_facts  # which imports this module

        self.tested = test_facts(True, directory, epoch)
        if not directory and self.trainable:
            raise UserError(
                f"--eval-only tests trained prompts, but --model-dir, the run folder of a trained "
                f"{type(self).__name__}, was not given"
            )
        for name in self.get_model_names():
            folder = Path(directory) / name
            path = chosen_checkpoint(folder, epoch) or folder / "model-best.pth.tar"
            state = load_checkpoint(path)
            self._check_facts(state, path)
            load_prompts(self._models[name], state["state_dict"], path)
            self.origin = dict(state.get("training") or {})
            if self.origin and "dataset" not in self.origin:  # an older one; its run may tell
                record = records.completed_record(directory)
                self.origin |= {"dataset": record["dataset"]} if record else {}
            if epoch is not None:
                self.origin["epochs"] = epoch
            print(f"Loaded {name} from {path} (epoch {state.get('epoch')})")

    def _check_facts(self, state: dict, path, *, resuming: bool = False) -> None:
        theirs, mine = state.get("advprompt") or {}, self.checkpoint_facts()
        names = {"trainer": "trainer", "weights_sha256": "backbone weights", "prompts": "prompts"}
        for key, what in names.items():
            if key in theirs and not _agree(theirs[key], mine.get(key)):
                raise UserError(
                    f"checkpoint '{path}' was made with {what} '{theirs[key]}', not "
                    f"'{mine.get(key)}'; use the trainer, backbone and prompts it was trained with"
                )
        # shared contexts are made to serve other classes; class-specific ones belong to theirs
        bound = resuming or mine.get("prompts", {}).get("csc", False)
        if bound and theirs.get("classnames", mine["classnames"]) != mine["classnames"]:
            raise UserError(
                f"checkpoint '{path}' was made for other classes "
                f"({', '.join(theirs['classnames'][:3])}, ...) than this run's "
                f"({', '.join(mine['classnames'][:3])}, ...); use the data set it was trained with"
            )

    # --- test -------------------------------------------------------------------------------------

    def test(self, split=None):
        """Measure clean accuracy and every attack of ``ATTACK.TEST``, and write the record.

        Returns:
            clean accuracy in percent (as Dassl's trainers do).
        """
        if self.tested and not self.claim():
            return records.accuracy(records.completed_record(self.output_dir)["clean"])
        self.set_model_mode("eval")
        split = split or self.cfg.TEST.SPLIT
        if split == "val" and not self.dm.dataset.val:
            split = "test"
        if split != "val" or not self.tuning:
            self.need_image_tower()
        items = self.dm.dataset.val if split == "val" else self.test_images
        evaluation = Evaluation(
            TrainerVictim(self),
            ImageList(items, self.preprocess),
            folder=Path(self.output_dir) / "unfinished",
            cache=self.bank_folder(),
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
            probes=self.cfg.TEST.PROBES,
            defence=None if split == "val" else build_defence(self.cfg),
            eot=self.cfg.DEFENCE.EOT,
            keep=Path(self.output_dir) / "adversarial" if self.cfg.TEST.SAVE_ADV else None,
        )
        print(f"Evaluate on the *{split}* set")
        clock = time.perf_counter()
        clean = self._clean_accuracy(evaluation)
        if split == "val":
            return clean
        attacks = []
        views = {"none": [False], "bpda": [True]}.get(self.cfg.DEFENCE.ADAPTIVE, [False, True])
        views = views if evaluation.defence else [False]
        specs = specs_from_cfg(self.cfg.ATTACK.TEST, key="ATTACK.TEST")
        for spec, seen in ((spec, seen) for seen in views for spec in specs):
            entry = evaluation.attack(spec, seen=seen)
            attacks.append(entry)
            known = spec.adaptive or spec.library
            how = "" if known else f"-{spec.steps} ({spec.objective})"
            how += f" [{entry['defence']}]" if evaluation.defence else ""
            print(
                f"* {spec.target} {spec.name}{how} {entry['eps'] or 'no ball'}: robust accuracy "
                f"{records.accuracy(entry):.1f}% in {entry['seconds']:.0f} s"
            )
            for warning in entry["warnings"]:
                print(f"  warning: {warning}")
        for i, warnings in compare(attacks).items():
            attacks[i]["warnings"] += warnings
            print("".join(f"  warning: {warning}\n" for warning in warnings), end="")
        if distributed.is_main():
            self._picture(evaluation)
            self.seconds["eval"] = round(time.perf_counter() - clock, 3)
            self._write_record(evaluation, attacks)
            shutil.rmtree(evaluation.folder, ignore_errors=True)  # the record holds it all now
        return clean

    def need_image_tower(self) -> None:
        """Load the image tower again where tuning has freed it."""
        if self.clip.model.visual is None:
            self.clip.model.visual = self.load_clip().model.visual

    def bank_folder(self) -> Path:
        """Return the folder of cached image features, shared by runs."""
        return Path(self.cfg.DATASET.FEATURE_DIR or Path(self.output_dir) / "banks")

    def _clean_accuracy(self, evaluation: Evaluation) -> float:
        self.evaluator.reset()
        self.evaluator.process(evaluation.clean(), evaluation.labels)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"test/{name}", value, self.epoch if hasattr(self, "epoch") else 0)
        return next(iter(results.values()))

    def _picture(self, evaluation: Evaluation) -> None:
        specs = [
            s
            for s in specs_from_cfg(self.cfg.ATTACK.TEST, key="ATTACK.TEST")
            if s.target == "end_to_end"
        ]
        from ..evaluation.pictures import save_examples

        examples = evaluation.examples(specs[0], self.cfg.TEST.PICTURE) if specs else {}
        if not examples:
            return
        path = save_examples(
            self.output_dir,
            **examples,
            title=f"{type(self).__name__}, {self.cfg.DATASET.NAME}, {self.cfg.MODEL.BACKBONE.NAME}",
        )
        print(f"* picture: {path}")

    def _write_record(self, evaluation: Evaluation, attacks: list[dict]) -> None:
        cfg, right = self.cfg, evaluation.clean_right
        training = self.training_facts() | self.origin
        known = not self.origin or "dataset" in self.origin  # nobody says
        # under one path, MODEL.INIT_WEIGHTS may have been another file
        sha256 = training.get("init_sha256")
        start = {"MODEL.INIT_WEIGHTS_SHA256": sha256} if sha256 else {}
        which = cfg.DATASET.SUBSAMPLE_CLASSES
        protocol = cfg.TEST.PROTOCOL or (
            "base2new" if which != "all" else "few_shot" if self.trainable else "zero_shot"
        )
        record = records.new_record(
            trainer=type(self).__name__,
            paper=self.paper,
            dataset=cfg.DATASET.NAME,
            source=training["dataset"] if known else None,
            protocol=protocol,
            split=which,
            shots=training["shots"],
            seed=cfg.SEED,
            backbone=cfg.MODEL.BACKBONE.NAME,
            weights_sha256=self.clip.sha256,
            prompt_parameters=self.prompt_parameters(),
            classes=len(self.classnames),
            train_threat=training["train_threat"],
            epochs=training["epochs"],
            # a smaller set is whole
            subset=cfg.TEST.SUBSET if cfg.TEST.SUBSET == len(right) else None,
            seconds={k: round(v, 3) for k, v in self.seconds.items()},
            clean={"n": len(right), "correct": int(right.sum())},
            attacks=attacks,
            config=records.flat_config(cfg) | start,
            status="completed",
            device=self.device,
            processes=distributed.world(),
        )
        write_json(Path(self.output_dir) / MODEL_FILE, self.checkpoint_facts())
        print(f"* record: {records.write_record(self.output_dir, record)}")

    def train_threat(self) -> dict | None:
        """Return the description of the training attack; None for methods that see none."""
        return None


def _agree(theirs, mine) -> bool:
    """Whether facts agree in all that a checkpoint notes; older versions noted fewer."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        return all(key in mine and mine[key] == value for key, value in theirs.items())
    return theirs == mine


def _newest_of(folders: list[Path]) -> str | None:
    """Return the newest checkpoint of the first folder that holds one."""
    found = next(filter(None, map(newest_checkpoint, folders)), None)
    return None if found is None else str(found)
