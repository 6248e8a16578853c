"""Inside a fork: the fork's names take precedence, and its command line accepts our settings.

In any order of imports, a name of a trainer or data set belongs to the fork if it has one, and keys
that the fork sets in its own ``extend_cfg`` keep the fork's values.
"""

import sys
from functools import partial
from pathlib import Path

from ..utils import entry
from ..utils.errors import UserError
from . import merging
from .shipped import PACKAGE

# Keys of ATTACK merged by our rules: sizes as 4 or "4/255", and the name of a threat model
OURS = ("THREAT", "TRAIN", "TEST")
# Settings of a test; the fork's own trainers use them only in `advprompt test`
TESTS = ("ATTACK.THREAT", "ATTACK.TEST.", "DEFENCE.", "TESTTIME.")
ROOT = __package__.rpartition(".")[0]  # advprompt, or trainers.advprompt in a fork
PREFIX = "advprompt."  # for our trainers whose names the host has taken


def register_unless_taken(registry, cls, *, alias: bool = False) -> None:
    """Register ``cls`` under its own name unless a host has taken it, or takes it later.

    With ``alias``, ours is then registered as ``advprompt.NAME``.
    """
    if "unless_taken" not in vars(registry):  # name -> whether it has an alias
        registry.unless_taken = {}
        registry._do_register = partial(_register, registry, registry._do_register)
    name = cls.__name__
    if name not in registry.registered_names():
        registry.register(cls)
        registry.unless_taken[name] = alias
    elif alias:
        registry._obj_map.setdefault(f"{PREFIX}{name}", cls)


def _register(registry, register, name, obj, *args, **kwargs):
    ours = obj.__module__.startswith(f"{ROOT}.")  # two of ours collide as usual
    if name in registry.unless_taken and not ours:
        ours = registry._obj_map.pop(name)
        if registry.unless_taken.pop(name):
            registry._obj_map.setdefault(f"{PREFIX}{name}", ours)
    return register(name, obj, *args, **kwargs)


def folder() -> Path | None:
    """Return the fork's folder: where this package is, or the current one if installed."""
    place = PACKAGE.parents[1] if ROOT == "trainers.advprompt" else Path.cwd()
    train = place / "train.py"
    ours = (place / "trainers").resolve() == PACKAGE  # the clone
    if ours or not (place / "trainers").is_dir() or not train.is_file():
        return None
    return place if b"dassl" in train.read_bytes() else None


def join():
    """Import the fork's train.py, which registers its data sets and trainers; None without one."""
    place = folder()
    if place is None:
        return None
    copied = place / "trainers" / "advprompt"
    if (copied / "__init__.py").is_file() and copied.resolve() != PACKAGE:
        raise UserError(
            f"'{place}' has its own copy of advprompt, which cannot be mixed with this one; use "
            "the copy by 'python -m trainers.advprompt train' and the like, or undo dropin"
        )
    if b"__main__" not in (place / "train.py").read_bytes():
        raise UserError(
            f"'{place / 'train.py'}' has no 'if __name__ == \"__main__\":', so that importing it "
            "for the fork's data sets would run it; move its commands after such a line"
        )
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))
    try:
        import train

        return train
    except Exception as error:
        raise UserError(
            f"'{place / 'train.py'}' cannot be imported ({type(error).__name__}: {error}), so that "
            "the fork's data sets are unknown; fix it, or start from another folder"
        ) from error


def extend_cfg(cfg) -> None:
    """Add the settings of the fork around us, if there is one."""
    extend = getattr(join(), "extend_cfg", None)
    if extend:
        extend(cfg)


def watch_merges(cfg, extend) -> None:
    """Watch merges into ``cfg``: add missing keys first, and resolve ``ATTACK.THREAT``.

    A fork whose own ``extend_cfg`` runs later may have replaced a whole group of keys by its own;
    ``extend`` then adds the missing keys before a file or the command line is merged.
    """
    entry.end_plainly()
    vars(cfg).setdefault("merge_from_other_cfg", partial(_merge_other, cfg, extend))
    vars(cfg).setdefault("merge_from_list", partial(_merge_list, cfg, extend))


def complete(cfg, extend) -> None:
    """Add keys still missing when a trainer is built; UserError if extend_cfg was not called."""
    if "merge_from_list" not in vars(cfg) and "TRAIN" not in cfg.get("ATTACK", {}):
        raise UserError(
            "the configuration lacks the keys of advprompt, such as ATTACK.TRAIN; write "
            "'advprompt.extend_cfg(cfg)' into train.py, after its own 'extend_cfg(cfg)'"
        )
    extend(cfg)
    if cfg.is_frozen():
        cfg.freeze()  # what is new
    stated, name = vars(cfg).get("stated_backbone"), cfg.MODEL.BACKBONE.NAME
    if stated not in (None, name) and not any(w.startswith("--backbone") for w in sys.argv):
        raise UserError(
            f"MODEL.BACKBONE.NAME is {name!r}, but the config file or the overrides have "
            f"{stated!r}: this train.py has a default for --backbone that replaces it; "
            f"add --backbone {stated}"
        )


def _merge_other(cfg, extend, other) -> None:
    extend(cfg)
    other = other.clone()
    attack = other.get("ATTACK", {})
    ours = {name: attack.pop(name) for name in OURS if name in attack}
    merging.merge_pairs(cfg, merging.leaves({"ATTACK": ours}), "in a config file")
    if name := other.get("MODEL", {}).get("BACKBONE", {}).get("NAME"):
        vars(cfg)["stated_backbone"] = name
    type(cfg).merge_from_other_cfg(cfg, other)
    # a data set states which transforms keep its labels; the command line can override it
    if cfg.DATASET.TRANSFORMS:
        cfg.INPUT["TRANSFORMS"] = cfg.DATASET.TRANSFORMS  # also where it is frozen, as yacs does


def _merge_list(cfg, extend, pairs) -> None:
    extend(cfg)
    ours, theirs = [], []
    for i in range(0, len(pairs), 2):
        mine = str(pairs[i]).split(".")[:2] in [["ATTACK", name] for name in OURS]
        (ours if mine else theirs).extend(pairs[i : i + 2])
        if pairs[i] == "MODEL.BACKBONE.NAME":
            vars(cfg)["stated_backbone"] = pairs[i + 1]
    merging.merge_opts(cfg, ours)
    type(cfg).merge_from_list(cfg, theirs)
    ignored = [str(key) for key in pairs[::2] if str(key).startswith((*TESTS, "ATTACK.TRAIN."))]
    if ignored and cfg.TRAINER.NAME and cfg.TRAINER.NAME not in _our_names():
        name, copied = cfg.TRAINER.NAME, ROOT.startswith("trainers.")
        tool = "python -m trainers.advprompt" if copied else "advprompt"
        print(
            f"warning: trainer {name} is the fork's own and ignores {', '.join(ignored)}; "
            f"'{tool} test --trainer {name} --model-dir RUN --threat NAME ...' attacks its model"
        )


def _our_names() -> list[str]:
    """Return the names under which trainers of ours are registered here."""
    from dassl.engine import TRAINER_REGISTRY

    classes = ((name, TRAINER_REGISTRY.get(name)) for name in TRAINER_REGISTRY.registered_names())
    return [name for name, cls in classes if cls.__module__.startswith(f"{ROOT}.")]
