"""Figures that papers have published, to read ours against.

Only figures whose setting is known well enough to say what they are. The numbers of the papers'
tables were not noted with them; ``setting`` says where each stands. A figure stands in one row
with ours only where backbone, data, shots, training and attack are the same; all others are
tables of their own, which say that they do not compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..prompting.templates import template_for
from ..records import attack_signature
from .joins import SHORT, Join
from .layouts import MODEL, cell, figures_of, model_cells, title
from .sheets import MISSING, Block, Column, Sheet
from .tables import Row, Table, defaults, source_of


@dataclass(frozen=True)
class Published:
    """A table of a paper: ``rows`` are texts and percentages."""

    title: str
    source: str
    setting: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[str | float, ...], ...]

    @property
    def sheet(self) -> Sheet:
        """The table as it stands alone."""
        rows = [[v if isinstance(v, str) else f"{v:.1f}" for v in row] for row in self.rows]
        if any(round(v, 1) != v for row in self.rows for v in row if isinstance(v, float)):
            rows = [[v if isinstance(v, str) else f"{v:.2f}" for v in row] for row in self.rows]
        facts = [
            f"source: {self.source}",
            *self.setting,
            "copied from the paper, not measured here; compare with ours only where backbone, "
            "data, shots, training and threat model are the same",
        ]
        return Sheet(f"Published: {self.title}", [Block(list(self.columns), rows)], facts)


# --- AdvPT ----------------------------------------------------------------------------------------

_ADVPT_SOURCE = "AdvPT, arXiv 2311.11261 (ECCV 2024)"
_ADVPT_SETS = (
    "OxfordFlowers",
    "OxfordPets",
    "Food101",
    "SUN397",
    "DescribableTextures",
    "EuroSAT",
    "UCF101",
)
_ADVPT_COLUMNS = (
    Column("prompt", left=True),
    Column("test", left=True),
    *(Column(SHORT[n]) for n in _ADVPT_SETS),
)
_CLEAN, _PGD, _RAP = "clean", "transfer PGD-40 16/255", "black-box RAP 16/255"
_ADVPT = {  # backbone -> trainer -> test -> figures in the order of _ADVPT_SETS
    "ViT-B/16": {
        "ZeroshotCLIP": {
            _CLEAN: (71.4, 89.1, 86.1, 62.6, 44.4, 47.8, 66.7),
            _PGD: (6.4, 24.4, 14.0, 14.7, 11.1, 22.2, 9.1),
            _RAP: (60.7, 79.9, 68.3, 55.4, 33.5, 19.2, 56.4),
        },
        "AdvPT": {
            _CLEAN: (87.6, 91.3, 84.4, 70.7, 67.9, 68.1, 77.0),
            _PGD: (37.4, 41.9, 38.8, 35.7, 39.7, 55.4, 27.2),
            _RAP: (79.0, 81.8, 68.7, 60.0, 50.5, 40.6, 66.0),
        },
    },
    "ViT-L/14": {
        "ZeroshotCLIP": {
            _CLEAN: (79.3, 93.6, 91.0, 67.6, 53.1, 58.1, 74.2),
            _PGD: (20.1, 50.3, 34.3, 27.9, 20.7, 23.3, 33.9),
            _RAP: (70.6, 88.2, 81.9, 62.5, 42.5, 42.3, 67.3),
        },
        "AdvPT": {
            _CLEAN: (97.6, 92.9, 90.9, 76.4, 72.8, 79.2, 86.5),
            _PGD: (56.0, 68.7, 54.0, 44.0, 42.0, 62.2, 47.9),
            _RAP: (94.1, 90.4, 82.7, 70.3, 62.4, 50.8, 78.7),
        },
    },
}
_ADVPT_SETTING = (
    "tuned on the whole training split, 100 epochs, on a bank of PGD-10 images, eps 8/255",
    "transfer PGD-40: Linf, eps 16/255, KL of the image embeddings, the learned prompt unknown to "
    "the attacker; the authors' code starts one-sided, in [0, eps]",
    "black-box RAP: Linf, eps 16/255, 400 iterations, step 2/255, on a ResNet-50 surrogate",
)
_NAMES = {"ZeroshotCLIP": "hand-made", "AdvPT": "AdvPT"}


def _advpt(backbone: str) -> Published:
    rows = [
        (_NAMES[trainer], test, *figures)
        for trainer, tests in _ADVPT[backbone].items()
        for test, figures in tests.items()
    ]
    return Published(
        f"AdvPT against the hand-made prompt, {backbone}",
        f"{_ADVPT_SOURCE}, main results, backbone {backbone}",
        _ADVPT_SETTING,
        _ADVPT_COLUMNS,
        tuple(rows),
    )


_DEFENDED = Published(
    "AdvPT behind input defences, ViT-B/16",
    f"{_ADVPT_SOURCE}, results with defences, backbone ViT-B/16",
    (
        "mean over the 7 data sets of the table above and ImageNet (1,000 test images)",
        _ADVPT_SETTING[1],
    ),
    (Column("defence in front", left=True), Column("hand-made", _PGD), Column("AdvPT", _PGD)),
    (
        ("none", 13.6, 37.0),
        ("super-resolution", 35.6, 62.1),
        ("DiffPure", 56.3, 69.6),
        ("rescale", 58.8, 74.5),
    ),
)

# --- others ---------------------------------------------------------------------------------------

_FAP = Published(
    "base-to-new, 16 shots, ViT-B/32",
    "FAP, arXiv 2403.14774 (NeurIPS 2024), base-to-new generalisation, backbone ViT-B/32",
    ("averages over the paper's data sets; adversarial: Linf, eps 1/255",),
    (
        Column("method", left=True),
        Column("natural", "base"),
        Column("adversarial", "base"),
        Column("natural", "new"),
        Column("adversarial", "new"),
    ),
    (
        ("AdvVLP", 58.95, 32.37, 46.92, 21.61),
        ("AdvMaPLe", 60.38, 30.69, 46.18, 20.25),
        ("FAP", 70.52, 38.05, 49.58, 21.86),
    ),
)
_NAP = Published(
    "NAP-Tuning's gain under AutoAttack over the strongest baseline, in points",
    "NAP-Tuning, arXiv 2506.12706, abstract",
    ("versions 1 and 2 of the paper; the abstract names the backbones, no data set",),
    (Column("version", left=True), Column("ViT-B/16"), Column("ViT-B/32")),
    (("1", 33.5, 33.0), ("2", 32.3, 31.3)),
)
PUBLISHED = (_advpt("ViT-B/16"), _advpt("ViT-L/14"), _DEFENDED, _FAP, _NAP)


# --- beside ours ----------------------------------------------------------------------------------

_UNSAID = {"drop": False, "prec": "fp32", "kwargs": {}, "defence": ""}  # where an attack has none
_SAME_ATTACK = {
    "name": "pgd",
    "objective": "embedding_kl",
    "target": "embedding",
    "eps": "16/255",
    "alpha": "0.5/255",
    "steps": 40,
    "restarts": 1,
    "start": "one_sided",
    "norm": "linf",
}
_SAME_BANK = _SAME_ATTACK | {"eps": "8/255", "alpha": "1/255", "steps": 10}
_SAME_TEST = {
    "DEFENCE.NAME": "",
    "MODEL.INIT_WEIGHTS": "",
    "TEST.SPLIT": "test",
    "INPUT.INTERPOLATION": "bicubic",
}
_SAME_TUNING = {
    "TRAINER.ADVPT.N_CTX": 32,
    "TRAINER.ADVPT.CTX_INIT": "",
    "TRAINER.ADVPT.CSC": False,
    "TRAINER.ADVPT.CLASS_TOKEN_POSITION": "end",
    "TRAINER.ADVERSARIAL.PREC": "fp32",
    "TRAINER.ADVPT.VIEWS": 1,
    "TEST.FINAL_MODEL": "last_step",
    "DATALOADER.TRAIN_X.BATCH_SIZE": 32,
    "OPTIM.NAME": "sgd",
    "OPTIM.MOMENTUM": 0.9,
    "OPTIM.WEIGHT_DECAY": 5e-4,
    "OPTIM.SGD_DAMPNING": 0,
    "OPTIM.SGD_NESTEROV": False,
    "OPTIM.STAGED_LR": False,
    "OPTIM.LR_SCHEDULER": "cosine",
    "OPTIM.WARMUP_EPOCH": 1,
    "OPTIM.WARMUP_TYPE": "constant",
    "OPTIM.WARMUP_CONS_LR": 1e-5,
}
_LR = {"ViT-B/16": 0.005, "ViT-L/14": 0.002}


def _same_attack(attack: Mapping | None, wanted: Mapping) -> bool:
    """Tell whether two attacks are one; a field that we do not know makes another one."""
    return attack is not None and (
        attack_signature(_UNSAID | attack) == attack_signature(_UNSAID | wanted)
    )


def _same_settings(config: Mapping, wanted: Mapping) -> bool:
    config = defaults() | config
    return all(config.get(key) == value for key, value in wanted.items())


def _same_test(record: Mapping) -> bool:
    """Tell whether a record tests on the paper's images and classes, as the paper does."""
    config, dataset = record["config"], record["dataset"]
    part = record["subset"] or config.get("TEST.FIRST")
    template = config.get("DATASET.TEMPLATE") or template_for(dataset)
    return (
        dataset in _ADVPT_SETS
        and record["split"] == "all"
        and not part
        and template == template_for(dataset)
        and _same_settings(config, _SAME_TEST)
    )


def _same_training(record: Mapping) -> bool:
    """Tell whether a record's prompts were trained as the paper's."""
    wanted = _SAME_TUNING | {"OPTIM.LR": _LR.get(record["backbone"])}
    return (
        (record["shots"], record["epochs"], source_of(record)) == (-1, 100, None)
        and _same_attack(record["train_threat"], _SAME_BANK)
        and _same_settings(record["config"], wanted)
    )


def published_figure(row: Row, attack: dict | None) -> float | None:
    """Return the paper's figure for a row of ours; None unless every fact we know is the same."""
    record = next(iter(row.runs.values()))  # its runs differ in their seeds alone
    by_trainer = _ADVPT.get(record["backbone"], {})
    if row.trainer not in by_trainer or not _same_test(record):
        return None
    if row.trainer == "AdvPT" and not _same_training(record):
        return None
    if attack is not None and not _same_attack(attack, _SAME_ATTACK):
        return None
    test = _CLEAN if attack is None else _PGD
    return by_trainer[row.trainer][test][_ADVPT_SETS.index(record["dataset"])]


def beside(table: Table) -> Sheet | None:
    """Return ours and the paper's figures side by side where the setting is one; else None."""
    attacks = [None, *table.attacks]
    found = [
        (
            name,
            signature,
            {row.identity: published_figure(row, attack) for row in table.rows},
        )
        for (name, signature), attack in zip(figures_of(table), attacks, strict=True)
    ]
    found = [entry for entry in found if any(v is not None for v in entry[2].values())]
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
    facts = [f"published: {_ADVPT_SOURCE}, main results", *_ADVPT_SETTING[:2]]
    return Sheet(f"Beside the paper: {title(table)}", [Block(columns, cells)], facts)


def published_sheets(items: Iterable[Table | Join]) -> list[Sheet]:
    """Return what stands beside our tables: the same settings first, then the papers' tables."""
    same = [beside(item) for item in items if isinstance(item, Table)]
    return [sheet for sheet in same if sheet] + [table.sheet for table in PUBLISHED]
