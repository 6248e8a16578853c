"""The trainer that all methods share: backbone, hooks of a method, training; see testing.py too."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from dassl.data import data_manager
from dassl.engine import TRAINER_REGISTRY
from PIL import Image

from .. import records
from ..backbone import load_clip, text_features
from ..config import host
from ..config.keys import METHODS, add_defaults, check_cfg, extend_cfg
from ..prompting import PromptSpec, templates
from ..utils.errors import UserError
from ..utils.images import Preprocess, read_rgb
from ..utils.io import sha256_file, tensors_digest
from . import run_folder
from .checkpoints import check_facts, load_prompts
from .data import Data
from .draws import own_draws
from .exports import read_start
from .saving import SavingTrainer
from .testing import test_model
from .watching import watch


def register(cls):
    """Register a trainer under its class name; a fork's trainer of that name comes first.

    Ours is then called ``advprompt.NAME``. UserError if another of our trainers has that name, or
    records could not name its paper.
    """
    paper = getattr(cls, "paper", None)
    if paper is not None and not (isinstance(paper, str) and paper.strip()):
        raise UserError(
            f"trainer {cls.__name__!r} of {cls.__module__} has paper = {paper!r}, expected the "
            "address of its paper, or None"
        )
    there = METHODS.setdefault(cls.__name__, cls)
    if there.__module__ != cls.__module__:
        raise UserError(
            f"trainer {cls.__name__!r} of {cls.__module__} has the name of one in "
            f"{there.__module__}; give it another class name"
        )
    METHODS[cls.__name__] = cls
    host.register_unless_taken(TRAINER_REGISTRY, cls, alias=True)
    return cls


class RobustTrainer(SavingTrainer):
    """A Dassl trainer whose test measures clean and robust accuracy and writes a record.

    A method defines ``build_model`` (sets ``self.clip`` and registers its prompt module),
    ``text_features`` and, where it trains, ``forward_backward``. With ``frozen_image_tower``, image
    features do not depend on the prompts, so those of the test set are shared by all runs.
    """

    paper: str | None = None  # address of the method's paper
    node = ""  # its config keys are cfg.TRAINER.<node>; "" where it has none
    own_keys: ClassVar[dict] = {}  # these keys, by name: a Key or a default
    trainable = True  # whether there is anything to train
    tuning = False  # training does not need the image tower
    frozen_image_tower = True
    spec: PromptSpec | None = None  # the prompts that are trained, if any
    unwatched = False  # robust accuracy could not be measured during training
    # keys that came later -> what was done before, where that is not their default
    formerly: ClassVar[dict] = {}

    def __init__(self, cfg):
        super().__init__(cfg)
        if any(isinstance(thing, torch.nn.DataParallel) for thing in vars(self).values()):
            raise UserError(
                "this trainer has put its model into nn.DataParallel, which attacks and prompts do "
                "not work with; remove it, and set CUDA_VISIBLE_DEVICES=0 to train on one GPU"
            )

    @classmethod
    def extend_cfg(cls, cfg) -> None:
        """Add the method's own config keys with their defaults."""
        for part in cls.__mro__:
            if own := vars(part).get("own_keys"):
                add_defaults(cfg, f"TRAINER.{part.node}", **own)

    @classmethod
    def check_keys(cls, cfg) -> None:
        """Refuse values of the method's keys, before anything is written or loaded."""

    @classmethod
    def is_adversarial(cls, cfg) -> bool:
        """Return True if this configuration trains on attacked images."""
        return False

    @classmethod
    def nodes(cls) -> tuple[str, ...]:
        """Return the nodes of ``cfg.TRAINER`` that its training uses."""
        return (cls.node,) if cls.node else ()

    def check_cfg(self, cfg):
        host.complete(cfg, extend_cfg)
        check_cfg(cfg)
        torch.backends.cudnn.allow_tf32 = False  # attacks are measured in true float32
        self.task: run_folder.Task | None = None  # what is left to do, once known
        self.tested: dict = {}  # of a run that only tests: which model
        self.seconds = {"train": 0.0, "bank": 0.0, "eval": 0.0}
        self.preprocess = Preprocess(cfg)
        self.origin: dict | None = None  # of loaded prompts: how they were trained
        self.released: dict = {}  # of a checkpoint of the public code: what a record says of it
        self.init_sha256 = ""  # of the file that training starts from

    def build_data_loader(self):
        data_manager.read_image = _read_image
        super().build_data_loader()
        self.train_loader_x = own_draws(self.train_loader_x, max(self.cfg.SEED, 0))
        self.samples = self.train_loader_x.dataset
        self.data = Data(self.dm.dataset, self.cfg)
        self.test_images = self.data.items
        self._check_texts()

    def _check_texts(self) -> None:
        """Refuse classes with one text, between which accuracy is chance; note ImageNet's."""
        same = templates.same_text(self.template, self.classnames)
        if not same:
            return
        names, text = same
        said = f"classes {' and '.join(map(repr, names))} have the same prompt text, '{text}'"
        if self.cfg.DATASET.NAME not in templates.TEMPLATES:
            raise UserError(f"{said}; no text model can tell them apart, so rename or merge them")
        print(f"note: {said}: accuracy is chance between them")

    def load_clip(self):
        """Load the frozen backbone and compare its images with ``INPUT``."""
        cfg = self.cfg
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip = load_clip(cfg.MODEL.BACKBONE.NAME, device=self.device)
        clip.hasten(compiled=cfg.MODEL.BACKBONE.COMPILE, last=cfg.MODEL.BACKBONE.CHANNELS_LAST)
        clip.check_input(cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION)
        clip.tokenize(templates.fill(self.template, self.classnames))  # too long? Not after hours
        return clip

    # --- what a method puts around CLIP -----------------------------------------------------------

    @classmethod
    def prompt_spec(cls, keys, clip) -> PromptSpec:
        """Return the prompts that ``keys``, the method's config node or None, describe.

        The default is the hand-made text alone. :meth:`served_spec` cuts depths beyond the towers.
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
        """Return the weights that serve, by PromptedCLIP's names, a tower's as ``visual.*``."""
        return weights

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
        with run_folder.locked(self.output_dir):
            if not self.take_folder():
                return
            if not self.trainable:
                self.test()
            elif self.task.state == "train":
                super().train()
            else:
                self.test_finished()

    def test_finished(self) -> None:
        """Test the model of a training that is complete, as the end of the training does."""
        self.time_start = time.time()
        self.resume_model_if_exist(self.output_dir)
        if self.task.inside:  # whose record has the time of the training already
            self.seconds |= {"train": 0.0, "bank": 0.0}
        self.after_train()

    def take_folder(self) -> bool:
        """Take the run folder (UserError if it is another run's); False if all is done."""
        if self.task is None:
            self.task = run_folder.look(self.cfg, **self.tested)
            if self.task.state == "done":
                run_folder.clear(self.task.record)
                if record := records.completed_record(self.task.record):
                    self.data.check(self.task.record, record, trained=not self.tested)
                print(f"skipped: {self.task.record} holds a completed record of this configuration")
            else:
                run_folder.claim(self.cfg, self.task, **self.tested)
        return self.task.state != "done"

    def check_training(self) -> None:
        """Refuse a training that cannot be what it says, before the run folder is taken.

        Refused are a --resume that names another training, and a data set with nothing to train
        on, too few images for the shots, or no validation images to choose the model by.
        """
        data, name = self.dm.dataset, self.cfg.DATASET.NAME
        if not self.trainable:
            return
        if self.cfg.RESUME:
            advice = "--resume continues the same training, so give its settings"
            run_folder.check(Path(self.cfg.RESUME), run_folder.training_of(self.cfg), advice)
        if getattr(data, "test_only", False):
            raise UserError(
                f"data set {name} is for tests only; train on another one and test here "
                "with --eval-only --model-dir RUN, as scripts/<method>/dg.sh does"
            )
        short = getattr(data, "short", "")  # of our data sets; a fork's have none
        if short and not self.cfg.DATASET.FEWER_SHOTS:
            raise UserError(short)
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not data.val:
            raise UserError(
                f"TEST.FINAL_MODEL is 'best_val', but data set {name} has no "
                "validation images and the test images must not choose the model; use last_step"
            )

    def load_init_weights(self) -> None:
        """Start from ``MODEL.INIT_WEIGHTS``, an export, run folder or checkpoint, if it is set.

        UserError if it is missing, damaged, or of another trainer, backbone or kind of prompts.
        """
        path, name = self.cfg.MODEL.INIT_WEIGHTS, type(self).__name__
        if not path or self.init_sha256:  # asked for before the run folder is claimed
            return
        if not self.trainable:
            raise UserError(
                f"MODEL.INIT_WEIGHTS is '{path}', but {name} learns nothing; leave it empty"
            )
        facts, weights, file = read_start(path, type(self))
        check_facts(facts, self.checkpoint_facts(), file)
        load_prompts(self.model, weights, file)
        self.init_sha256 = sha256_file(file)
        print(f"Starting from {file}")

    def before_epoch(self):
        self.samples.epoch = self.epoch
        self._clock = time.perf_counter()

    def after_epoch(self):
        self.seconds["train"] += time.perf_counter() - self._clock
        watch(self)
        super().after_epoch()

    def init_writer(self, log_dir):
        threading.excepthook = _report
        self._decorate(super().init_writer, log_dir)

    def write_scalar(self, tag, scalar_value, global_step=None):
        self._decorate(super().write_scalar, tag, scalar_value, global_step)

    def close_writer(self):
        self._decorate(super().close_writer)

    def _decorate(self, write, *arguments) -> None:
        """Write for TensorBoard; where that fails, it ends, and nothing else does."""
        try:
            write(*arguments)
        except Exception as error:  # such as a full disk
            print(f"note: TensorBoard's file cannot be written ({error}); nothing more is")
            self._writer = None

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
            "seed": self.cfg.SEED,
            "data": self.data.of_training if self.trainable else None,
        } | ({"init_sha256": self.init_sha256} if self.init_sha256 else {})

    def trained_as(self) -> dict:
        """Return how the current prompts were trained, here or elsewhere."""
        return self.training_facts() if self.origin is None else self.origin

    # --- test -------------------------------------------------------------------------------------

    def test(self, split=None):
        """Write the record of all attacks; return clean accuracy in percent, as in Dassl."""
        with run_folder.locked(self.output_dir):
            if self.tested and not self.take_folder():
                return records.accuracy(records.completed_record(self.task.record)["clean"])
            return test_model(self, split or self.cfg.TEST.SPLIT)

    @property
    def record_dir(self) -> Path:
        """The folder of the record, and of the other files of a test."""
        return Path(self.task.record if self.task else self.output_dir)

    def need_image_tower(self) -> None:
        """Load the image tower again where tuning has freed it."""
        if self.clip.model.visual is None:
            self.clip.model.visual = self.load_clip().model.visual

    def bank_folder(self) -> Path:
        """Return the folder of cached image features, shared by runs."""
        return Path(self.cfg.DATASET.FEATURE_DIR or Path(self.output_dir) / "banks")

    def train_threat(self) -> dict | None:
        """Return the description of the training attack; None for methods that see none."""
        return None


def _report(args, report=threading.excepthook) -> None:
    """Report an error in a thread; TensorBoard's is one that the next call of it raises as well."""
    if not type(args.thread).__module__.startswith("tensorboard"):
        report(args)


def _read_image(path) -> Image.Image:
    """Read training images as the test does; Dassl's reader makes 16-bit ones white."""
    try:
        return read_rgb(path)
    except UserError as error:
        raise OSError(str(error)) from error  # which loaders in other processes pass on
