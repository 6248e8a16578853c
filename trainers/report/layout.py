"""Tables laid out as sheets: columns, captions and figures as the papers print them, costs, CSV."""

from collections.abc import Iterable

from .. import records as records_of
from ..utils import statistics
from .across import BASE_TO_NEW, CROSS, SHORT, SPLITS
from .formats import MISSING, Block, Column, Sheet, csv_text
from .tables import UNKNOWN, Row, Table, name_of, source_of
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
_COSTS = {
    "train": "training, summed over interrupted runs",
    "bank": "the adversarial embedding bank, once for all runs that share it",
    "eval": "clean test, every attack and the pictures, summed over the tests of the row",
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
    """Return the texts that say which model a row is."""
    return [row.name, row.shots_label, row.trained_with]


def title(table: Table) -> str:
    """Return data, protocol, classes and backbone in one line."""
    first, protocol, backbone = table.first, _PROTOCOLS[table.protocol], table.first["backbone"]
    name, backbone = name_of(first), ", ".join(filter(None, [backbone, table.data]))
    if not table.across:
        which = "" if first["split"] == "all" else f"{first['split']} "
        return f"{name}, {protocol}, {first['classes']} {which}classes, {backbone}"
    if table.protocol == BASE_TO_NEW:
        counts = [f"{record['classes']} {split}" for split, record in table.tests.items()]
        trained = f", trained on {table.source}" if table.source else ""
        return f"{name}, {protocol}, {' and '.join(counts)} classes, {backbone}{trained}"
    count = len(_targets(table))
    if not count:  # only the source's folder was given
        return f"{table.source} without a target, {protocol}, {backbone}"
    what = "data set" if table.protocol == CROSS else "shifted data set"
    targets = f"{count} {what}{'' if count == 1 else 's'}"
    start = f"{table.source} to {targets}" if table.source else targets
    return f"{start}, {protocol}, {backbone}"


def caption(table: Table) -> list[str]:
    """Return the lines a reader needs to compare the table with others."""
    first, tests = table.first, table.tests.values()
    subset = max(record["subset"] or 0 for record in tests)
    start = max(record["config"].get("TEST.FIRST", 0) for record in tests)
    images, lines = records_of.test_images(subset, start), []
    weights = (first["weights_sha256"] or "unknown")[:12]
    lines.append(f"backbone {first['backbone']}, weights sha256 {weights}")
    if table.across:
        lines += _caption_across(table, images)
    else:
        digest = first.get("data_sha256") or ""
        known = f", data sha256 {digest[:12]}" if digest else ""
        lines.append(f"{first['clean']['n']} test images ({images}){known}")
    devices = sorted({device for row in table.rows for device in row.distinct("device")})
    lines.append(f"device {', '.join(devices)}")
    attacks = first["attacks"]
    for (heading, _), attack in zip(table.figures[1:], attacks, strict=True):
        lines.append(f"{heading}: {describe(attack)}")
    targets = {attack["target"] for attack in attacks}
    lines += [meaning for target, meaning in MEANINGS.items() if target in targets]
    return [*lines, INTERVAL]


def _caption_across(table: Table, images: str) -> list[str]:
    counts = [f"{test} {record['clean']['n']}" for test, record in table.tests.items()]
    if table.protocol == BASE_TO_NEW:
        own = f"trained on {table.source or 'the base classes'}"
        own += "; H: harmonic mean of the base and the new average"
    else:
        classes = [record["classes"] for record in table.tests.values()]
        counts = [f"{c} of {n} classes" for c, n in zip(counts, classes, strict=True)]
        trained = f"trained on {table.source}; " if table.source else ""  # else all is zero-shot
        own = f"{trained}the average weighs every target equally and needs all of them"
    lines = [f"test images: {', '.join(counts)} ({images})", own]
    if any(row.shots == 0 for row in table.rows):
        lines.append("zero-shot CLIP saw no training image")
    return lines


def table_sheet(table: Table) -> Sheet:
    """Lay out a table.

    One test: clean and each attack, side by side. Base-to-novel: base, new and H for each of
    these. Across data sets: source, targets and their average, in a block for each of these.
    """
    if not table.across:
        blocks = [_one_test(table)]
    else:
        blocks = [_base_to_new(table)] if table.protocol == BASE_TO_NEW else _by_figure(table)
    return Sheet(title(table), blocks, caption(table), list(table.notes))


def _one_test(table: Table) -> Block:
    columns = [*MODEL, *(Column(name) for name, _ in table.figures)]
    rows = [
        model_cells(row)
        + [cell(row.accuracies(signature)) for _, signature in table.figures]
        + [_text(row, "prompt_parameters"), str(len(row.runs))]
        for row in table.rows
    ]
    return Block([*columns, Column("trainable parameters"), Column("seeds n")], rows)


def _base_to_new(table: Table) -> Block:
    columns = [*MODEL, *(Column(n, group) for group, _ in table.figures for n in (*SPLITS, "H"))]
    rows = []
    for row in table.rows:
        cells = model_cells(row)
        for _, signature in table.figures:
            values = [row.accuracies(signature, split) for split in SPLITS]
            means = [statistics.mean_interval(found)[0] for found in values if found]
            harmonic = [statistics.harmonic_mean(*means)] if len(means) == len(SPLITS) else []
            cells += [*map(cell, values), cell(harmonic)]
        rows.append([*cells, _seeds(row)])
    return Block([*columns, Column("seeds n")], rows)


def _by_figure(table: Table) -> list[Block]:
    targets, columns = _targets(table), list(MODEL)
    if table.source in table.tests:
        columns.append(Column(SHORT.get(table.source, table.source).lstrip("-"), "source"))
    names = [_short(name, table) for name in targets] + ["average"] * bool(targets)
    columns += [*(Column(name, "target") for name in names), Column("seeds n")]
    blocks = []
    for figure, signature in table.figures:
        rows = [
            model_cells(row)
            + [cell(row.accuracies(signature, test)) for test in table.tests]
            + ([cell(_averages(row, targets, signature))] if targets else [])
            + [_seeds(row)]
            for row in table.rows
        ]
        blocks.append(Block(columns, rows, heading=figure))
    return blocks


def _averages(row: Row, tests: list[str], signature) -> list[float]:
    """Return the averages over several tests: one per seed, or one where seeds differ.

    Empty where a test is missing: an average over fewer data sets is another figure.
    """
    if any(test not in row.parts for test in tests):
        return []
    values = [row.accuracies(signature, test) for test in tests]
    if len({frozenset(row.parts[test]) for test in tests}) > 1:
        values = [[statistics.mean_interval(found)[0]] for found in values]
    return [sum(alike) / len(tests) for alike in zip(*values, strict=True)]


def _targets(table: Table) -> list[str]:
    return [test for test in table.tests if test != table.source]


def _short(name: str, table: Table) -> str:
    """Return ``-V2`` for ImageNetV2 only where ImageNet is the source."""
    short = SHORT.get(name, name)
    return name if short.startswith("-") and table.source != "ImageNet" else short


def _text(row: Row, fact: str) -> str:
    return ", ".join(map(str, row.distinct(fact)))


def _seeds(row: Row) -> str:
    counts = sorted({len(runs) for runs in row.parts.values()})
    return " to ".join(map(str, sorted({counts[0], counts[-1]})))


def cost_sheet(table: Table) -> Sheet:
    """Return parameters, epochs and mean seconds over seeds of every row."""
    columns = [*MODEL, Column("trainable parameters"), Column("epochs")]
    columns += [*(Column(kind, "seconds") for kind in _COSTS), Column("device", left=True)]
    rows = [
        [*model_cells(row), _text(row, "prompt_parameters"), _text(row, "epochs")]
        + [*(_seconds(row, kind) for kind in _COSTS), _text(row, "device")]
        for row in table.rows
    ]
    facts = [f"{kind}: {meaning}" for kind, meaning in _COSTS.items()]
    facts.append(
        "mean wall seconds: training and bank over the runs that spent any, test over the seeds "
        "that have every test of the row; seconds of different devices are not comparable, and "
        "runs that share a machine slow one another down"
    )
    return Sheet(f"Costs: {title(table)}", [Block(columns, rows)], facts)


def _seconds(row: Row, kind: str) -> str:
    """Return the mean over seeds of the seconds of all tests of a model, a dash for none.

    Training and bank time is averaged over the seeds that spent any, test time over the seeds
    that have every test.
    """
    totals = []
    for seed in row.distinct("seed"):
        runs = [part[seed] for part in row.parts.values() if seed in part]
        spent = [run.record["seconds"][kind] for run in runs]
        if any(spent) and (kind != "eval" or len(runs) == len(row.parts)):
            totals.append(sum(spent))
    if not totals:
        return MISSING
    mean, _ = statistics.mean_interval(totals)
    return f"{mean:.0f}" if mean >= 10 else f"{mean:.1f}"


_SHARED = ("dataset", "protocol", "split", "classes", "backbone", "weights_sha256", "subset")
_THREAT = ("name", "objective", "target", "eps", "alpha", "steps", "restarts", "start", "norm")


def tidy_csv(tables: Iterable[Table]) -> str:
    """Return a line per table of one test, row and figure, at full precision, as CSV text.

    Averages over class splits and data sets are left to the reader.
    """
    rows = [
        ["table", *_SHARED, "first", "test_images", "trainer", "variant", "shots", "trained_with"]
        + ["trainable_parameters", "figure", *(f"attack_{f}" for f in _THREAT)]
        + ["mean", "ci95", "seeds", "source", "data", "data_sha256"]
    ]
    for number, table in enumerate(tables, 1):
        fixed = [number, *(table.first[key] for key in _SHARED)]
        fixed += [table.first["config"].get("TEST.FIRST") or None, table.first["clean"]["n"]]
        attacks = [{}, *table.first["attacks"]]  # the clean figure has none
        for row in table.rows:
            shots = UNKNOWN if row.shots is None else row.shots
            name = [row.trainer, row.variant, shots, row.trained_with]
            name.append(_text(row, "prompt_parameters"))
            for (heading, signature), attack in zip(table.figures, attacks, strict=True):
                mean, half = statistics.mean_interval(row.accuracies(signature))
                rows.append(
                    [*fixed, *name, heading, *(attack.get(f) for f in _THREAT), f"{mean:.6g}"]
                    + ["" if half is None else f"{half:.6g}"]
                    + [" ".join(map(str, row.distinct("seed"))), source_of(row.runs[0].record)]
                    + [name_of(table.first), table.first.get("data_sha256")]
                )
    return csv_text(rows)
