"""Merging of config files and overrides, and the claim on a run's folder."""

import pytest
from dassl.config import get_cfg_default
from yacs.config import CfgNode

import advprompt
from advprompt import records
from advprompt.config import merging
from advprompt.engine import runs
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
        (["STEPS", "1.5"], ["STEPS", "1.5", "int"]),
        (["STEPS", "True"], ["STEPS", "True"]),
        (["LR", "fast"], ["LR", "'fast'", "float"]),
        (["FLAG", "1"], ["FLAG", "bool"]),
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
    with pytest.raises(UserError, match="no valid yaml"):
        merging.merge_file(cfg, path)
    path.write_text("- INNER\n")
    with pytest.raises(UserError, match="holds no keys"):
        merging.merge_file(cfg, path)
    with pytest.raises(UserError, match="does not exist.*a.yaml"):
        merging.merge_file(cfg, tmp_path / "b.yaml")


def test_a_folder_belongs_to_one_configuration(tmp_path):
    cfg = node()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.STEPS = 5
    cfg.TRAINER = CfgNode({"NAME": "AdvPT"})
    assert runs.is_done(cfg) is False  # asking takes nothing
    cfg.STEPS = 3
    assert runs.is_done(cfg) is False
    runs.claim(cfg)
    assert runs.is_done(cfg) is False  # unfinished: resumes
    with pytest.raises(UserError, match="load_epoch = None, this one has 2"):
        runs.is_done(cfg, load_epoch=2)
    cfg.STEPS = 4
    with pytest.raises(UserError, match="STEPS = 3, this one has 4"):
        runs.is_done(cfg)
    cfg.STEPS, cfg.LATER = 3, "a key of a later version"
    assert runs.is_done(cfg) is False
    cfg.TRAINER.NAME = "advprompt.AdvPT"  # its name where a fork has an AdvPT of its own
    assert runs.is_done(cfg) is False
    (tmp_path / "moved").mkdir()
    (tmp_path / "run" / "config.json").rename(tmp_path / "moved" / "config.json")
    cfg.OUTPUT_DIR = str(tmp_path / "moved")  # where it lies does not matter
    assert runs.is_done(cfg) is False


@pytest.fixture
def finished(tmp_path):
    """A run folder whose record and configuration lack the keys of a later version."""
    from make_records import make

    cfg = get_cfg_default()
    advprompt.extend_cfg(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    old = {k: v for k, v in records.flat_config(cfg).items() if k not in LATER}
    io.write_json(tmp_path / "run" / runs.CONFIG_FILE, old)
    records.write_record(tmp_path / "run", make(config=old))
    return cfg


LATER = ("ATTACK.TEST.PREC", "TEST.FIRST")


@pytest.mark.parametrize(("key", "value"), [("ATTACK.TEST.PREC", "bf16"), ("TEST.FIRST", 5000)])
def test_a_key_that_came_later_had_its_default(finished, key, value):
    assert runs.is_done(finished)
    merging.merge(finished, key, value, "here")
    with pytest.raises(UserError, match=f"{key} = .*, this one has {value!r}"):
        runs.is_done(finished)


def test_only_the_same_test_of_the_final_model_is_copied(finished, tmp_path):
    run, cfg = tmp_path / "run", finished.clone()
    cfg.OUTPUT_DIR, cfg.TEST.PROTOCOL = str(tmp_path / "xd"), "xd"
    copy = runs.record_of_same_test(cfg, str(run))
    assert (copy["protocol"], copy["config"]["TEST.PROTOCOL"]) == ("xd", "xd")
    measured = records.read_record(run / "record.json")["config"]
    changed = {k for k, v in copy["config"].items() if measured.get(k) != v}
    assert changed == {"TEST.PROTOCOL", "OUTPUT_DIR"} and set(measured) <= set(copy["config"])
    cfg.ATTACK.TEST.PREC = "bf16"
    assert runs.record_of_same_test(cfg, str(run)) is None
    cfg.ATTACK.TEST.PREC = "fp32"

    again = run / runs.RETESTS / "a_epoch5"  # the only one left is of another epoch
    again.mkdir(parents=True)
    (run / "record.json").rename(again / "record.json")
    tested = {"eval_only": True, "model_dir": str(run), "load_epoch": 5}
    stored = io.read_json(run / runs.CONFIG_FILE)
    io.write_json(again / runs.CONFIG_FILE, stored | tested)
    assert runs.record_of_same_test(cfg, str(run)) is None
    io.write_json(again / runs.CONFIG_FILE, stored | tested | {"load_epoch": None})
    assert runs.record_of_same_test(cfg, str(run))["source"] == copy["source"]
    io.write_json(
        again / runs.CONFIG_FILE, stored | tested | {"load_epoch": None, "model_dir": "/b"}
    )
    assert runs.record_of_same_test(cfg, str(run)) is None


def test_a_file_may_write_tuples_as_coop_does(tmp_path):
    path, cfg = tmp_path / "coop.yaml", node()
    path.write_text("SIZE: (224, 224)\nLR: 1e-3\n")
    merging.merge_file(cfg, path)
    assert cfg.SIZE == (224, 224) and cfg.LR == 0.001
    path.write_text("SIZE: (224\n")
    with pytest.raises(UserError, match="expected tuple"):
        merging.merge_file(cfg, path)
