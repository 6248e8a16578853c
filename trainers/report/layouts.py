"""Tables and joins laid out as sheets: columns, captions and figures as the papers print them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .. import records as records_of
from ..utils import statistics
from .joins import BASE_TO_NEW, CROSS, SHORT, SPLITS, Join, JoinedRow
from .sheets import MISSING, Block, Column, Sheet
from .tables import Row, Table
from .threats import MEANINGS, describe

INTERVAL = (
    "mean ± 95 % t-interval over seeds, in percent; a sample wrong clean does not count as robust"
)
_PROTOCOLS = {
    "few_shot": "few-shot",
    "base2new": "base-to-novel",
    "xd": "cross-dataset",
    "dg": "domain shift",
    "zero_shot": "zero-shot",
}
MODEL = (Column("trainer", left=True), Column("shots"), Column("trained with", left=True))


def cell(values: Iterable[float], digits: int = 1) -> str:
    """Return ``78.3 ± 1.2``, ``78.3`` for a single seed, or a dash for none."""
    values = list(values)
    if not values:
        return MISSING
    mean, half = statistics.mean_interval(values)
    return f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def model_cells(row: Row) -> list[str]:
    """Return the texts that tell which model a row is."""
    return [row.name, row.shots_label, row.trained_with]


def figures_of(of: Table | Join) -> list[tuple[str, tuple | None]]:
    """Return ``clean`` and each attack, with the signature that finds it in a record."""
    return [("clean", None), *zip(of.headings, of.signatures, strict=True)]


# --- captions -------------------------------------------------------------------------------------


def title(table: Table) -> str:
    """Return data set, protocol and classes in one line."""
    first = table.first
    which = "" if first["split"] == "all" else f"{first['split']} "
    return (
        f"{first['dataset']}, {_PROTOCOLS[first['protocol']]}, "
        f"{first['classes']} {which}classes, {first['backbone']}"
    )


def caption(table: Table) -> list[str]:
    """Return the lines a reader needs to compare the table with others."""
    first = table.first
    return [
        *_backbone(first),
        f"{first['clean']['n']} test images ({_subset([first])})",
        *_shared_facts(table, table.devices),
        INTERVAL,
    ]


def _backbone(record: Mapping) -> list[str]:
    return [f"backbone {record['backbone']}, weights sha256 {record['weights_sha256'][:12]}"]


def _subset(records: list[dict]) -> str:
    first = max(record["config"].get("TEST.FIRST", 0) for record in records)
    return records_of.test_images(max(record["subset"] or 0 for record in records), first)


def _shared_facts(of: Table | Join, devices: list[str]) -> list[str]:
    attacks = of.first["attacks"]
    lines = [f"device {', '.join(devices)}"]
    for heading, attack in zip(of.headings, attacks, strict=True):
        lines.append(f"{heading}: {describe(attack)}")
    targets = {attack["target"] for attack in attacks}
    return lines + [meaning for target, meaning in MEANINGS.items() if target in targets]


# --- one table ------------------------------------------------------------------------------------


def table_sheet(table: Table) -> Sheet:
    """Lay out a table: trainers by shots, clean and under each attack."""
    figures = figures_of(table)
    columns = [
        *MODEL,
        *(Column(name) for name, _ in figures),
        Column("trainable parameters"),
        Column("seeds n"),
    ]
    rows = [
        model_cells(row)
        + [cell(row.accuracies(signature)) for _, signature in figures]
        + [row.parameters, str(len(row.runs))]
        for row in table.rows
    ]
    return Sheet(title(table), [Block(columns, rows)], caption(table), list(table.notes))


# --- joins ----------------------------------------------------------------------------------------


def join_sheet(join: Join) -> Sheet:
    """Lay out a join: base, new and H in one table; source, targets and average per figure."""
    blocks = [_base_to_new(join)] if join.protocol == BASE_TO_NEW else _by_figure(join)
    return Sheet(join_title(join), blocks, _join_caption(join), list(join.notes))


def _base_to_new(join: Join) -> Block:
    figures = figures_of(join)
    names = (*SPLITS, "H")
    columns = [*MODEL, *(Column(n, group) for group, _ in figures for n in names)]
    rows = []
    for joined in join.rows:
        cells = model_cells(joined.row)
        for _, signature in figures:
            cells += [_of_part(joined, split, signature) for split in SPLITS]
            cells.append(_harmonic(joined, signature))
        rows.append([*cells, joined.seeds])
    return Block([*columns, Column("seeds n")], rows)


def _of_part(joined: JoinedRow, part: str, signature) -> str:
    return cell(joined.parts[part].accuracies(signature) if part in joined.parts else [])


def _harmonic(joined: JoinedRow, signature) -> str:
    means = [joined.mean(split, signature) for split in SPLITS]
    return MISSING if None in means else cell([statistics.harmonic_mean(*means)])


def _by_figure(join: Join) -> list[Block]:
    source = [join.source] if join.source in join.tables else []
    columns = [
        *MODEL,
        *(Column(SHORT.get(name, name).lstrip("-"), "source") for name in source),
        *(Column(_short(name, join), "target") for name in join.targets),
        *([Column("average", "target")] if join.targets else []),
        Column("seeds n"),
    ]
    blocks = []
    for name, signature in figures_of(join):
        rows = [
            model_cells(joined.row)
            + [_of_part(joined, part, signature) for part in join.tables]
            + ([cell(joined.averages(join.targets, signature))] if join.targets else [])
            + [joined.seeds]
            for joined in join.rows
        ]
        blocks.append(Block(columns, rows, heading=name))
    return blocks


def _short(name: str, join: Join) -> str:
    """Return ``-V2`` for ImageNetV2 only where ImageNet is the source."""
    short = SHORT.get(name, name)
    return name if short.startswith("-") and join.source != "ImageNet" else short


def join_title(join: Join) -> str:
    first, protocol = join.first, _PROTOCOLS[join.protocol]
    if join.protocol == BASE_TO_NEW:
        counts = [f"{join.tables[s].first['classes']} {s}" for s in SPLITS if s in join.tables]
        return (
            f"{first['dataset']}, {protocol}, {' and '.join(counts)} classes, {first['backbone']}"
        )
    count = len(join.targets)
    if not count:  # only the source's folder was given
        return f"{join.source} without a target, {protocol}, {first['backbone']}"
    what = "data set" if join.protocol == CROSS else "shifted data set"
    targets = f"{count} {what}{'' if count == 1 else 's'}"
    start = f"{join.source} to {targets}" if join.source else targets
    return f"{start}, {protocol}, {first['backbone']}"


def _join_caption(join: Join) -> list[str]:
    counts = []
    for part, table in join.tables.items():
        first = table.first
        counts.append(f"{part} {first['clean']['n']}")
        if join.protocol != BASE_TO_NEW:
            counts[-1] += f" of {first['classes']} classes"
    tested = _subset([table.first for table in join.tables.values()])
    devices = sorted({d for table in join.tables.values() for d in table.devices})
    if join.protocol == BASE_TO_NEW:
        own = ["trained on the base classes; H: harmonic mean of the base and the new average"]
    else:
        trained = f"trained on {join.source}; " if join.source else ""  # else all is zero-shot
        own = [f"{trained}the average counts every target alike and needs all of them"]
    if any(not joined.row.shots for joined in join.rows):
        own.append("zero-shot CLIP saw no training image")
    return [
        *_backbone(join.first),
        f"test images: {', '.join(counts)} ({tested})",
        *own,
        *_shared_facts(join, devices),
        INTERVAL,
    ]
