"""Living in a fork: the fork's names win, and its command line learns our settings.

Whatever the order of imports, a trainer or data set of the fork takes its name back from ours, and
keys that the fork sets in its own ``extend_cfg`` stay as it sets them.
"""

from __future__ import annotations

from functools import partial

from .errors import UserError

# Of ATTACK, merged by our rules: sizes as 4 or "4/255", and the name of a threat model
OURS = ("THREAT", "TRAIN", "TEST")


def lend(registry, cls, forget=None) -> bool:
    """Register ``cls`` under its own name until the host registers that name.

    Args:
        registry: one of Dassl's registries.
        forget: called with the name when the host takes it.

    Returns:
        False where the host has the name already; nothing is registered then.
    """
    name = cls.__name__
    if name in registry.registered_names():
        return False
    if "lent" not in vars(registry):
        registry.lent = {}
        registry._do_register = partial(_register, registry, registry._do_register)
    registry.register(cls)
    registry.lent[name] = forget
    return True


def _register(registry, register, name, *args, **kwargs):
    if name in registry.lent:
        del registry._obj_map[name]
        if forget := registry.lent.pop(name):
            forget(name)
    return register(name, *args, **kwargs)


def attend(cfg, extend) -> None:
    """Watch what is merged into ``cfg``: missing keys come first, and ``ATTACK.THREAT`` is known.

    A fork whose own ``extend_cfg`` runs later may have replaced a whole group of keys by its own;
    ``extend`` then adds what is missing before a file or the command line is merged.
    """
    if not is_attended(cfg):
        vars(cfg)["merge_from_other_cfg"] = partial(_merge_other, cfg, extend)
        vars(cfg)["merge_from_list"] = partial(_merge_list, cfg, extend)


def is_attended(cfg) -> bool:
    """Tell whether :func:`attend` watches this configuration."""
    return "merge_from_list" in vars(cfg)


def complete(cfg, extend) -> None:
    """Add the keys that are still missing when a trainer is built.

    Raises:
        UserError: ``extend_cfg``, the second of the two lines, was never called.
    """
    if not is_attended(cfg) and "TRAIN" not in cfg.get("ATTACK", {}):
        raise UserError(
            "the configuration lacks the keys of advprompt, such as ATTACK.TRAIN; write "
            "'advprompt.extend_cfg(cfg)' into train.py, behind its own 'extend_cfg(cfg)'"
        )
    extend(cfg)
    if cfg.is_frozen():
        cfg.freeze()  # what is new


def _merge_other(cfg, extend, other) -> None:
    from . import runs  # which imports the trainers

    extend(cfg)
    other = other.clone()
    attack = other.get("ATTACK", {})
    ours = {name: attack.pop(name) for name in OURS if name in attack}
    runs.merge_content(cfg, {"ATTACK": ours}, "in a config file")
    type(cfg).merge_from_other_cfg(cfg, other)
    # a data set knows what keeps its labels; the command line has the last word
    cfg.INPUT.TRANSFORMS = other.get("DATASET", {}).get("TRANSFORMS") or cfg.INPUT.TRANSFORMS


def _merge_list(cfg, extend, words) -> None:
    from . import runs

    extend(cfg)
    words = list(words)
    ours, theirs = [], []
    for i in range(0, len(words), 2):
        group, _, rest = str(words[i]).partition(".")
        mine = group == "ATTACK" and rest.partition(".")[0] in OURS
        (ours if mine else theirs).extend(words[i : i + 2])
    runs.merge_opts(cfg, ours)
    type(cfg).merge_from_list(cfg, theirs)
