"""Figures that papers have published, next to ours; ``published.yaml`` holds them.

A figure is in one row with ours only if backbone, data, shots, training and attack are the same;
all others are in separate tables, whose caption says that they are not comparable.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import yaml

from ..config.keys import defaults
from ..records import attack_signature
from .across import SHORT
from .formats import MISSING, Block, Column, Sheet
from .layout import MODEL, cell, model_cells, title
from .tables import Row, Table, source_of

# what an attack is that does not state these fields
_UNSTATED = {"drop": False, "prec": "fp32", "kwargs": {}, "defence": ""}
_PGD = "transfer PGD-40 16/255"


@cache
def _papers() -> dict:
    text = (Path(__file__).parent / "published.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def papers_sheets() -> list[Sheet]:
    """Return the papers' tables, each on its own."""
    paper = _papers()["advpt"]
    tables = [
        {
            "title": f"AdvPT against the hand-made prompt, {backbone}",
            "source": f"{paper['source']}, main results, backbone {backbone}",
            "setting": paper["setting"],
            "columns": ["prompt", "test", *(SHORT[name] for name in paper["datasets"])],
            "rows": [
                [paper["names"][trainer], test, *figures]
                for trainer, tests in trainers.items()
                for test, figures in tests.items()
            ],
        }
        for backbone, trainers in paper["figures"].items()
    ]
    return [_alone(table) for table in tables + _papers()["tables"]]


def _alone(table: Mapping) -> Sheet:
    digits = table.get("decimals", 1)
    texts = [isinstance(value, str) for value in table["rows"][0]]
    columns = [
        Column(column, left=text) if isinstance(column, str) else Column(column[1], column[0])
        for column, text in zip(table["columns"], texts, strict=True)
    ]
    rows = [[v if isinstance(v, str) else f"{v:.{digits}f}" for v in r] for r in table["rows"]]
    facts = [
        f"source: {table['source']}",
        *table["setting"],
        "copied from the paper, not measured here; compare with ours only where backbone, "
        "data, shots, training and threat model are the same",
    ]
    return Sheet(f"Published: {table['title']}", [Block(columns, rows)], facts)


def _same_attack(attack: Mapping | None, wanted: Mapping) -> bool:
    """Return True if two attacks are equal; an unknown field makes them differ."""
    signatures = [attack_signature(_UNSTATED | facts) for facts in (attack or {}, wanted)]
    return signatures[0] == signatures[1]


def _same_settings(config: Mapping, wanted: Mapping) -> bool:
    """Return True if all settings are as wanted; keys that only older records have may be unset."""
    config = defaults() | config
    return all(config.get(key, value) == value for key, value in wanted.items())


def published_figure(row: Row, attack: dict | None) -> float | None:
    """Return the paper's figure for a row of ours; None unless every known fact is the same."""
    record = row.runs[0].record  # its runs differ in their seeds alone
    config, dataset, paper = record["config"], record["dataset"], _papers()["advpt"]
    same, by_trainer = paper["same"], paper["figures"].get(record["backbone"], {})
    template = config.get("DATASET.TEMPLATE", "")  # "": that of the data set, which is the paper's
    compares = (
        row.trainer in by_trainer
        and dataset in paper["datasets"]
        and record["split"] == "all"
        and not (record["subset"] or config.get("TEST.FIRST"))
        and template in ("", same["templates"].get(dataset))
        and _same_settings(config, same["test"])
        and (attack is None or _same_attack(attack, same["attack"]))
    )
    if compares and row.trainer == "AdvPT":
        compares = (
            (record["shots"], record["epochs"], source_of(record)) == (-1, 100, None)
            and _same_attack(record["train_threat"], same["attack"] | same["bank"])
            and _same_settings(config, same["tuning"])
            and _same_settings(config, {"OPTIM.LR": same["lr"].get(record["backbone"])})
        )
    figures = by_trainer[row.trainer]["clean" if attack is None else _PGD] if compares else None
    return figures and figures[paper["datasets"].index(dataset)]


def side_by_side(table: Table) -> Sheet | None:
    """Return ours and the paper's figures side by side where the setting is the same; else None."""
    found = []  # (heading, signature, row -> published)
    attacks = [None, *table.first["attacks"]]
    for (name, signature), attack in zip(table.figures, attacks, strict=True):
        values = {row.identity: published_figure(row, attack) for row in table.rows}
        if any(value is not None for value in values.values()):
            found.append((name, signature, values))
    rows = [row for row in table.rows if any(v[row.identity] is not None for _, _, v in found)]
    if not rows:
        return None
    columns = [*MODEL, *(Column(n, name) for name, _, _ in found for n in ("ours", "published"))]
    cells = []
    for row in rows:
        texts = model_cells(row)
        for _, signature, values in found:
            value = values[row.identity]
            texts += [cell(row.accuracies(signature)), MISSING if value is None else f"{value:.1f}"]
        cells.append(texts)
    paper = _papers()["advpt"]
    facts = [f"published: {paper['source']}, main results", *paper["setting"][:2]]
    return Sheet(f"Compared with the paper: {title(table)}", [Block(columns, cells)], facts)


def published_sheets(tables: Iterable[Table]) -> list[Sheet]:
    """Return the sheets after our tables: figures of the same settings, then the papers' tables."""
    same = [side_by_side(table) for table in tables if not table.across]
    return [sheet for sheet in same if sheet] + papers_sheets()
