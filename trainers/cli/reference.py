"""The pages of docs/reference, from the declarations in the code; a docstring is a page's head.

`advprompt configs --reference commands` prints one; a test compares them all with the files.
"""

import argparse
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..attacks import AttackSpec, specs_from_cfg
from ..config import keys as config
from ..config import shipped
from ..engine import zoo
from ..evaluation import image_text
from ..records import load_records, read_record, schema
from ..report import threats as words
from ..utils.io import read_yaml


def table(heads: str, rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    cells = [" | ".join(" ".join(c.split()).replace("|", r"\|") for c in row) for row in rows]
    rule = "|---" * len(heads.split(" | ")) + "|"
    return [f"| {heads} |", rule, *(f"| {row} |" for row in cells), ""]


def keys() -> list[str]:
    """# Configuration keys

    A key is set in a yaml file, or as `KEY VALUE` at the end of a command line. All keys are
    checked before anything is loaded or written, and one message names every mistake.
    """
    config.defaults()  # declares those of all rooms and methods
    groups: dict[str, list] = {}
    for name, key in sorted(config.KEYS.items()):
        parts = name.split(".")[: 2 if name.startswith("TRAINER.") else 1]
        group = ".".join(parts) if name.count(".") >= len(parts) else "The run"
        if key.about:
            row = f"`{name}`", f"`{key.default!r}`", key.expected(), key.about
            groups.setdefault(group, []).append(row)
    lines = []
    for group, rows in groups.items():
        lines += [f"## {group}", "", *table("key | default | expected | meaning", rows)]
    others = [f"`{name}`" for name, key in sorted(config.KEYS.items()) if not key.about]
    return [*lines, f"Known to Dassl, and not used here: {', '.join(others)}."]


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


def commands(known: Mapping[str, str], command: Callable) -> list[str]:
    """# Commands

    `advprompt COMMAND` is the same as `python -m advprompt COMMAND`; in a fork that holds a copy it
    is `python -m trainers.advprompt COMMAND`. Environment variables: [protocols](../protocols.md).
    """
    lines = []
    for name, about in known.items():
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
    package = sys.modules[__package__.rpartition(".")[0]]
    found = {f"advprompt.{name}": getattr(package, name) for name in package.__all__}
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


PAGES = {page.__name__: page for page in (keys, commands, threats, record, api)}


def page_of(name: str, *commands) -> str:
    """Return one of PAGES in Markdown; that of the commands is made from ``commands``."""
    made = f"`python -m advprompt configs --reference {name} > docs/reference/{name}.md`"
    head = [inspect.getdoc(PAGES[name]), "", f"Generated by {made}.", ""]
    return "\n".join(head + PAGES[name](*(commands if name == "commands" else ()))).rstrip("\n")
