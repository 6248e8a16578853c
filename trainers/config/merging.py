"""Merge yaml files and ``KEY VALUE`` pairs into a configuration, with clear errors."""

from __future__ import annotations

import ast
from pathlib import Path

from ..records import flat_config
from ..utils.errors import UserError, nearest
from ..utils.io import read_yaml
from .shipped import config_file

THREAT = "ATTACK.THREAT"  # not a setting: the threat model whose settings it stands for


def merge_file(cfg, path) -> None:
    """Merge a yaml file into ``cfg``.

    Raises:
        UserError: the file is missing, not yaml, or names an unknown key or a wrong type.
    """
    if not Path(path).is_file():
        folder = Path(path).parent
        there = sorted(p.name for p in folder.glob("*.yaml")) if folder.is_dir() else []
        hint = nearest(Path(path).name, there) if there else " Check the path."
        raise UserError(f"config file '{path}' does not exist.{hint}")
    merge_content(cfg, read_yaml(path), f"in '{path}'")


def merge_content(cfg, content: dict, where: str) -> None:
    """Merge the keys of a yaml file; a threat model that it names comes before its own keys."""
    _merge_pairs(cfg, list(_leaves(content)), where)


def _merge_pairs(cfg, pairs: list[tuple], where: str) -> None:
    for key, value in pairs:
        if key == THREAT:
            merge_file(cfg, config_file("attacks", value))
    for key, value in pairs:
        if key != THREAT:
            merge(cfg, key, value, where)


def _leaves(node, prefix=""):
    """Yield (full key, value) of everything that is not a group of keys."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def merge_opts(cfg, opts: list[str]) -> None:
    """Merge ``KEY VALUE`` pairs from the command line.

    ``ATTACK.THREAT NAME`` stands for the settings of a shipped threat model, or of a yaml file;
    all other pairs come after them.

    Raises:
        UserError: an odd number of arguments, an unknown key (nearest names offered), a wrong
            type, a setting of ``ATTACK.TEST`` that every attack of its ``LIST`` has for itself.
    """
    opts = [word for word in opts if word != "--"]
    if len(opts) % 2:
        raise UserError(f"overrides come in pairs KEY VALUE, but '{opts[-1]}' stands alone")
    pairs = list(zip(opts[::2], opts[1::2], strict=True))
    given = [(key, text if key == THREAT else _literal(text)) for key, text in pairs]
    _merge_pairs(cfg, given, "on the command line")
    entries = cfg.get("ATTACK", {}).get("TEST", {}).get("LIST", ())
    for key, text in pairs:
        node, _, name = key.rpartition(".")
        if node == "ATTACK.TEST" and entries and all(name in entry for entry in entries):
            raise UserError(
                f"{key} {text} would change nothing: every attack of ATTACK.TEST.LIST has its own "
                f"{name}; set ATTACK.TEST.LIST, '[]' for the one attack that ATTACK.TEST describes"
            )


def _literal(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def merge(cfg, key: str, value, where: str) -> None:
    """Set one key with yacs's rules for types, but for ``4`` where the default is ``"4/255"``."""
    old, parent = cfg, cfg
    for part in key.split("."):
        if not isinstance(old, dict) or part not in old:
            hint = nearest(key, flat_config(cfg))
            raise UserError(f"config key '{key}' {where} is unknown.{hint}")
        old, parent = old[part], old
    if isinstance(value, str) and not isinstance(old, str):
        value = _literal(value)  # CoOp's files write tuples, which are text to YAML: (224, 224)
    kinds = {
        str: (str, int, float),  # sizes in 1/255 are written either way
        float: (float, int),
        tuple: (tuple, list),
        list: (list, tuple),
    }.get(type(old), (type(old),))
    fits = isinstance(value, kinds) and (isinstance(value, bool) <= isinstance(old, bool))
    if isinstance(old, dict) or not (fits or old is None or value is None):
        raise UserError(
            f"config key '{key}' {where} is {value!r}, expected {type(old).__name__} such as "
            f"{'a key in it' if isinstance(old, dict) else repr(old)}"
        )
    parent[key.rpartition(".")[2]] = value if old is None or value is None else type(old)(value)
