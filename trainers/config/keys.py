"""The config keys this package adds to Dassl's, their defaults, and the early checks."""

import copy
from dataclasses import replace
from functools import cache

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from yacs.config import CfgNode

from ..records import flat_config
from ..utils.errors import Mistakes, UserError
from . import host
from .dassl_keys import USED
from .declared import KEYS, Key
from .merging import merge_file

PROTOCOLS = ("", "few_shot", "base2new", "xd", "dg", "zero_shot")
SECTIONS: dict[str, tuple] = {}  # node -> (extend_cfg, check_cfg) of the room that it belongs to
ALSO_CALLED = {"APT": "AdvCoOp"}  # names in public code -> our trainer of the same model
METHODS: dict[str, type] = {}  # our registered trainers; each brings its own keys and checks


def check_template(name: str, value: str) -> None:
    """Refuse a prompt without a place for the class name, or with other braces."""
    if value and ("{}" not in value or {"{", "}"} & set(value.replace("{}", ""))):
        raise UserError(
            f"{name} is {value!r}, expected a text such as 'a photo of a {{}}.', with {{}} for "
            "the class name and no other braces"
        )


def section(node: str, extend, check) -> None:
    """Register two functions for a node's keys, called by ``extend_cfg`` and ``check_cfg``."""
    SECTIONS[node] = extend, check


def extend_cfg(cfg: CfgNode) -> None:
    """Add our keys to Dassl's default config; keys a fork already has stay as they are."""
    add_defaults(
        cfg,
        "DATASET",
        SUBSAMPLE_CLASSES=Key("all", "half of the classes", choices=("all", "base", "new")),
        FEWER_SHOTS=Key(False, "also train on classes with fewer images than NUM_SHOTS"),
        CACHE_DIR=Key("", "few-shot files and drawings; empty: with the data"),
        FEATURE_DIR=Key("", "cache of image features; empty: OUTPUT_DIR/banks"),
        TEMPLATE=Key("", "hand-made prompt; empty: the data set's own", check=check_template),
        TRANSFORMS=replace(USED["INPUT.TRANSFORMS"], default=[], about="replace INPUT.TRANSFORMS"),
        FOLDER_NAME=Key("folder", "of data set `folder`, in the root"),
    )
    auto = Key("auto", "keep decoded training images on the GPU", choices=("auto", "yes", "no"))
    add_defaults(cfg, "DATALOADER.TRAIN_X", IN_MEMORY=auto)
    pinned = Key(False, "copy images to a GPU through pinned memory (not measured yet)")
    add_defaults(cfg, "DATALOADER.TEST", PIN_MEMORY=pinned)
    fused = Key(False, "one kernel per step of adam, adamw or sgd (not measured yet)")
    add_defaults(cfg, "OPTIM", FUSED=fused)
    add_defaults(
        cfg,
        "TRAIN",
        ROBUST_FREQ=Key(0, "epochs between PGD-10 accuracies for TensorBoard; 0: none", least=0),
        ROBUST_SUBSET=Key(64, "of that many validation images, or training; never test", least=1),
    )
    add_defaults(
        cfg,
        "TEST",
        SUBSET=Key(0, "size of a fixed stratified draw of test images; 0: all", least=0),
        FIRST=Key(0, "instead: the first n by file name (ImageNet, cars); 0: all", least=0),
        PROTOCOL=Key("", "for the record; empty: by the other keys", choices=PROTOCOLS),
        PROBES=Key(32, "images for self-checks after an attack; 0: none", least=0, most=10**6),
        SAVE_ADV=Key(False, "keep adversarial images in OUTPUT_DIR/adversarial"),
        PICTURE=Key(6, "rows of the picture of adversarial images; 0: none", least=0, most=100),
    )
    cfg.INPUT.setdefault("RRCROP_SCALE", (0.08, 1.0))  # Dassl 0.5 has none
    for extend, _ in SECTIONS.values():
        extend(cfg)
    for method in METHODS.values():
        method.extend_cfg(cfg)
    host.watch_merges(cfg, extend_cfg)


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


def default_cfg() -> CfgNode:
    """Return the default configuration: Dassl's, a fork's around us, and ours."""
    cfg = get_cfg_default()
    host.extend_cfg(cfg)
    extend_cfg(cfg)
    return cfg


def merge_test_attacks(cfg, path, kind: str = "") -> None:
    """Replace ``ATTACK.TEST`` by a yaml file's, see :func:`merge_file`; ATTACK.TRAIN stays."""
    fresh = get_cfg_default()
    extend_cfg(fresh)
    train = cfg.ATTACK.TRAIN.clone()
    cfg.ATTACK.TEST = fresh.ATTACK.TEST
    merge_file(cfg, path, kind)
    cfg.ATTACK.TRAIN = train


@cache
def defaults() -> dict:
    """Return every setting's default, flat."""
    cfg = get_cfg_default()
    extend_cfg(cfg)
    return flat_config(cfg)


def formerly(trainer: str) -> dict:
    """Return the value that records older than a setting imply for it: mostly its default."""
    method = method_called(trainer)
    return defaults() | (method.formerly if method else {})


def add_defaults(cfg: CfgNode, node: str, **values) -> None:
    """Declare keys of ``node``, each a :class:`Key` or a default; a fork's values of them stay."""
    for part in node.split("."):
        cfg = cfg.setdefault(part, CfgNode())
    for name, value in values.items():
        key = value if isinstance(value, Key) else Key(value)
        KEYS[f"{node}.{name}"] = key
        cfg.setdefault(name, copy.deepcopy(key.default))


def check_cfg(cfg: CfgNode, mistakes: Mistakes | None = None) -> None:
    """Check every key, and whether keys fit together, before anything is loaded or written.

    Keys of other trainers are ignored. Conflicts are checked only among valid keys. The UserError
    names all mistakes, also those found before, and what is expected of each key.
    """
    method = method_called(cfg.TRAINER.NAME)
    nodes = ("NAME", *(method.nodes() if method else ()))
    found = Mistakes() if mistakes is None else mistakes
    for name, key in KEYS.items():
        value, parts = cfg, name.split(".")
        for part in parts:
            value = value.get(part, CfgNode()) if isinstance(value, CfgNode) else CfgNode()
        if not isinstance(value, CfgNode) and (parts[0] != "TRAINER" or parts[1] in nodes):
            found.of(key.read, name, value)
    together = [] if found else [_check_together, *([method.check_keys] if method else [])]
    for node, (_, check) in SECTIONS.items():
        if not any(f"{node}." in text for text in found):
            found.of(check, cfg)
    for check in together:
        found.of(check, cfg)
    found.end()


def _check_together(cfg: CfgNode) -> None:
    """Refuse early what torch, or the record after all attacks, would refuse."""
    method = method_called(cfg.TRAINER.NAME)
    if method and method.trainable and cfg.TEST.PROTOCOL == "zero_shot":
        raise UserError(
            f"TEST.PROTOCOL is 'zero_shot', but {cfg.TRAINER.NAME} is trained; leave it empty"
        )
    optim, (low, high) = cfg.OPTIM, cfg.INPUT.RRCROP_SCALE
    if low > high:
        raise UserError(f"INPUT.RRCROP_SCALE is ({low}, {high}), expected the smaller one first")
    if not optim.STEPSIZE:
        raise UserError(f"OPTIM.STEPSIZE is {optim.STEPSIZE}, expected epochs such as (5,)")
    if optim.NAME == "sgd" and optim.SGD_NESTEROV and not optim.MOMENTUM > 0 == optim.SGD_DAMPNING:
        raise UserError(
            f"OPTIM.SGD_NESTEROV is True with MOMENTUM {optim.MOMENTUM} and SGD_DAMPNING "
            f"{optim.SGD_DAMPNING}; give it a momentum above 0 and dampening 0"
        )
