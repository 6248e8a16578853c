"""Published figures: beside ours where the setting is one, apart and labelled where it is not."""

import pytest
from dassl.config import get_cfg_default
from make_records import BANK, TRANSFER, WHITE_BOX, listed, make, outcome, write, zero_shot

from advprompt import extend_cfg, records
from advprompt.prompting.templates import TEMPLATES
from advprompt.report import published
from advprompt.report import render as report
from advprompt.report.tables import build_tables
from tests.conftest import REPO


def shipped(trainer):
    """The flat settings of a shipped configuration."""
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_file(REPO / f"configs/trainers/{trainer}/vit_b16.yaml")
    return records.flat_config(cfg)


CONFIG = shipped("AdvPT")
SAME = {
    "dataset": "EuroSAT",
    "backbone": "ViT-B/16",
    "shots": -1,
    "epochs": 100,
    "train_threat": BANK | {"alpha": "1/255", "start": "one_sided"},
    "config": CONFIG,
    "attacks": [
        TRANSFER | {"alpha": "0.5/255", "start": "one_sided"} | outcome(50),
        WHITE_BOX | outcome(1),
    ],
}
UNTRAINED = {key: SAME[key] for key in ("dataset", "backbone", "attacks")}
UNTRAINED["config"] = shipped("ZeroshotCLIP")


def beside(*made):
    (table,) = build_tables(listed(*made))
    return published.side_by_side(table)


def test_the_same_setting_stands_in_one_row():
    sheet = beside(make(**SAME), make(**SAME | {"trainer": "APD"}), zero_shot(**UNTRAINED))
    (block,) = sheet.blocks
    assert [row[0] for row in block.rows] == ["ZeroshotCLIP", "AdvPT"]
    figures = ("clean", "transfer PGD-40 16/255 (embedding-KL)")
    headings = [column.heading for column in block.columns[3:]]
    assert headings == [f"{name} {whose}" for name in figures for whose in ("ours", "published")]
    assert block.rows[1][3:] == ["80.0", "68.1", "50.0", "55.4"]
    starts = ("published: AdvPT, arXiv", "tuned on the whole", "transfer PGD-40: Linf")
    assert len(sheet.facts) == 3 and all(map(str.startswith, sheet.facts, starts))


def test_ours_come_first_and_tables_of_several_tests_have_none():
    (table,) = build_tables(listed(make(**SAME)))
    titles = [sheet.title for sheet in published.published_sheets([table])]
    assert titles[0].startswith("Compared with the paper: EuroSAT")
    assert titles[1:] == [sheet.title for sheet in published.papers_sheets()]
    table.tests = {"base": table.first}
    assert [sheet.title for sheet in published.published_sheets([table])] == titles[1:]


def setting(key, value):
    return {"config": CONFIG | {key: value}}


TRAINING = {
    "eps": "4/255",
    "alpha": "2/255",
    "steps": 20,
    "target": "end_to_end",
    "norm": "l2",
    "start": "uniform",
    "restarts": 2,
    "drop": True,
    "objective": "kl",
    "prec": "bf16",
    "kwargs": {"decay": 1.0},
}
OTHER = [
    *({"backbone": name} for name in ("tiny", "file:ViT-B-16.pt")),
    *({"dataset": "Caltech101"}, {"shots": 16}, {"epochs": 50}, {"subset": 100}),
    *({"trainer": "CoOp"}, {"train_threat": None}),
    *({"source": source, "protocol": "xd"} for source in ("ImageNet", None)),
    *({"train_threat": SAME["train_threat"] | {key: TRAINING[key]}} for key in TRAINING),
]
TUNED = {
    "TRAINER.ADVPT.N_CTX": 16,
    "TRAINER.ADVPT.CSC": True,
    "TRAINER.ADVPT.VIEWS": 2,
    "TRAINER.ADVPT.CTX_INIT": "a photo of a",
    "TRAINER.ADVPT.CLASS_TOKEN_POSITION": "front",
    "TRAINER.ADVERSARIAL.PREC": "amp",
    "OPTIM.LR": 0.002,
    "OPTIM.NAME": "adamw",
    "OPTIM.MOMENTUM": 0.0,
    "OPTIM.WEIGHT_DECAY": 0.0,
    "OPTIM.LR_SCHEDULER": "single_step",
    "OPTIM.WARMUP_EPOCH": 0,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 64,
    "TEST.FINAL_MODEL": "best_val",
    "MODEL.INIT_WEIGHTS": "prompts.pth",
}
TESTED = {
    "DATASET.TEMPLATE": "a photo of a {}.",
    "DEFENCE.NAME": "jpeg",
    "TEST.FIRST": 1000,
    "INPUT.INTERPOLATION": "bilinear",
}
OTHER += [setting(key, value) for key, value in (TUNED | TESTED).items()]


@pytest.mark.parametrize("changes", OTHER)
def test_another_setting_never_does(changes):
    assert beside(make(**SAME)) and not beside(make(**SAME | changes))


@pytest.mark.parametrize("key", TESTED)
def test_nor_does_another_test_of_the_untrained_model(key):
    changes = {"config": UNTRAINED["config"] | {key: TESTED[key]}}
    assert beside(zero_shot(**UNTRAINED)) and not beside(zero_shot(**UNTRAINED | changes))


def test_what_older_records_lack_is_its_default():
    later = ("DEFENCE.", "DATASET.TEMPLATE", "TRAINER.ADVPT.")
    known = {key: value for key, value in CONFIG.items() if not key.startswith(later)}
    assert beside(make(**SAME | {"config": known}))
    assert beside(make(**SAME | setting("DATASET.TEMPLATE", TEMPLATES["EuroSAT"])))
    assert not beside(make(**SAME | {"config": {}}))  # Dassl's own optimiser


ATTACKS = {
    "start": "uniform",
    "alpha": "2/255",
    "steps": 100,
    "restarts": 2,
    "norm": "l2",
    "drop": True,
    "prec": "bf16",
    "defence": "jpeg, quality 75, unseen by the attack",
    "kwargs": {"decay": 1.0},
    "objective": "kl",
    "momentum": 1.0,
}


@pytest.mark.parametrize("key", ATTACKS)
def test_another_attack_leaves_the_clean_figure(key):
    attacks = [SAME["attacks"][0] | {key: ATTACKS[key]}]
    sheet = beside(make(**SAME | {"attacks": attacks}))
    assert [column.group for column in sheet.blocks[0].columns[3:]] == ["clean", "clean"]


@pytest.mark.parametrize("style", report.WRITERS)
def test_papers_tables_are_apart_and_say_so(style, tmp_path):
    root = write(tmp_path, make())
    plain, _ = report.render([root], style)
    text, _ = report.render([root], style, paper=True)
    assert "Published" not in plain and text.startswith(plain.rstrip())
    sheets = published.papers_sheets()
    assert text.count("Published: ") == len(sheets)
    assert text.count("copied from the paper, not measured here") == len(sheets)
    halves = [
        column.heading
        for s in sheets
        if "base-to-new," in s.title
        for column in s.blocks[0].columns
    ]
    assert halves[:3] == ["method", "base natural", "base adversarial"]
    assert "arXiv 2311.11261" in text and "70.52" in text and "37.4" in text
    for sheet in sheets:
        (block,) = sheet.blocks
        assert {len(row) for row in block.rows} == {len(block.columns)}
        assert sheet.facts[0].count("arXiv") == 1 and len(sheet.facts) > 2
