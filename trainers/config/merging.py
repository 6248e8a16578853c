"""Merge yaml files and ``KEY VALUE`` pairs into a configuration, with clear errors."""

import ast
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ..records import flat_config
from ..utils.errors import Mistakes, UserError, nearest
from ..utils.io import read_yaml
from .declared import KEYS, Key, is_text
from .shipped import config_file

THREAT = "ATTACK.THREAT"  # not a setting: names a threat model, whose settings are merged
WORDS = "on the command line"


def merge_file(cfg, path, kind: str = "") -> None:
    """Merge a yaml file, or a shipped one of ``kind`` by its name; UserError for mistakes in it."""
    path = config_file(kind, str(path)) if kind else path
    if not Path(path).is_file():
        folder = Path(path).parent
        there = sorted(p.name for p in folder.glob("*.yaml")) if folder.is_dir() else []
        hint = nearest(Path(path).name, there) if there else " Check the path."
        raise UserError(f"config file '{path}' does not exist.{hint}")
    merge_pairs(cfg, leaves(read_yaml(path)), f"in '{path}'")


def merge_pairs(cfg, pairs: Iterable[tuple], where: str) -> None:
    """Merge keys with their values; a threat model among them comes before the others."""
    mistakes = Mistakes()
    for key, value in sorted(pairs, key=lambda pair: pair[0] != THREAT):
        if key == THREAT:
            mistakes.of(merge_file, cfg, value, "attacks")
        else:
            mistakes.of(merge, cfg, key, value, where)
    mistakes.end()


def leaves(node, prefix=""):
    """Yield (full key, value) of everything that is not a group of keys."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def merge_opts(cfg, opts: list[str]) -> None:
    """Merge ``KEY VALUE`` pairs from the command line.

    ``ATTACK.THREAT NAME`` merges the settings of a shipped threat model, or of a yaml file;
    all other pairs come after them. UserError for an odd number of arguments, an unknown key, a
    wrong type, or a setting of ``ATTACK.TEST`` that every attack of its ``LIST`` overrides.
    """
    opts = [word for word in opts if word != "--"]
    if len(opts) % 2:
        raise UserError(f"overrides come in pairs KEY VALUE, but '{opts[-1]}' stands alone")
    pairs = list(zip(opts[::2], opts[1::2], strict=True))
    given = [(key, text if key == THREAT else _value(key, text)) for key, text in pairs]
    merge_pairs(cfg, given, WORDS)
    entries = cfg.get("ATTACK", {}).get("TEST", {}).get("LIST", ())
    for key, text in pairs:
        node, _, name = key.rpartition(".")
        if node == "ATTACK.TEST" and entries and all(name in entry for entry in entries):
            raise UserError(
                f"{key} {text} would change nothing: every attack of ATTACK.TEST.LIST has its own "
                f"{name}; set ATTACK.TEST.LIST, '[]' for the one attack that ATTACK.TEST describes"
            )


def _value(key: str, text: str):
    """Return the value of a text on the command line; for a key of text, the text itself."""
    value = literal(text)
    number = isinstance(value, (bool, int, float, complex, bytes, set))
    return text if number and is_text(key) else value


@cache
def literal(text: str):
    """Return the Python value that a text is written as, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def merge(cfg, key: str, value, where: str) -> None:
    """Set one key as it is declared; a key that only a fork knows, by the type it has there."""
    old, parent = cfg, cfg
    for part in key.split("."):
        if getattr(old, "is_new_allowed", bool)():  # such as ATTACK.TEST.KWARGS
            old[part] = None
        if not isinstance(old, dict) or part not in old:
            hint = nearest(key, flat_config(cfg))
            hint = hint if " Did" in hint else " 'advprompt configs --reference' lists them all."
            raise UserError(f"config key '{key}' {where} is unknown.{hint}")
        old, parent = old[part], old
    if isinstance(old, dict):
        raise UserError(f"config key '{key}' {where} is {value!r:.80}, expected a key in it")
    known = KEYS.get(key)
    if isinstance(value, str) and not isinstance(known.default if known else old, str):
        value = literal(value)  # CoOp's files write tuples, which are text to YAML: (224, 224)
    if known or not (old is None or value is None):
        form = "text" if isinstance(old, str) else ""  # or a number
        known = known or Key(old, least=-math.inf, most=math.inf, entry=..., form=form)
        read = known.read(key if where == WORDS else f"{key} {where}", value)
        value = value if known.any_case else read
    parent[key.rpartition(".")[2]] = value
