"""Merging of config files and overrides, and what a run folder holds."""

import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dassl.config import get_cfg_default
from make_records import make
from yacs.config import CfgNode

import advprompt
from advprompt import records
from advprompt.config import merging
from advprompt.engine import run_folder
from advprompt.utils import io
from advprompt.utils.errors import UserError


def node():
    return CfgNode(
        {
            "EPS": "8/255",
            "LR": 0.1,
            "STEPS": 3,
            "FLAG": False,
            "SIZE": (2, 2),
            "LIST": [],
            "NONE": None,
            "INNER": {"DEEP": 1},
            "OUTPUT_DIR": "x",
        }
    )


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("EPS", "4", "4"),
        ("EPS", "4/255", "4/255"),
        ("EPS", "0.5", "0.5"),
        ("LR", "1", 1.0),
        ("STEPS", "7", 7),
        ("FLAG", "True", True),
        ("SIZE", "[4,4]", (4, 4)),
        ("NONE", "5", 5),
        ("LIST", "[{'A': 1}]", [{"A": 1}]),
        ("INNER.DEEP", "2", 2),
    ],
)
def test_overrides_take_the_type_of_the_default(key, text, value):
    cfg = node()
    merging.merge_opts(cfg, [key, text])
    for part in key.split("."):
        cfg = cfg[part]
    assert cfg == value and type(cfg) is type(value)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["STEPS", "1.5"], ["STEPS", "1.5", "a whole number"]),
        (["STEPS", "True"], ["STEPS", "True"]),
        (["LR", "fast"], ["LR", "'fast'", "a number"]),
        (["FLAG", "1"], ["FLAG", "True or False"]),
        (["INNER", "1"], ["INNER"]),
        (["INNER.DEPP", "1"], ["INNER.DEPP", "INNER.DEEP"]),
        (["STEPS.MORE", "1"], ["STEPS.MORE"]),
        (["STEPS"], ["pairs", "STEPS"]),
    ],
)
def test_wrong_overrides_are_explained(opts, words):
    cfg = node()
    with pytest.raises(UserError) as error:
        merging.merge_opts(cfg, opts)
    assert all(word in str(error.value) for word in words)
    assert cfg == node()


def test_files_are_checked_like_overrides(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("INNER:\n  DEEP: 9\nEPS: 4\n")
    cfg = node()
    merging.merge_file(cfg, path)
    assert (cfg.INNER.DEEP, cfg.EPS) == (9, "4")
    path.write_text("INNER:\n  DEPP: 9\n")
    with pytest.raises(UserError, match="a.yaml.*unknown.*INNER.DEEP"):
        merging.merge_file(cfg, path)
    path.write_text("INNER: [\n")
    with pytest.raises(UserError, match="not valid yaml"):
        merging.merge_file(cfg, path)
    path.write_text("- INNER\n")
    with pytest.raises(UserError, match="holds no keys"):
        merging.merge_file(cfg, path)
    with pytest.raises(UserError, match="does not exist.*a.yaml"):
        merging.merge_file(cfg, tmp_path / "b.yaml")


def test_a_file_may_write_tuples_as_coop_does(tmp_path):
    path, cfg = tmp_path / "coop.yaml", node()
    path.write_text("SIZE: (224, 224)\nLR: 1e-3\n")
    merging.merge_file(cfg, path)
    assert cfg.SIZE == (224, 224) and cfg.LR == 0.001
    path.write_text("SIZE: (224\n")
    with pytest.raises(UserError, match="expected a list"):
        merging.merge_file(cfg, path)


# --- what a folder holds --------------------------------------------------------------------------


def settings(tmp_path, *opts, trainer="CoOp"):
    """A configuration of a run in ``tmp_path/run``."""
    cfg = get_cfg_default()
    advprompt.extend_cfg(cfg)
    cfg.OUTPUT_DIR, cfg.TRAINER.NAME = str(tmp_path / "run"), trainer
    merging.merge_opts(cfg, list(opts))
    return cfg


def trained(cfg):
    """Make the folder of ``cfg`` hold its finished training, without a test."""
    run = Path(cfg.OUTPUT_DIR)
    run_folder.claim(cfg, run_folder.look(cfg))
    checkpoint = run / "prompt_learner" / f"model.pth.tar-{cfg.OPTIM.MAX_EPOCH}"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    return run


def state(cfg, **asked):
    return run_folder.look(cfg, **asked).state


def test_a_folder_belongs_to_one_training(tmp_path):
    cfg = settings(tmp_path, "OPTIM.MAX_EPOCH", "3")
    assert state(cfg) == "train" and not (tmp_path / "run").exists()  # asking takes nothing
    run_folder.claim(cfg, run_folder.look(cfg))
    assert state(cfg) == "train"  # unfinished: resumes
    for key, value in {"OPTIM.MAX_EPOCH": "4", "TRAINER.COOP.N_CTX": "3", "SEED": "5"}.items():
        with pytest.raises(UserError, match=f"holds a run with {key} = .*, this one has {value}"):
            state(settings(tmp_path, "OPTIM.MAX_EPOCH", "3", key, value))
    test = {"eval_only": True, "model_dir": str(tmp_path), "load_epoch": 2}
    with pytest.raises(UserError, match="eval_only = None, this one has True"):
        state(cfg, **test)
    cfg.TRAINER.NAME = "advprompt.CoOp"  # its name where a fork has a CoOp of its own
    assert state(cfg) == "train"
    (tmp_path / "run").rename(tmp_path / "moved")
    cfg.OUTPUT_DIR = str(tmp_path / "moved")  # where it lies does not matter
    assert state(cfg) == "train"


@pytest.mark.parametrize(
    "opts",
    [
        ("TEST.SUBSET", "5"),
        ("ATTACK.TEST.EPS", "2"),
        ("DEFENCE.NAME", "jpeg"),
        ("TRAINER.CAPT.LAMBDA", "9"),  # of another trainer
        ("ATTACK.TRAIN.EPS", "9"),  # CoOp sees no attack
        ("DATALOADER.TEST.BATCH_SIZE", "7"),
    ],
)
def test_what_the_training_does_not_use_does_not_count(tmp_path, opts):
    trained(settings(tmp_path))
    assert state(settings(tmp_path, *opts)) == "test"


def test_what_is_trained_counts(tmp_path):
    for trainer, key in {"AdvPT": "ATTACK.TRAIN.STEPS", "AdvCoOp": "ATTACK.TRAIN.STEPS"}.items():
        cfg = settings(tmp_path / trainer, trainer=trainer)
        run_folder.claim(cfg, run_folder.look(cfg))
        with pytest.raises(UserError, match=key):
            state(settings(tmp_path / trainer, key, "9", trainer=trainer))
    zero = settings(tmp_path, trainer="ZeroshotCLIP")
    run_folder.claim(zero, run_folder.look(zero))
    opts = "OPTIM.LR", "0.5", "DATASET.NUM_SHOTS", "3", "ATTACK.TRAIN.STEPS", "7"
    assert state(settings(tmp_path, *opts, trainer="ZeroshotCLIP")) == "test"
    with pytest.raises(UserError, match="MODEL.BACKBONE.NAME"):
        state(settings(tmp_path, "MODEL.BACKBONE.NAME", "tiny", trainer="ZeroshotCLIP"))


def record_in(folder, cfg, **facts):
    """Write the record of the test of ``cfg`` as older versions did, with every setting beside."""
    flat = {k: v for k, v in records.flat_config(cfg).items() if k not in LATER}
    records.write_record(folder, make(config=flat))
    io.write_json(folder / run_folder.CONFIG_FILE, flat | facts)


LATER = ("ATTACK.TEST.PREC", "TEST.FIRST")  # keys of a later version than these records


@pytest.mark.parametrize("old", ["", "robustness/linf4"])
def test_records_of_older_versions_are_found(tmp_path, old):
    cfg = settings(tmp_path)
    run = trained(cfg)
    facts = {"eval_only": True, "model_dir": "/where/it/was", "load_epoch": None} if old else {}
    record_in(run / old, cfg, **facts)
    assert run_folder.look(cfg) == ("done", str(run), str(run / old))
    again = {"eval_only": True, "model_dir": str(run)}
    cfg.OUTPUT_DIR = ""
    assert run_folder.look(cfg, **again) == ("done", str(run), str(run / old))
    assert state(cfg, **again, load_epoch=2) == "test"  # of another model
    merging.merge_opts(cfg, ["TEST.PROTOCOL", "xd", "TEST.PICTURE", "1"])  # no other figures
    assert state(cfg, **again) == "done"
    for key, value in zip(LATER, ("bf16", "5000"), strict=True):  # which had their defaults
        changed = settings(tmp_path, key, value)
        assert state(changed) == "test"


def test_tests_have_names_of_their_own(tmp_path):
    run = trained(settings(tmp_path))
    record_in(run, settings(tmp_path))

    def place(*opts, **asked):
        cfg = settings(tmp_path, *opts)
        task = run_folder.look(cfg, **asked)
        run_folder.claim(cfg, task, **asked)
        return Path(task.record).relative_to(run).as_posix()

    assert place("TEST.SUBSET", "5") == "tests/SUBSET-5"
    assert place("ATTACK.TEST.EPS", "2", "ATTACK.TEST.STEPS", "3") == "tests/pgd3-linf-2.255"
    assert place("TEST.SUBSET", "6", test_name="mine") == "tests/mine"
    assert place("TEST.SUBSET", "6", test_name="mine") == "tests/mine"  # interrupted: resumes
    other = place("TEST.SUBSET", "7", test_name="mine")
    assert re.fullmatch("tests/mine-[0-9a-f]{8}", other)
    elsewhere = {"eval_only": True, "model_dir": str(run), "load_epoch": 2}
    name = place("OUTPUT_DIR", "", "DATASET.NAME", "EuroSAT", **elsewhere)
    assert name == "tests/EuroSAT_load_epoch-2"
    settings_of_test, tested = run_folder.stored(run / name)
    assert settings_of_test["DATASET.NAME"] == "EuroSAT"
    assert tested == elsewhere  # also where the run has been moved
    run.rename(tmp_path / "moved")
    moved = run_folder.stored(tmp_path / "moved" / name)[1]
    assert moved == elsewhere | {"model_dir": str(tmp_path / "moved")}


def test_a_finished_run_without_its_model_is_not_trained_again(tmp_path):
    run = trained(settings(tmp_path))
    record_in(run, settings(tmp_path))
    shutil.rmtree(run / "prompt_learner")
    assert state(settings(tmp_path)) == "done"
    with pytest.raises(UserError, match="its model .*prompt_learner' is gone"):
        state(settings(tmp_path, "TEST.SUBSET", "5"))


def test_a_test_needs_a_run(tmp_path):
    cfg = settings(tmp_path, "OUTPUT_DIR", "")
    with pytest.raises(UserError, match="neither --model-dir"):
        run_folder.look(cfg, eval_only=True)
    with pytest.raises(UserError, match="nowhere' does not exist"):
        run_folder.look(cfg, eval_only=True, model_dir=str(tmp_path / "nowhere"))
    trained(settings(tmp_path))
    cfg.TRAINER.NAME = "CAPT"
    with pytest.raises(UserError, match="TRAINER.NAME = 'CoOp', this one has 'CAPT'"):
        run_folder.look(cfg, eval_only=True, model_dir=str(tmp_path / "run"))


HOLD = """
import sys, time
import advprompt
from advprompt.engine import run_folder
with run_folder.locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_waits_and_says_for_whom(tmp_path, capsys):
    argv = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        held = (tmp_path / ".lock").read_text().strip()
        assert held == f"{other.pid}@{socket.gethostname()}"
        threading.Timer(0.3, other.stdin.close).start()
        with run_folder.locked(tmp_path), run_folder.locked(tmp_path):  # again: ours already
            assert other.wait(10) == 0
        assert f"'{tmp_path}' is in use by process {held}; waiting" in capsys.readouterr().out
    with run_folder.locked(tmp_path):
        assert capsys.readouterr().out == ""
