"""The pages of docs/reference, from the declarations in the code; a docstring is a page's head.

`python -m tests.reference` writes them all; a test compares them with the files.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path

import advprompt
from advprompt.attacks import AttackSpec, specs_from_cfg
from advprompt.cli.configs import reference, table
from advprompt.cli.main import COMMANDS, command
from advprompt.config import keys as config
from advprompt.config import shipped
from advprompt.engine import zoo
from advprompt.evaluation import image_text
from advprompt.records import load_records, read_record, schema
from advprompt.report import threats as words
from advprompt.utils.io import read_yaml
from tests.world import REPO


class _Found(Exception):
    """Carries the parser of a command."""


def parser_of(main: Callable) -> argparse.ArgumentParser:
    """Return the parser with which ``main(argv)`` of a command reads its arguments."""

    def stop(parser, *_):
        raise _Found(parser)

    usual, argparse.ArgumentParser.parse_known_args = argparse.ArgumentParser.parse_known_args, stop
    try:
        main(["--help"])
    except _Found as found:
        return found.args[0]
    finally:
        argparse.ArgumentParser.parse_known_args = usual
    raise AssertionError(f"{main} has no parser")


def commands() -> list[str]:
    """# Commands

    `advprompt COMMAND` is the same as `python -m advprompt COMMAND`; in a fork that holds a copy it
    is `python -m trainers.advprompt COMMAND`. Environment variables: [protocols](../protocols.md).
    """
    lines = []
    for name, about in COMMANDS.items():
        parser, rows = parser_of(command(name)), []
        usage = parser.usage or f"advprompt {name} [options]"
        for action in parser._actions[1:]:  # the first one is --help
            value = f"{{{','.join(action.choices)}}}" if action.choices else action.metavar
            value = value or (action.dest.upper() if action.nargs != 0 else "")
            value += " ..." if action.nargs in ("+", "*", argparse.REMAINDER) else ""
            text, option = action.help or "", ", ".join(action.option_strings)
            if isinstance(action.default, (str, int)) and action.default and "default" not in text:
                text += f" (default: {action.default})"
            rows.append((f"`{option} {value}`".replace("` ", "`").replace(" `", "`"), text))
            usage += "" if option else f" {value}"
        lines += [f"## {name}", "", f"    {usage}", "", f"{about[0].upper()}{about[1:]}.", ""]
        lines += table("argument | meaning", rows) if rows else []
    return lines


def threats() -> list[str]:
    """# Threat models

    The files in `configs/attacks`, chosen by `ATTACK=linf1`, `--attack-config-file linf1` or
    `threat="linf1"`; a file of yours is named by its path. Terms: [attacks](../attacks.md).
    """
    lines, usual = [], config.default_cfg()
    for path in sorted((shipped.configs_folder() / "attacks").glob("*.yaml")):
        config.merge_file(cfg := usual.clone(), path)
        head = [t[2:] for t in path.read_text("utf-8").splitlines() if t.startswith("#")]
        lines += [f"## {path.stem}", "", "```text", *head, "```", ""]
        uses = {"training": [AttackSpec.from_cfg(cfg.ATTACK.TRAIN)]}
        rows = []
        for use, specs in (uses | {"test": specs_from_cfg(cfg.ATTACK.TEST)}).items():
            facts = [spec.describe() for spec in specs]
            named = zip(words.attack_headings(facts), facts, strict=True)
            rows += [(use, heading, words.describe(attack)) for heading, attack in named]
        lines += table("used in | attack | settings", rows)
    return lines


def record() -> list[str]:
    """# The result record

    Every test writes a `record.json`, and every table is made from these files. An attack may have
    more fields than those below, which then belong to its threat model.
    """
    meanings = read_yaml(Path(schema.__file__).with_name("fields.yaml"))
    lines = []
    for name, rules in schema.OBJECTS.items():
        rows = [(f"`{f}`", rule.expected, meanings[name][f]) for f, rule in rules.items()]
        lines += [f"## {name}", "", *table("field | expected | meaning", rows)]
    return lines


def api() -> list[str]:
    """# Python

    What `import advprompt` offers. Guide: [evaluate](../evaluate.md), [zoo](../zoo.md).
    """
    found = {f"advprompt.{name}": getattr(advprompt, name) for name in advprompt.__all__}
    found |= {f"advprompt.records.{f.__name__}": f for f in (load_records, read_record)}
    for kind in (zoo.RobustClassifier, image_text.ZeroShot):
        members = {n: m for n, m in vars(kind).items() if n[0] != "_" and n != "forward"}
        found |= {kind.__name__: kind} | {f"{kind.__name__}.{n}": m for n, m in members.items()}
    lines = []
    for name, member in found.items():
        if callable(member) and member.__doc__:
            shown = f"{name}{_signature(member) if inspect.isfunction(member) else ''}"
            lines += [f"## {name}", "", "```text", shown, "", inspect.getdoc(member), "```", ""]
    return lines


def _signature(function) -> inspect.Signature:
    """Return names and defaults alone: how types are written depends on the version of Python."""
    none, signature = inspect.Parameter.empty, inspect.signature(function)
    names = [p.replace(annotation=none) for p in signature.parameters.values() if p.name != "self"]
    return signature.replace(parameters=names, return_annotation=none)


PAGES = {page.__name__: page for page in (commands, threats, record, api)} | {"keys": reference}


def page_of(name: str) -> str:
    """Return one of PAGES in Markdown."""
    head = [inspect.getdoc(PAGES[name]), "", "Generated by `python -m tests.reference`.", ""]
    return "\n".join(head + PAGES[name]()).rstrip("\n") + "\n"


if __name__ == "__main__":
    for name in PAGES:
        (REPO / f"docs/reference/{name}.md").write_text(page_of(name), encoding="utf-8")
