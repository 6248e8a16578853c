"""The config with Dassl's defaults."""

import ast
from pathlib import Path

import yaml
from yacs.config import CfgNode


def _node(values: dict) -> CfgNode:
    return CfgNode({key: _value(value) for key, value in values.items()})


def _value(value):
    if isinstance(value, dict):
        return _node(value)
    is_tuple = isinstance(value, str) and value.startswith("(")
    return ast.literal_eval(value) if is_tuple else value


cfg_default = _node(
    yaml.safe_load(Path(__file__).with_name("defaults.yaml").read_text(encoding="utf-8"))
)


def get_cfg_default() -> CfgNode:
    """Return a fresh copy of the defaults, ready to be extended and merged into."""
    return cfg_default.clone()
