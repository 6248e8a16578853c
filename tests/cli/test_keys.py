"""The declared keys: impossible values of every key, in every entry point, are one answer."""

from __future__ import annotations

import json
from functools import partial

import pytest
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from yacs.config import CfgNode

import advprompt
from advprompt import naptuning
from advprompt.cli import robustness, sweep, train, transfer
from advprompt.cli.main import dispatch
from advprompt.config import keys, merging
from advprompt.config.declared import KEYS, Key
from advprompt.engine.trainer import register
from tests.conftest import only_error

keys.defaults()  # declares them all
FREE = [  # any text will do, until it is used
    name
    for name, key in KEYS.items()
    if isinstance(key.default, str) and not (key.choices or key.check)
]
HUGE = str(10**30)
OURS = {n: m for n, m in keys.METHODS.items() if "custom" not in m.__module__}


@pytest.fixture
def dry(tool, tmp_path, monkeypatch):
    """Call train.py's dry run: ``dry("KEY VALUE ...") -> (exit code, output, errors)``."""
    monkeypatch.chdir(tmp_path)

    def call(words, trainer="CoOp", config="CoOp/tiny"):
        start = f"--trainer {trainer} --dataset-config-file shapes --config-file {config}".split()
        words = words.split() if isinstance(words, str) else words
        found = tool(train.main, *start, "--output-dir", "out", "--dry-run", *words)
        assert not any(tmp_path.iterdir())  # nothing is written
        return found

    return call


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("OPTIM.LR -1", "is -1, expected a number from 0"),
        ("OPTIM.MOMENTUM -1", "from 0 to 1"),
        ("OPTIM.MAX_EPOCH -1", "a whole number from 1"),
        ("OPTIM.WARMUP_TYPE linnear", "Did you mean linear?"),
        ("OPTIM.SGD_NESTEROV True OPTIM.MOMENTUM 0.0", "a momentum above 0"),
        ("TEST.PROTOCOL zero_shot", "but CoOp is trained; leave it empty"),
        ("OPTIM.STAGED_LR True", "is True, expected False"),
        ("INPUT.INTERPOLATION lanczos", "'bilinear', 'bicubic', 'nearest'"),
        ("INPUT.SIZE (64,64,64)", "a list of 2, each entry a whole number"),
        ("INPUT.RRCROP_SCALE (0.5,0.1)", "the smaller one first"),
        ("INPUT.TRANSFORMS ['random_filp']", "Did you mean random_flip"),
        ("DATALOADER.TRAIN_X.SAMPLER Random", "Did you mean RandomSampler?"),
        ("DATALOADER.NUM_WORKERS -1", "from 0 to 1024"),
        ("TEST.EVALUATOR Class", "'Classification'"),
        ("TEST.PICTURE -1", "from 0 to 100"),
        ("TEST.PROBES -1", "from 0 to"),
        ("TEST.SUBSET True", "a whole number of 0 or more"),
        ("TRAIN.PRINT_FREQ 0", "from 1 to"),
        ("INPUT.TRANSFORMS ['cutout']", "expected a list, each entry one of"),
        ("ATTACK.TEST.LIST [5]", "keys and values such as {'EPS': 4}"),
        (["DATASET.TEMPLATE", "a {} in {season}"], "no other braces"),
        ("DATASET.FOLDER_NAME [1]", "is [1], expected text"),
        ("SEED -7", "from -1 to"),
        ("--seed -7", "SEED (--seed) is -7"),
        ("OPTIM.LR 1e999", "is inf, expected a number from 0"),
        ("OPTIM 5", "expected a key in it"),
        ("OPTIM.LRR 5", "Did you mean OPTIM.LR"),
        ("WEIGHTS 5", "configs --reference"),
        ("--config-file CoOp/tinny", "Did you mean CoOp/tiny"),
        ("MODEL.BACKBONE.NAME ViT-B/61", "backbone 'ViT-B/61' is unknown. Did you mean ViT-B/16"),
        ("DATASET.NAME Shape", "data set 'Shape' (DATASET.NAME) is unknown. Did you mean Shapes"),
        (f"--output-dir {'9' * 300}", "File name too long"),
        ("--attack-config-file linf99", "no threat model is called 'linf99'"),
    ],
)
def test_an_impossible_value_is_one_sentence(dry, words, said):
    code, _, err = dry(words)
    assert said in only_error(code, err) and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "possible"),
    [
        ("None", []),
        ("[[1]]", []),
        ("{'a': 1}", []),
        ("nan", FREE),
        ("-inf", FREE),
        (HUGE, FREE),
        ("no such thing", FREE),
    ],
)
def test_impossible_values_of_all_keys_are_one_answer(dry, value, possible):
    asked = [name for name in KEYS if name not in possible]
    assert len(asked) > 150
    code, _, err = dry([word for name in asked for word in (name, value)])
    assert code == 2 and "Traceback" not in err
    first, *lines = err.splitlines()
    assert first == f"error: {len(lines)} mistakes"
    named = {next(w for w in line.replace("'", "").split() if w in KEYS) for line in lines}
    assert not set(asked) - named


@pytest.mark.parametrize("name", OURS)
def test_defaults_are_accepted(name):
    cfg = get_cfg_default()
    advprompt.extend_cfg(cfg)
    cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME = name, "tiny"
    if name != "AdvPT":
        merging.merge_opts(cfg, ["ATTACK.THREAT", "linf1"])
    keys.check_cfg(cfg)
    for key in KEYS.values():
        assert key.read("a key", key.default) == key.default


def test_mistakes_of_files_and_words_are_one_answer(dry, tmp_path_factory):
    file = tmp_path_factory.mktemp("yaml") / "mine.yaml"
    file.write_text("OPTIM: {LR: fast, GAMMA: null}\nDATASET: {FOLDER_NAME: 2024.10}\n")
    code, _, err = dry(f"--config-file {file} SEED 1.5 ATTACK.TEST.EPS 0.02", "CoOpp")
    assert code == 2 and err.startswith("error: 6 mistakes\n")
    for text in (
        "OPTIM.LR in",
        "OPTIM.GAMMA in",
        "is 2024.1, expected text",
        "SEED is 1.5",
        "0.02",
    ):
        assert text in err
    assert "'CoOpp' (--trainer) is unknown. Did you mean CoOp" in err


def test_conflicts_are_looked_for_among_keys_that_are_right(dry):
    embedding = "ATTACK.TRAIN.TARGET embedding ATTACK.TEST.TARGET embedding"
    code, _, err = dry(embedding, "FAP", "FAP/tiny")
    assert code == 2 and err.startswith("error: 2 mistakes\n") and "FAP trains on attacks" in err
    code, _, err = dry("ATTACK.TRAIN.TARGET embeding", "FAP", "FAP/tiny")
    assert "Did you mean embedding?" in only_error(code, err) and "FAP" not in err


def test_text_stays_text(dry):
    start = "--trainer CoOp --dataset-config-file folder --config-file CoOp/tiny".split()
    more = "DATASET.FOLDER_NAME 2024.10 DATASET.CACHE_DIR 0x10 ATTACK.TEST.EPS 4".split()
    cfg = train.build_cfg([*start, *more])
    assert (cfg.DATASET.FOLDER_NAME, cfg.DATASET.CACHE_DIR) == ("2024.10", "0x10")
    assert cfg.ATTACK.TEST.EPS == "4"


def test_keys_that_only_a_fork_knows_are_left_alone():
    cfg = get_cfg_default()
    cfg.FORK = CfgNode({"A": None, "B": [], "C": 5})
    advprompt.extend_cfg(cfg)
    merging.merge_opts(cfg, ["FORK.A", "[0]", "FORK.B", "[1, 'a']", "FORK.C", HUGE])
    cfg.TRAINER.COOP.N_CTX, cfg.TRAINER.NAME = None, "ZeroshotCLIP"  # of another trainer
    cfg.MODEL.BACKBONE.NAME = "tiny"
    keys.check_cfg(cfg)
    assert (cfg.FORK.A, cfg.FORK.B, cfg.FORK.C) == ([0], [1, "a"], 10**30)


def test_a_trainer_that_a_fork_builds_checks_them_too():
    cfg = get_cfg_default()
    advprompt.extend_cfg(cfg)
    cfg.TRAINER.NAME, cfg.OPTIM.LR, cfg.TRAINER.COOP.N_CTX = "CoOp", -1, None
    with pytest.raises(advprompt.UserError, match="(?s)2 mistakes.*OPTIM.LR is -1.*N_CTX is None"):
        build_trainer(cfg)


def test_every_command_answers_alike(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = ["TEST.PICTURE", "-1", "OPTIM.LR", "None"]
    run = tmp_path / "run"
    run.mkdir()
    stored = {"TRAINER.NAME": "ZeroshotCLIP", "DATASET.NAME": "Shapes"}
    stored["MODEL.BACKBONE.NAME"] = "tiny"
    (run / "config.json").write_text(json.dumps(stored))
    out = f"--root {tmp_path} --output {tmp_path}/out --config-file tiny"
    threat = "--attack-config-file linf1 --opts"
    calls = {
        robustness.main: f"--model-dir {run} {threat}",
        transfer.main: f"{run} {tmp_path} {threat}",
        partial(sweep.main, dispatch): f"--trainers coop --datasets shapes {out} --opts",
        dispatch: "run coop main shapes 4 tiny",
    }
    for main, words in calls.items():
        code, _, err = tool(main, *words.split(), *wrong)
        assert code == 2 and err.count("error: 2 mistakes\n") == 1, err
        assert "TEST.PICTURE is -1" in err and "OPTIM.LR" in err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    words = f"sweep --trainers fap --datasets shapes {out} --dry-run --opts ATTACK.TRAIN.EPS 0"
    code, table, _ = tool(dispatch, *words.split())
    assert code == 2 and "refused" in table and "leaves them as they are" in table


def test_every_key_of_ours_says_what_it_means():
    nodes = ("ATTACK.", "DEFENCE.", *(f"TRAINER.{method.node}." for method in OURS.values()))
    assert not [name for name, key in KEYS.items() if name.startswith(nodes) and not key.about]


@pytest.mark.parametrize("paper", ["", " ", 2312])
def test_a_paper_that_no_record_takes_is_refused_at_once(paper):
    with pytest.raises(advprompt.UserError, match=f"paper = {paper!r}, expected the address"):
        register(type("Mine", (naptuning.NAPTuning,), {"paper": paper}))
    assert "Mine" not in keys.METHODS


def test_a_default_alone_is_a_key_of_its_type(monkeypatch):
    for name in ("RATE", "WORDS"):
        monkeypatch.setitem(KEYS, f"TRAINER.MINE.{name}", None)  # restored afterwards
    cfg = CfgNode()
    keys.add_defaults(cfg, "TRAINER.MINE", RATE=0.5, WORDS=Key(["a"], choices=("a", "b")))
    merging.merge_opts(cfg, ["TRAINER.MINE.RATE", "2"])
    assert repr(cfg.TRAINER.MINE.RATE) == "2.0" and cfg.TRAINER.MINE.WORDS == ["a"]
    with pytest.raises(advprompt.UserError, match="each entry one of: 'a', 'b', such as"):
        merging.merge_opts(cfg, ["TRAINER.MINE.WORDS", "['c']"])
