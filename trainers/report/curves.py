"""Curves of accuracy over one setting of the runs, or over one field of the test attack.

Panels are groups of comparable runs, which are the tables of the report: they never mix threat
models, backbones, data or test subsets. Runs that differ in another setting are another curve.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import records as records_of
from ..utils import errors
from .tables import Row, Run, Table, collect, differing_keys, finish, grouped, name_sources, setting

SHOTS = "DATASET.NUM_SHOTS"
# fields of the test attack that can be an axis
AXES = {"eps": "eps in 1/255", "steps": "attack steps", "restarts": "random restarts"}
_SAME = {"OPTIM.MAX_EPOCH": {"epochs"}}  # a setting -> its other names in a row
_SAME_SHARE = 0.01  # alphas are written to four decimals of 1/255


class NothingVaries(errors.UserError):
    """No two comparable runs differ in what a curve is drawn over."""


@dataclass
class Curve:
    """Rows of the report that differ in the setting on the x axis alone."""

    rows: dict[float | str, Row]  # value -> row, in the order of the axis
    name: str = ""
    undefended: bool = False  # drawn in grey


@dataclass
class Panel:
    """The curves of one table, and the rows that the setting does not apply to (zero-shot)."""

    table: Table
    curves: list[Curve] = field(default_factory=list)
    references: list[Row] = field(default_factory=list)
    only: str = ""  # the one figure it shows, clean or an attack's heading; else all
    notes: list[str] = field(default_factory=list)  # on rows that are in none of its curves
    seen: list[float | str] = field(default_factory=list)  # values of all rows

    @property
    def figures(self) -> list[tuple[str, tuple | None]]:
        """The figures shown: name, and the signature that finds it in a record."""
        return [f for f in self.table.figures if self.only in ("", f[0])]

    @property
    def values(self) -> list[float | str]:
        """Every value on the x axis, in order."""
        return ordered(value for curve in self.curves for value in curve.rows)

    @property
    def numeric(self) -> bool:
        return all(isinstance(value, float) for value in self.values)


def ordered(values: Iterable[float | str]) -> list[float | str]:
    """Sort numbers; leave texts in the order they came, after the numbers."""
    values = list(dict.fromkeys(values))
    numbers = sorted(value for value in values if isinstance(value, float))
    return numbers + [value for value in values if isinstance(value, str)]


def label(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else value


def per_figure(panels: Iterable[Panel]) -> list[Panel]:
    """Return a panel per figure instead of one for all: for many curves."""
    return [replace(panel, only=name) for panel in panels for name, _ in panel.figures]


def _number(value) -> float:
    return float(value.removesuffix("/255") if isinstance(value, str) else value)


def value_of(row: Row, key: str) -> float | str | None:
    """Return a row's setting as a number if it is one (``4/255`` is read as 4), else as text.

    None where the row does not have the setting.
    """
    if key == SHOTS:
        return {0: None, -1: "all", None: None}.get(row.shots, row.shots and float(row.shots))
    if key not in row.config:
        return None
    value = json.loads(row.config[key])
    if isinstance(value, (bool, list, dict)) or value is None:
        return row.config[key]
    try:
        return _number(value)
    except ValueError:
        return value or '""'


def build_panels(
    tables: Iterable[Table], key: str, along: Iterable[str] = ()
) -> tuple[list[Panel], list[str]]:
    """Sort the rows of tables into curves over a setting ``key`` such as ``TRAINER.ADVPT.N_CTX``.

    The keys ``along`` change together with it and start no other curve. Returns the panels with a
    curve of at least two values, and notes on everything left out.

    Raises:
        NothingVaries: no two comparable rows differ in ``key`` alone.
        UserError: no row has ``key``, or two rows of a curve have the same value.
    """
    tables = list(tables)
    known = {SHOTS}.union(*(row.config for table in tables for row in table.rows))
    for name in (key, *along):
        if name not in known:
            hint = errors.nearest(name, known)  # or hundreds of keys, where none is near
            raise errors.UserError(
                f"no completed record has a setting '{name}' in which its runs differ"
                f"{'.' + hint if hint.endswith('?') else ''}"
            )
    left_out = {key, *along}.union(*(_SAME.get(name, ()) for name in (key, *along)))
    found = [_panel(table, key, left_out) for table in tables]
    panels = [panel for panel in found if panel.curves]
    if not panels:
        raise NothingVaries(
            f"no two comparable runs differ in {key} alone (found: "
            f"{_seen(found) or 'zero-shot runs'}); curves need the same "
            "data, backbone, test attacks and other settings at two values, see --along"
        )
    return panels, [n for p in found for n in p.notes + (p.table.notes if p.curves else [])]


def _seen(panels: list[Panel]) -> str:
    return ", ".join(map(label, ordered(value for panel in panels for value in panel.seen)))


def _panel(table: Table, key: str, left_out: set[str]) -> Panel:
    """Sort the rows of one table into curves; they may be none."""
    panel = Panel(table)
    groups: dict[tuple, dict] = defaultdict(dict)  # trainer and settings -> value -> row
    for row in table.rows:
        value = value_of(row, key)
        if row.shots == 0 and key not in AXES:
            panel.references.append(row)
        elif value is None:
            panel.notes.append(f"left out: {row.full_name} has no {key}")
        else:
            rows = groups[row.trainer, json.dumps(_settings(row, left_out))]
            twin = rows.setdefault(value, row)
            if twin is not row:
                raise errors.UserError(
                    f"'{twin.full_name}' and '{row.full_name}' both have {key}={label(value)} on "
                    "one curve; leave the setting in which they differ out of --along, or give "
                    "the folder of one of them"
                )
    for rows in groups.values():
        panel.seen += rows
        value, row = next(iter(rows.items()))
        if len(rows) > 1:
            by_value = {value: rows[value] for value in ordered(rows)}
            panel.curves.append(Curve(by_value, undefended=row.shots == 0))
        else:
            only = f"{key}={label(value)} alone"
            panel.notes.append(f"left out: {row.full_name}, which was run with {only}")
    _name_curves(panel.curves, left_out)
    panel.curves.sort(key=lambda curve: curve.undefended)
    return panel


def _settings(row: Row, left_out: set[str]) -> dict[str, str]:
    """Return what identifies a row's curve: every setting but those on the x axis."""
    settings = {key: text for key, text in row.config.items() if key not in left_out}
    if SHOTS not in left_out:
        settings["shots"] = row.shots_label
    if not any(key.startswith("ATTACK.TRAIN.") for key in left_out):
        settings["trained with"] = row.trained_with
    return settings


def _name_curves(curves: list[Curve], left_out: set[str]) -> None:
    """Name trainers, and in brackets the settings in which curves of one trainer differ."""
    same = defaultdict(list)
    for curve in curves:
        row = next(iter(curve.rows.values()))
        same[row.trainer].append((curve, _settings(row, left_out)))
    for trainer, twins in same.items():
        keys = differing_keys([settings for _, settings in twins])
        keys = [key for key in keys if not key.startswith("ATTACK.TRAIN.")]  # in 'trained with'
        for curve, settings in twins:
            parts = (  # without the trainer's node: TRAINER.CAPT.ALPHA is ALPHA
                f"{re.sub('^TRAINER[.][^.]*[.]', '', key)}={settings.get(key, 'unset')}"
                for key in keys
            )
            curve.name = f"{trainer} ({', '.join(parts)})" if keys else trainer


def attack_panels(records: Mapping[Path, dict], axis: str) -> tuple[list[Panel], list[str]]:
    """Sort the attacks of completed records into curves over an axis of ``AXES``, one per model.

    The points of a curve are attacks of one model, from one record or from several, that differ in
    that field alone. Everything else that differs is another curve or another panel. Returns the
    panels with a curve of at least two values, and notes on what is left out. NothingVaries: no
    model was attacked by two attacks that differ in ``axis`` alone.
    """
    found = [_panel(table, axis, {axis}) for table in _attack_tables(records, axis)]
    panels = [panel for panel in found if panel.curves]
    if not panels:
        raise NothingVaries(
            f"no model was tested by two attacks that differ in {axis} alone (found: "
            f"{_seen(found) or 'no attack that has it'}); test one with "
            f"python -m advprompt robustness --model-dir RUN --attack-config-file "
            f"configs/attacks/sweep_{axis}.yaml"
        )
    return panels, list(dict.fromkeys(n for p in found for n in p.table.notes + p.notes))


def _attack_tables(records: Mapping[Path, dict], axis: str) -> Iterator[Table]:
    """Yield tables of attacks that are equal but for ``axis``, which is a setting of their rows."""
    # the step size may grow with eps; AutoAttack starts from the smaller ones' leftovers
    left_out = {axis, "alpha", "after"} if axis == "eps" else {axis, "after"}
    for members in grouped(name_sources(records), setting):
        kinds = defaultdict(list)  # the attack but for these -> [(run, attack)]
        for path, record in members.items():
            for attack in record["attacks"]:
                alike = tuple(
                    fact for fact in records_of.attack_signature(attack) if fact[0] not in left_out
                )
                if attack[axis] is not None:  # an attack without a ball has no eps
                    kinds[alike].append((Run(path, record), attack))
        for found in kinds.values():
            by_rule = defaultdict(list)
            rules = _step_rules([attack for _, attack in found], axis)
            for entry, rule in zip(found, rules, strict=True):
                by_rule[rule].append(entry)
            for rule, entries in by_rule.items():
                values = [_number(attack[axis]) for _, attack in entries]
                span = f"{min(values):g}..{max(values):g}{'/255' if axis == 'eps' else ''}"
                runs = []
                for ((path, record), attack), value in zip(entries, values, strict=True):
                    # one threat model for the whole curve, so that its points share a signature
                    kept = {k: v for k, v in attack.items() if k != "after"}
                    swept = {"attacks": [kept | {"alpha": rule, axis: span}]}
                    runs.append(
                        Run(path, record | swept | {"config": record["config"] | {axis: value}})
                    )
                table = collect(runs, again=True)
                finish(table)
                yield table


def _step_rules(attacks: list[dict], axis: str) -> list[str | None]:
    """Return for each attack what its step size has in common with others.

    Over eps the step is either constant or a constant share of eps, whichever needs fewer
    different values; over anything else it is a field like all others.
    """
    alphas = [attack["alpha"] for attack in attacks]
    if axis != "eps" or None in alphas:
        return alphas
    shares: list[float] = []
    for attack in attacks:
        eps = _number(attack["eps"])
        share = _number(attack["alpha"]) / eps if eps else 0.0
        shares.append(next((s for s in shares if abs(s - share) <= _SAME_SHARE * s), share))
    return alphas if len(set(alphas)) <= len(set(shares)) else [_share(s) for s in shares]


def _share(share: float) -> str:
    parts = round(1 / share) if share else 0
    return f"eps/{parts}" if parts and abs(parts * share - 1) < _SAME_SHARE else f"{share:.3g} eps"
