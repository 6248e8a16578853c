"""A run's folder and configuration: merging with clear errors, skipping and resuming safely."""

from __future__ import annotations

import ast
from pathlib import Path

import yaml

from .errors import UserError, nearest
from .io import read_json, write_json
from .records import completed_record, flat_config

CONFIG_FILE = "config.json"
# Keys that change neither training nor figures
VOLATILE = (
    "OUTPUT_DIR", "RESUME", "VERBOSE", "USE_CUDA", "DATASET.ROOT", "DATASET.CACHE_DIR",
    "DATALOADER.NUM_WORKERS", "DATALOADER.TEST.BATCH_SIZE", "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ", "TEST.PICTURE", "TRAINER.ADVPT.BANK_DIR", "TRAINER.ADVPT.BANK_BATCH",
    "TRAINER.ADVPT.CLASS_CHUNK", "TRAINER.ADVERSARIAL.CLASS_CHUNK",
)  # fmt: skip


def merge_file(cfg, path) -> None:
    """Merge a yaml file into ``cfg``.

    Raises:
        UserError: the file is missing, no yaml, or names an unknown key or a wrong type.
    """
    if not Path(path).is_file():
        folder = Path(path).parent
        there = sorted(p.name for p in folder.glob("*.yaml")) if folder.is_dir() else []
        hint = nearest(Path(path).name, there) if there else " Check the path."
        raise UserError(f"config file '{path}' does not exist.{hint}")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        line = str(error).splitlines()[-1].strip()
        raise UserError(f"config file '{path}' is no valid yaml ({line})") from error
    if not isinstance(content, dict):
        raise UserError(f"config file '{path}' holds no keys; write lines such as 'OPTIM:'")
    for key, value in _leaves(content, cfg):
        merge(cfg, key, value, f"in '{path}'")


def _leaves(node, cfg, prefix=""):
    """Yield (full key, value) of everything that is no group of keys."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, cfg, f"{name}.")
        else:
            yield name, value


def merge_opts(cfg, opts: list[str]) -> None:
    """Merge ``KEY VALUE`` pairs from the command line.

    Raises:
        UserError: an odd number of words, an unknown key (nearest names offered), a wrong type.
    """
    opts = [word for word in opts if word != "--"]
    if len(opts) % 2:
        raise UserError(f"overrides come in pairs KEY VALUE, but '{opts[-1]}' stands alone")
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        merge(cfg, key, _literal(text), "on the command line")


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
            f"{'a key below it' if isinstance(old, dict) else repr(old)}"
        )
    parent[key.rpartition(".")[2]] = value if old is None or value is None else type(old)(value)


def is_done(cfg, **facts) -> bool:
    """Tell whether the run folder ``cfg.OUTPUT_DIR`` holds this run's completed record.

    Args:
        facts: what makes the run besides its configuration.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    folder, mine = Path(cfg.OUTPUT_DIR), _identity(cfg, facts)
    if (folder / CONFIG_FILE).is_file():
        theirs = read_json(folder / CONFIG_FILE)
        # a config key that only one side has came with another version: its default changes nothing
        for key in sorted(set(mine) & set(theirs) | set(facts)):
            if mine[key] != theirs.get(key):
                raise UserError(
                    f"'{folder}' holds a run with {key} = {theirs.get(key)!r}, this one has "
                    f"{mine[key]!r}; choose another output folder or move the old run away"
                )
    return completed_record(folder) is not None


def claim(cfg, **facts) -> None:
    """Take the run folder for this configuration: other ones are refused from now on."""
    write_json(Path(cfg.OUTPUT_DIR) / CONFIG_FILE, _identity(cfg, facts))


def _identity(cfg, facts: dict) -> dict:
    return {k: v for k, v in flat_config(cfg).items() if k not in VOLATILE} | facts
