"""``advprompt.evaluate``: the robust accuracy of any model on any images, as a record."""

import contextlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from dassl.data.datasets import DATASET_REGISTRY
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from .. import records
from ..attacks import specs_from_cfg
from ..backbone.loading import digest_of_name
from ..config import keys, merging
from ..config.identity import refuse_training
from ..evaluation.models import ModelVictim
from ..evaluation.samples import ImageList, PixelList
from ..evaluation.victim import Victim, evaluating
from ..utils.errors import UserError, nearest
from ..utils.images import clip_preprocess
from . import run_folder
from .data import Data, digest_of
from .testing import evaluation_on, finish, run_attacks
from .zoo import ClassifierVictim, RobustClassifier, load

GRADIENT_FREE = ("square",)
OWN = "each model's own"  # the backbone of models whose backbone is unknown
TRAINING = {"shots", "epochs", "train_threat"}  # known together or not at all
ALSO = {"seed", "protocol", "source", "backbone", "paper"}


class Images:
    """What is tested: images in order, the names of their classes, the data set's name."""

    def __init__(self, images: ImageList, classnames: Sequence[str], name: str, set_sha256=None):
        self.images, self.classnames, self.name = images, list(classnames), name
        self.set_sha256 = set_sha256

    @property
    def digest(self) -> str:
        return digest_of(self.classnames, self.images)


def evaluate(
    model: nn.Module | Callable | Victim | str | Path,
    images,
    labels: Sequence[int] | torch.Tensor | None = None,
    *,
    classnames: Sequence[str] | None = None,
    threat: str | Path = "linf1_aa",
    folder: str | Path | None = None,
    name: str = "",
    dataset: str = "",
    normalize: Sequence | None = None,
    size: int | None = None,
    root: str | Path = "",
    batch_size: int = 100,
    device: str | torch.device | None = None,
    settings: Mapping | None = None,
    **training,
) -> dict:
    """Measure clean and robust accuracy of a model, attacked end to end, and return the record.

    Args:
        model: pixels (B, 3, H, W) -> logits (B, K), a module or a function; or what
            ``advprompt.load`` opens or returns (an export, a run folder, a checkpoint in it); or a
            :class:`~advprompt.evaluation.victim.Victim`. Modules, also those that a function
            calls, are tested in evaluation mode and keep their own mode afterwards.
        images: pixels (N, 3, H, W) in [0, 1] with ``labels``; or pairs (pixels, label), such as a
            ``Dataset`` or ``DataLoader`` of torch; or paths with ``labels``; or a folder of class
            folders; or the name of a data set of ours, such as ``eurosat``, whose test images
            lie in ``root``. Files are resized and cropped to ``size`` as CLIP does.
        labels: (N,) integers from 0 to K - 1.
        classnames: the K classes in the order of the logits; default: ``model.classnames``,
            else the data set's or the folders', in their order, else numbers.
        threat: a threat model by name (``advprompt configs`` lists them) or a yaml file.
        folder: for the record, the picture and what an interrupted call needs to resume; a
            completed record of the same model, images and threat is returned as it is. None:
            nothing is kept.
        name: of the model in tables; default: its class.
        dataset: the data set's name in tables.
        normalize: (mean, std) where the model expects normalised pixels; it becomes part of the
            attacked model, and the ball is measured in [0, 1].
        size: pixels of an image's side, where files are read; default: ``model.resolution``, else
            224.
        root: folder of the data sets; default: ``$DATA``, else ``data``.
        batch_size: images per forward.
        device: default: that of the model's parameters.
        settings: configuration keys and values, such as ``{"DEFENCE.NAME": "jpeg"}``.
        training: what is known of it, for the tables: ``shots`` (0: zero-shot, -1: all) with
            ``epochs`` and ``train_threat`` (None: clean images; a threat model's name: its
            training attack), else it is unknown; ``seed``, ``protocol``, ``source``; and
            ``backbone``, which puts the model into the tables of our trainers on that backbone.

    Returns:
        what ``record.json`` holds: ``record["clean"]`` and ``record["attacks"]`` have ``n`` and
        ``correct``, ``warnings`` says what the self-checks found.

    UserError: a value is not of that form, the model does not answer with logits or gives no
    gradient, or ``folder`` holds a record of something else.
    """
    if isinstance(model, (str, Path)):
        model = load(model, device=device or "cpu")
    if not isinstance(model, Victim) and not callable(model):
        raise UserError(
            f"the model is {model!r:.80}, expected a module or a function from pixels "
            "(B, 3, H, W) to logits (B, K)"
        )
    if hasattr(model, "encode_image") or hasattr(model, "get_image_features"):
        raise UserError(
            f"{type(model).__name__} is an image-text model, which has no classes; give "
            "advprompt.zero_shot(model, classnames)"
        )
    size = size or getattr(model, "resolution", 224)
    cfg = _configuration(threat, settings, batch_size, size, root)
    facts = _facts(training, cfg)
    if isinstance(model, RobustClassifier):
        cfg.INPUT.INTERPOLATION = model.card["input"]["interpolation"]
        model = ClassifierVictim(model)
        facts = model.facts() | facts
    classnames = classnames if classnames is not None else getattr(model, "classnames", None)
    given = _images(images, labels, classnames, cfg, dataset)
    victim = model
    if not isinstance(model, Victim):
        own = {"normalize": normalize, "device": device, "name": name}
        victim = ModelVictim(model, given.classnames, **own)
    cfg.TRAINER.NAME = name or victim.name
    with evaluating(getattr(victim, "modules", [])):
        return measure(victim, given, cfg, None if folder is None else Path(folder), **facts)


def measure(
    victim: Victim,
    given: Images,
    cfg,
    folder: Path | None,
    *,
    predicted: Sequence[int] | None = None,
    **facts,
) -> dict:
    """Attack a victim as ``cfg`` says and return the record, which is kept in ``folder``, if any.

    ``predicted`` are the classes that the model's own code predicts: where ours differ, every
    attack's entry has a warning. The record gets the ``facts`` about the model. UserError if the
    folder holds a record of another model, other images or another threat.
    """
    images = given.images
    if not len(images):
        raise UserError("there are no images; give at least one")
    specs = specs_from_cfg(cfg.ATTACK.TEST, key="ATTACK.TEST")
    if isinstance(victim, ModelVictim):
        _, pixels = next(images.batches(range(min(4, len(images))), 4, victim.device))
        victim.check(pixels, gradients=any(s.name not in GRADIENT_FREE for s in specs))
        given.classnames = victim.classnames
    if not all(0 <= label < len(given.classnames) for label in images.labels):
        wrong = next(y for y in images.labels if not 0 <= y < len(given.classnames))
        raise UserError(
            f"label {wrong} is not one of the {len(given.classnames)} classes; labels count from "
            "0 in the order of classnames"
        )
    own = tempfile.TemporaryDirectory() if folder is None else contextlib.nullcontext(folder)
    with own as place, run_folder.locked(Path(place)):
        clock = time.perf_counter()
        evaluation = evaluation_on(victim, images, cfg, Path(place), Path(place, "banks"))

        def describe(attacks: list[dict]) -> dict:
            right = evaluation.clean_right
            unknown = {"shots": None, "epochs": None, "seed": -1, "protocol": "few_shot"}
            return records.new_record(
                **unknown
                | {
                    "trainer": cfg.TRAINER.NAME,
                    "dataset": given.name,
                    "backbone": OWN,
                    "weights_sha256": None,
                    "prompts_sha256": victim.digest(),
                    "prompt_parameters": 0,
                    "data_sha256": given.digest,
                    "set_sha256": given.set_sha256,
                    "classes": len(given.classnames),
                    "clean": {"n": len(right), "correct": int(right.sum())},
                }
                | facts,
                attacks=attacks,
                config=cfg,
                subset=cfg.TEST.SUBSET if cfg.TEST.SUBSET == len(images) else None,
                seconds={"eval": round(time.perf_counter() - clock, 3)},
                status="completed",
                device=victim.device,
            )

        if folder and (there := records.completed_record(folder)):
            _check_same(there, victim, given, cfg, folder)
            print(f"skipped: {folder} holds the record of this model, images and threat")
            return there
        found = evaluation.clean().argmax(1)
        clean = 100 * evaluation.clean_right.float().mean().item()
        print(f"* clean accuracy {clean:.1f}% of {len(images)} images")
        warnings = []
        if predicted is not None:
            warnings = _compare(found.tolist(), predicted, images.labels, cfg)
        _check_order(found.tolist(), images.labels, given)
        describe([])  # refuses before the work, not after
        attacks = run_attacks(cfg, evaluation)
        for entry in attacks:
            entry["warnings"] += warnings
        record = describe(attacks)
        if folder:
            title = f"{cfg.TRAINER.NAME}, {given.name}"
            finish(evaluation, cfg, folder, record, title)
        return record


def _compare(found: list[int], own: Sequence[int], labels: Sequence[int], cfg) -> list[str]:
    """Compare predictions with those of a host's own test, image by image; return warnings."""
    equal = sum(a == b for a, b in zip(found, own, strict=True))
    ours, theirs = (
        100 * sum(a == b for a, b in zip(answers, labels, strict=True)) / len(labels)
        for answers in (found, own)
    )
    cfg.HOST.PREDICTIONS = (
        f"clean accuracy {ours:.1f}% through this path, {theirs:.1f}% by the host's own test: "
        f"predictions equal on {equal} of {len(own)} images"
    )
    print(f"* {cfg.HOST.PREDICTIONS}")
    return [cfg.HOST.PREDICTIONS] * (equal < len(own))


def _check_same(record: dict, victim: Victim, given: Images, cfg, folder: Path) -> None:
    """Refuse a record of something else."""
    tests = [run_folder.test_of(config) for config in (record["config"], records.flat_config(cfg))]
    differs = {
        "another model": record.get("prompts_sha256") != victim.digest(),
        "other images or classes": record.get("data_sha256") != given.digest,
        "another test": tests[0] != tests[1],
    }
    if other := next((what for what, differ in differs.items() if differ), ""):
        raise UserError(
            f"'{folder}' holds the record of {other}; choose another folder, or move it away"
        )


def _check_order(found: list[int], labels: list[int], given: Images) -> None:
    """Refuse a model whose answers are right in another order of the classes."""
    votes: dict[int, Counter] = {}
    for answer, label in zip(found, labels, strict=True):
        votes.setdefault(label, Counter())[answer] += 1
    usual = {label: counts.most_common(1)[0] for label, counts in votes.items()}
    answers = {answer for answer, _ in usual.values()}
    right, moved = sum(n for _, n in usual.values()), [y for y, (a, _) in usual.items() if a != y]
    certain = len(labels) >= 3 * len(usual) and right >= 0.8 * len(labels)
    if certain and len(answers) == len(usual) and 2 * len(moved) > len(usual):
        first, names = min(moved), given.classnames
        raise UserError(
            f"the model answers in another order of the classes: images of {names[first]!r} "
            f"get logit {usual[first][0]}, {names[usual[first][0]]!r}; give classnames=[...] in "
            "the order of its logits, or labels that count in it"
        )


def _facts(training: dict, cfg) -> dict:
    """Return the fields of a record for what is known of the training, see :func:`evaluate`."""
    if strange := sorted(training.keys() - TRAINING - ALSO):
        raise UserError(f"evaluate takes no '{strange[0]}'.{nearest(strange[0], TRAINING | ALSO)}")
    facts = dict(training)
    if facts.get("shots") == 0:
        facts = {"epochs": 0, "train_threat": None, "protocol": "zero_shot"} | facts
    missing = sorted(TRAINING - facts.keys())
    if missing and facts.keys() & (TRAINING | {"source"}):
        raise UserError(
            f"of the training {', '.join(facts)} is given without {', '.join(missing)}; give "
            "shots, epochs and train_threat (None: clean images), or none of them"
        )
    if isinstance(threat := facts.get("train_threat"), (str, Path)):
        own = cfg.clone()
        merging.merge_file(own, threat, "attacks")
        facts["train_threat"] = specs_from_cfg(own.ATTACK.TRAIN, key="ATTACK.TRAIN")[0].describe()
    if name := facts.get("backbone"):
        facts["weights_sha256"] = digest_of_name(name)
    return facts


def _configuration(threat, settings: Mapping | None, batch_size: int, size: int, root):
    """Return the configuration of a test alone."""
    cfg = keys.default_cfg()
    merging.merge_file(cfg, threat, "attacks")
    given = {"DATALOADER.TEST.BATCH_SIZE": batch_size, "INPUT.SIZE": (size, size)}
    given["DATASET.ROOT"] = str(root or os.environ.get("DATA") or "data")
    for key, value in (given | {"INPUT.INTERPOLATION": "bicubic"} | dict(settings or {})).items():
        merging.merge(cfg, key, value, merging.WORDS)
    keys.check_cfg(cfg)
    refuse_training(settings or ())
    return cfg


def _images(images, labels, classnames, cfg, name: str) -> Images:
    """Return what is tested; see :func:`evaluate`."""
    if isinstance(images, DataLoader):
        images = images.dataset
    named = isinstance(images, (str, Path)) and not Path(images).expanduser().is_dir()
    if not named and (cfg.TEST.SUBSET or cfg.TEST.FIRST):
        raise UserError(
            "TEST.SUBSET and TEST.FIRST choose among the test images of a data set by name; give "
            "fewer images instead"
        )
    preprocess = clip_preprocess(cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION)
    if isinstance(images, (str, Path)):
        if labels is not None:
            raise UserError(f"'{images}' has its own labels; leave labels out")
        folder = Path(images).expanduser()
        given = _data_set(str(images), cfg, preprocess) if named else _folder(folder, preprocess)
        if classnames is not None:
            given = _reordered(given, list(classnames))
        given.name = name or given.name
        return given
    if labels is not None:
        labels = [int(label) for label in labels]
        if len(labels) != len(images):
            raise UserError(f"there are {len(images)} images and {len(labels)} labels")
    if torch.is_tensor(images) and labels is not None:
        found: ImageList = PixelList(TensorDataset(images, torch.tensor(labels)))
    elif labels is not None and all(isinstance(path, (str, Path)) for path in images):
        found = ImageList(list(zip(images, labels, strict=True)), preprocess)
    elif labels is None and hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        found = PixelList(images)
    else:
        raise UserError(
            f"images are {type(images).__name__}{' without labels' * (labels is None)}, expected "
            "a tensor (N, 3, H, W) with labels, pairs of pixels and label, paths with labels, a "
            "folder or the name of a data set"
        )
    return Images(found, classnames or [], name or "images")


def _folder(folder: Path, preprocess) -> Images:
    """List all images of a folder of class folders."""
    from ..datasets.files import class_folders, list_images

    classes = class_folders(folder)
    items = [
        (folder / name / path, label)
        for label, name in enumerate(classes)
        for path in list_images(folder / name)
    ]
    if not items:
        raise UserError(f"'{folder}' has no class folders with images; expected '{folder}/CLASS/*'")
    return Images(ImageList(items, preprocess), classes, folder.resolve().name)


def _data_set(name: str, cfg, preprocess) -> Images:
    """List the test images of a data set of ours, or of the fork around us."""
    from ..datasets import COOP  # noqa: F401  registers them

    merging.merge_file(cfg, name, "datasets")
    data = Data(DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg), cfg)
    images = ImageList(data.items, preprocess)
    return Images(images, data.classnames, cfg.DATASET.NAME, data.set_sha256)


def _reordered(given: Images, classnames: list[str]) -> Images:
    """Return the same images with labels in the order of ``classnames``."""
    if sorted(given.classnames) != sorted(classnames):
        other = sorted(set(classnames) ^ set(given.classnames))
        raise UserError(
            f"classnames are not the {len(given.classnames)} classes of {given.name} "
            f"({other[0]!r} is in one of them only); give these names in the order of the logits"
            if other
            else f"classnames hold a name twice; {given.name} has {len(given.classnames)} classes"
        )
    places = [classnames.index(name) for name in given.classnames]
    given.images.labels = [places[label] for label in given.images.labels]
    return Images(given.images, classnames, given.name, given.set_sha256)
