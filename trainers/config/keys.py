"""The config keys this package adds to Dassl's, their defaults, and the early checks."""

from __future__ import annotations

from functools import cache

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from dassl.optim.lr_scheduler import AVAI_SCHEDS
from dassl.optim.optimizer import AVAI_OPTIMS
from yacs.config import CfgNode

from ..records import flat_config
from ..utils.errors import UserError
from . import host
from .merging import merge_file

PRECISIONS = ("fp32", "amp", "bf16")
# of INPUT.TRANSFORMS, those of our configs
TRANSFORMS = {"random_resized_crop", "random_flip", "random_translation", "center_crop"}
PROTOCOLS = ("", "few_shot", "base2new", "xd", "dg", "zero_shot")
SECTIONS: list[tuple] = []  # (extend_cfg, check_cfg) of rooms with keys of their own
METHODS: dict[str, type] = {}  # our registered trainers; each brings its own keys and checks


def section(extend, check) -> None:
    """Have ``extend_cfg`` and ``check_cfg`` call these two for a room's own keys."""
    SECTIONS.append((extend, check))


def extend_cfg(cfg: CfgNode) -> None:
    """Add our keys to Dassl's default config; keys a fork already has stay as they are."""
    add_defaults(
        cfg,
        "DATASET",
        SUBSAMPLE_CLASSES="all",  # all, base or new
        CACHE_DIR="",  # few-shot files, drawings; "": with the data
        FEATURE_DIR="",  # cache of image features; "": OUTPUT_DIR/banks
        TEMPLATE="",  # hand-made prompt of data sets without one of their own
        TRANSFORMS=[],  # replaces the trainer's INPUT.TRANSFORMS; []: does not
        FOLDER_NAME="folder",  # of data set `folder`, in the root
    )
    add_defaults(cfg, "DATALOADER.TRAIN_X", IN_MEMORY="auto")  # on the device: auto, yes or no
    add_defaults(
        cfg,
        "TEST",
        SUBSET=0,  # fixed stratified draw of n test images; 0: all
        FIRST=0,  # instead: first n by file name (ImageNet, cars); 0: all
        PROTOCOL="",  # for the record; "" follows from the other keys
        PROBES=32,  # images for the self-checks after a white-box attack; 0: none
        SAVE_ADV=False,  # keep the adversarial images in OUTPUT_DIR/adversarial
        PICTURE=6,  # rows of the picture of adversarial images; 0: none
    )
    for extend, _ in SECTIONS:
        extend(cfg)
    for method in METHODS.values():
        method.extend_cfg(cfg)
    host.attend(cfg, extend_cfg)


def method_called(name: str) -> type | None:
    """Return our trainer of that name, with or without the ``advprompt.`` it has in some forks."""
    return METHODS.get(name.removeprefix(host.PREFIX))


def registered_name(name: str) -> str:
    """Return the name under which our trainer of that name is registered here."""
    method, bare = method_called(name), name.removeprefix(host.PREFIX)
    if method is None:
        return name
    names = TRAINER_REGISTRY.registered_names()
    ours = bare in names and TRAINER_REGISTRY.get(bare) is method
    return bare if ours else f"{host.PREFIX}{bare}"


def merge_test_attacks(cfg, path) -> None:
    """Replace ``ATTACK.TEST`` by that of a yaml file; the training attack stays.

    Raises:
        UserError: see :func:`merge_file`.
    """
    fresh = get_cfg_default()
    extend_cfg(fresh)
    train = cfg.ATTACK.TRAIN.clone()
    cfg.ATTACK.TEST = fresh.ATTACK.TEST
    merge_file(cfg, path)
    cfg.ATTACK.TRAIN = train


@cache
def defaults() -> dict:
    """Return every setting's default, flat."""
    cfg = get_cfg_default()
    extend_cfg(cfg)
    return flat_config(cfg)


def formerly(trainer: str) -> dict:
    """Return what every setting was, flat, before it was one: mostly its default."""
    method = method_called(trainer)
    return defaults() | (method.formerly if method else {})


def add_defaults(cfg: CfgNode, node: str, **values) -> None:
    """Add keys to ``node``, such as ``TRAINER.CAPT``, that a fork does not have yet."""
    for part in node.split("."):
        cfg = cfg.setdefault(part, CfgNode())
    for name, value in values.items():
        cfg.setdefault(name, value)


def check_cfg(cfg: CfgNode) -> None:
    """Refuse what would make the numbers wrong, before anything is loaded.

    Raises:
        UserError: naming the key, its value and what to write instead.
    """
    if "normalize" in cfg.INPUT.TRANSFORMS:
        raise UserError(
            "INPUT.TRANSFORMS holds 'normalize', but attacks need pixels in [0, 1] and the model "
            "normalises by itself; remove it from INPUT.TRANSFORMS"
        )
    one_of("OPTIM.NAME", cfg.OPTIM.NAME, AVAI_OPTIMS)
    one_of("OPTIM.LR_SCHEDULER", cfg.OPTIM.LR_SCHEDULER, AVAI_SCHEDS)
    if unusual := sorted(set(cfg.INPUT.TRANSFORMS) - TRANSFORMS):
        from dassl.data.transforms import transforms  # imports torchvision, a second or two

        lacking = getattr(transforms, "ONLY_IN_DASSL", ())  # of the stand-in
        for name in unusual:
            one_of("a word of INPUT.TRANSFORMS", name, (*transforms.AVAI_CHOICES, *lacking))
            if name in lacking:
                raise UserError(f"INPUT.TRANSFORMS holds '{name}', which needs Dassl itself")
    one_of("DATASET.SUBSAMPLE_CLASSES", cfg.DATASET.SUBSAMPLE_CLASSES, ("all", "base", "new"))
    for part in ("TRAIN_X", "TEST"):
        at_least(f"DATALOADER.{part}.BATCH_SIZE", cfg.DATALOADER[part].BATCH_SIZE, 1)
    for key in ("SUBSET", "FIRST"):
        at_least(f"TEST.{key}", cfg.TEST[key], 0)
    one_of("TEST.PROTOCOL", cfg.TEST.PROTOCOL, PROTOCOLS)
    one_of("TEST.SPLIT", cfg.TEST.SPLIT, ("val", "test"))
    one_of("TEST.FINAL_MODEL", cfg.TEST.FINAL_MODEL, ("last_step", "best_val"))
    for _, check in SECTIONS:
        check(cfg)
    if method := method_called(cfg.TRAINER.NAME):
        method.check_keys(cfg)


def one_of(key: str, value, choices) -> None:
    """Refuse a value that is not among ``choices``."""
    if value not in choices:
        raise UserError(f"{key} is {value!r}, expected one of: {', '.join(map(repr, choices))}")


def at_least(key: str, value, low, high=None) -> None:
    """Refuse a number less than ``low``, or more than ``high`` if one is given (NaN too)."""
    if not value >= low or (high is not None and not value <= high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{key} is {value}, expected {limits}")
