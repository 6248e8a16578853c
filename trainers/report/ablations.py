"""Robustness over one field of the test attack: its radius, its steps or its restarts.

The points of a curve are attacks of one model, from one record or from several, that differ in
that field alone. Everything else that differs is another line or another panel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from .. import records as records_of
from .curves import Curve, NothingVaries, Panel, label, ordered
from .tables import Row, Table, empty_row, grouped, name_sources, name_variants, setting

AXES = {"eps": "eps in 1/255", "steps": "attack steps", "restarts": "random restarts"}
_SAME_SHARE = 0.01  # alphas are written to four decimals of 1/255


def value_of(attack: Mapping, axis: str) -> float | None:
    """Return the attack's place on the axis; None where it has none (an attack without a ball)."""
    value = attack[axis]
    return None if value is None else _number(value)


def _number(value) -> float:
    return float(value.removesuffix("/255") if isinstance(value, str) else value)


def _alike(attack: Mapping, axis: str) -> tuple:
    """Return everything that attacks of one curve share, but for the step size over eps."""
    left_out = {axis, "alpha"} if axis == "eps" else {axis}
    return tuple(pair for pair in records_of.attack_signature(attack) if pair[0] not in left_out)


def _step_rules(attacks: list[dict], axis: str) -> list[str | None]:
    """Say for each attack what its step size shares with the others.

    Over eps the step is either one and the same or one share of eps, whichever holds for more of
    them together; over anything else it is a field like all others.
    """
    alphas = [attack["alpha"] for attack in attacks]
    if axis != "eps" or None in alphas:
        return alphas
    shares: list[float] = []
    found = []
    for attack in attacks:
        eps = _number(attack["eps"])
        share = _number(attack["alpha"]) / eps if eps else 0.0
        same = next((s for s in shares if abs(s - share) <= _SAME_SHARE * s), None)
        if same is None:
            shares.append(share)
        found.append(share if same is None else same)
    if len(set(alphas)) <= len(shares):
        return alphas
    return [_share(share) for share in found]


def _share(share: float) -> str:
    parts = round(1 / share) if share else 0
    return f"eps/{parts}" if parts and abs(parts * share - 1) < _SAME_SHARE else f"{share:.3g} eps"


def build_panels(records: Mapping[Path, dict], axis: str) -> tuple[list[Panel], list[str]]:
    """Sort the attacks of records into curves over ``axis``.

    Args:
        records: completed ones by path.
        axis: a key of ``AXES``.

    Returns:
        the panels with a curve of at least two values, and notes on what is left out.

    Raises:
        NothingVaries: no model was attacked by two attacks that differ in ``axis`` alone.
    """
    panels, notes, seen = [], [], set()
    for members in grouped(name_sources(records), setting):
        kinds = defaultdict(list)  # the attack but for the axis -> [(path, attack)]
        for path, record in members.items():
            for attack in record["attacks"]:
                value = value_of(attack, axis)
                if value is not None:
                    seen.add(value)
                    kinds[_alike(attack, axis)].append((path, attack))
        for found in kinds.values():
            by_rule = defaultdict(list)
            for (path, attack), rule in zip(
                found, _step_rules([attack for _, attack in found], axis), strict=True
            ):
                by_rule[rule].append((path, attack | {"alpha": rule}))
            for entries in by_rule.values():
                panel, told = _panel(members, entries, axis)
                notes += told
                if panel:
                    panels.append(panel)
    if not panels:
        raise NothingVaries(
            f"no model was tested by two attacks that differ in {axis} alone (found: "
            f"{', '.join(map(label, sorted(seen))) or 'no attack that has it'}); test one with "
            f"python -m advprompt robustness --model-dir RUN --attack-config-file "
            f"configs/attacks/sweep_{axis}.yaml"
        )
    return panels, list(dict.fromkeys(notes))


def _panel(members: Mapping[Path, dict], entries: list, axis: str) -> tuple[Panel | None, list]:
    """Make the panel of attacks that are one but for the axis: a curve per model."""
    values = sorted({value_of(attack, axis) for _, attack in entries})
    unit = "/255" if axis == "eps" else ""
    span = f"{label(values[0])}..{label(values[-1])}{unit}"
    known = set().union(*(members[path]["config"] for path, _ in entries))
    newest_first = sorted(entries, key=lambda e: members[e[0]]["created"], reverse=True)
    rows: dict[str, dict[float, Row]] = {}
    notes, threat, first = [], None, None
    for path, attack in newest_first:
        record, value = members[path], value_of(attack, axis)
        # one threat model for the whole curve, so that its points share a signature
        threat = attack | {axis: span}
        record = record | {"attacks": [threat]}
        first = record if first is None or first["shots"] == 0 else first
        row = empty_row(record, known)
        row = rows.setdefault(row.identity, {}).setdefault(value, row)
        seed = record["seed"]
        if seed not in row.runs:
            row.runs[seed], row.paths[seed] = record, path
        elif _outcome(row.runs[seed]) != _outcome(record):
            notes.append(
                f"duplicate: '{path}' repeats {row.full_name}, seed {seed}, {axis} {label(value)} "
                f"with another result; only the newer '{row.paths[seed]}' counts"
            )
    name_variants([row for by_value in rows.values() for row in by_value.values()])
    panel = Panel(Table(first, [threat]))
    for by_value in rows.values():
        row = next(iter(by_value.values()))
        if len(by_value) < 2:
            only = f"{axis} {label(*by_value)} alone"
            notes.append(f"left out: {row.full_name}, which was tested with {only}")
            continue
        curve = Curve({value: by_value[value] for value in ordered(by_value)})
        trained = "" if row.shots == 0 else f"{row.full_name}, trained with {row.trained_with}"
        curve.name = trained or row.name
        curve.undefended = row.shots == 0
        panel.curves.append(curve)
    panel.table.rows = [row for curve in panel.curves for row in curve.rows.values()]
    panel.curves.sort(key=lambda curve: (curve.undefended, curve.name))
    notes += [
        f"self-check: {row.full_name}, seed {seed}, {axis} {label(value)}: {warning}"
        for curve in panel.curves
        for value, row in curve.rows.items()
        for seed, run in sorted(row.runs.items())
        for warning in run["attacks"][0]["warnings"]
    ]
    panel.table.notes = notes
    return (panel if panel.curves else None), notes


def _outcome(record: Mapping) -> tuple:
    return record["clean"]["correct"], record["attacks"][0]["correct"]
