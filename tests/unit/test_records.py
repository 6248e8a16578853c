"""Records: every field is checked, writing is atomic, nothing found is passed over."""

import copy
import json
import os

import pytest
from make_records import TRANSFER, WHITE_BOX, make, outcome
from yacs.config import CfgNode

from advprompt import records
from advprompt.utils.errors import UserError
from advprompt.utils.statistics import harmonic_mean, mean_interval


def put(record, path, value):
    """Return a copy of ``record`` with ``value`` at a path such as ``attacks.0.eps``."""
    record = copy.deepcopy(record)
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    node = record
    for key in parents:
        node = node[key]
    node[last] = value
    return record


WRONG = {  # a path in a record -> values that it may not have
    "schema": [True],
    "status": ["done"],
    "trainer": ["", 3],
    "paper": [1],
    "dataset": [None],
    "protocol": ["fewshot"],
    "split": ["half"],
    "shots": [-2, 1.0],
    "seed": [-2, True],
    "backbone": [None],
    "weights_sha256": ["abc", "AB" * 32],
    "prompt_parameters": [-1],
    "classes": [0],
    "train_threat": ["PGD", {}],
    "train_threat.eps": [8],
    "epochs": [None],
    "subset": [0],
    "seconds": [3.0, {"eval": float("nan")}],
    "seconds.train": [-1],
    "device": [""],
    "clean": [None],
    "clean.n": [0],
    "clean.correct": [101, -1],
    "attacks": [{}],
    "config": [[], {"OPTIM.LR": float("inf")}],
    "versions": [{"torch": 2}],
    "git_commit": [""],
    "created": ["yesterday", "2024-05-01T10:00:00"],
    "attacks.1.correct": [81],
    "attacks.0": [5, TRANSFER | outcome(40) | {"momentum": float("nan")}],
    "attacks.0.name": [None],
    "attacks.0.objective": ["l2"],
    "attacks.0.target": ["transfer"],
    "attacks.0.eps": ["0.0627", "256/255", "x/255"],
    "attacks.0.alpha": [2],
    "attacks.0.steps": [-1],
    "attacks.0.restarts": [0],
    "attacks.0.start": [0],
    "attacks.0.n": [99],
    "attacks.0.seconds": [None],
    "attacks.0.checks": [{}],
    "attacks.0.checks.in_range": [1],
    "attacks.0.warnings": ["none"],
    "attacks.0.checks.max_linf": [16 / 255 + 1.1e-5],
    "attacks.0.checks.zero_grad_share": [1.01, -0.01],
    "attacks.0.checks.loss_rises": ["yes", 1.01],
}
RIGHT = {  # the bounds themselves
    "shots": [-1, 1],
    "seed": [-1],
    "prompt_parameters": [0],
    "classes": [1],
    "epochs": [0],
    "subset": [1, None],
    "seconds.train": [0],
    "clean.correct": [80, 100],
    "attacks.1.correct": [0, 80],
    "attacks.1.eps": ["255/255", ".5e1/255", "4./255"],
    "attacks.1.alpha": ["25500/255", None],
    "attacks.0.steps": [0],
    "attacks.0.restarts": [1],
    "attacks.0.seconds": [0],
    "attacks.0.checks.max_linf": [0, 16 / 255 + 0.9e-5],
    "attacks.0.checks.zero_grad_share": [0, 1],
    "attacks.0.checks.loss_rises": [False, 0.0, 1.0],
}


@pytest.mark.parametrize("path, value", [(p, v) for p, values in RIGHT.items() for v in values])
def test_bounds_of_fields_are_in_range(path, value):
    changed = put(make(), path, value)
    assert records.validate_record(changed) == changed


@pytest.mark.parametrize(("eps", "fine"), [("25500/255", True), ("25501/255", False)])
def test_a_radius_in_l2_may_exceed_the_pixels_range(eps, fine):
    record = put(put(make(), "attacks.0.norm", "l2"), "attacks.0.eps", eps)
    if fine:
        assert records.validate_record(record) == record
        return
    with pytest.raises(UserError, match="eps"):
        records.validate_record(record)


SAID = {
    "classes": "expected an integer of at least 1;",
    "seconds.train": "expected a number of at least 0;",
    "attacks.0.checks.zero_grad_share": "expected a number from 0 to 1;",
}


@pytest.mark.parametrize("path, value", [(p, v) for p, values in WRONG.items() for v in values])
def test_wrong_field_is_named(path, value):
    field = path.replace("attacks.0", "attacks[0]").replace("attacks.1", "attacks[1]")
    with pytest.raises(UserError) as caught:
        records.validate_record(put(make(), path, value), "run/record.json")
    assert "'run/record.json'" in str(caught.value)
    assert f"'{field}" in str(caught.value) and SAID.get(path, "") in str(caught.value)


@pytest.mark.parametrize("field", sorted(set(make()) - {"source", "processes"}))
def test_missing_field_is_named(field):
    record = make()
    del record[field]
    with pytest.raises(UserError, match=f"'{field}' is missing"):
        records.validate_record(record)


def test_source_came_later(tmp_path):
    old = make()
    del old["source"]
    path = records.write_record(tmp_path, old)
    assert "source" not in records.read_record(path)
    assert make(source="ImageNet")["source"] == "ImageNet" and make()["source"] is None
    with pytest.raises(UserError, match="'source' is 3, expected a non-empty string or null"):
        records.validate_record(old | {"source": 3})


def test_an_unknown_training_is_null_in_every_field():
    made = make(shots=None, epochs=None, train_threat=None)
    assert made["shots"] is made["epochs"] is made["source"] is None
    whole = {"shots": None, "epochs": None, "train_threat": None}
    trained = {"name": "x", "split": "base", "classes": 5, "data_sha256": None, "set_sha256": None}
    for key, value in {
        "epochs": 5,
        "train_threat": TRANSFER,
        "source": "x",
        "trained": trained,
    }.items():
        with pytest.raises(UserError, match=f"'{key}'.*null where shots are null"):
            make(**whole | {key: value})
    with pytest.raises(UserError, match="'epochs' is None.*where shots are known"):
        make(epochs=None)
    assert make(trained=trained)["trained"] == trained
    for key, value in {"split": "half", "classes": 0, "data_sha256": "ab", "name": ""}.items():
        with pytest.raises(UserError, match=f"'trained.{key}'"):
            make(trained=trained | {key: value})
    for key in ("data_sha256", "set_sha256"):
        with pytest.raises(UserError, match=f"'{key}'"):
            make(**{key: "ab"})


def test_unknown_field_offers_the_nearest():
    with pytest.raises(UserError, match="unknown field 'seeds'.*seed"):
        records.validate_record(make() | {"seeds": 3})


def test_the_same_attack_twice_is_refused():
    twice = [TRANSFER | outcome(40), TRANSFER | outcome(30)]
    with pytest.raises(UserError, match=r"attacks\[1\]"):
        make(attacks=twice)
    make(attacks=[TRANSFER | outcome(40), TRANSFER | {"momentum": 0.9} | outcome(30)])


def test_a_running_record_may_wait_for_its_figures():
    record = make(status="running", clean=None, attacks=[])
    with pytest.raises(UserError, match="clean"):
        records.validate_record(record | {"status": "completed"})
    with pytest.raises(UserError, match="shots"):  # which a zero-shot model has not
        make(protocol="zero_shot", shots=16)


def test_write_and_read_back(tmp_path):
    record = make()
    path = records.write_record(tmp_path / "run", record)
    assert path == tmp_path / "run" / "record.json"
    assert records.read_record(path) == record
    assert records.completed_record(tmp_path / "run") == record
    assert os.listdir(tmp_path / "run") == ["record.json"]


def test_an_invalid_record_leaves_the_old_file(tmp_path):
    path = records.write_record(tmp_path, make())
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"record\.json"):
        records.write_record(tmp_path, put(make(), "clean.correct", 101))
    assert path.read_bytes() == before


def test_only_a_completed_record_counts_as_done(tmp_path):
    assert records.completed_record(tmp_path) is None
    records.write_record(tmp_path, make(status="running"))
    assert records.completed_record(tmp_path) is None
    (tmp_path / "record.json").write_text('{"schema": 1, "sta')
    with pytest.raises(UserError, match="not valid JSON"):
        records.completed_record(tmp_path)


def test_load_lists_whatever_it_cannot_use(tmp_path):
    records.write_record(tmp_path / "good" / "seed1", make())
    records.write_record(tmp_path / "cut", make(status="running", clean=None, attacks=[]))
    contents = {"torn": '{"schema": 1', "array": "[]", "wrong": put(make(), "seed", -2)}
    contents |= {"older": make() | {"schema": 0}, "nan": '{"schema": NaN}'}
    contents["deep"] = json.dumps(make()).replace(
        '"train":', '"x": ' + "[" * 900 + "]" * 900 + ', "train":'
    )
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name / "record.json").write_text(text)
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "record.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "record.json").symlink_to(tmp_path / "nowhere")

    found = records.load_records(tmp_path)
    assert [p.parent.name for p in found.records] == ["seed1"]
    kinds = {problem.path.parent.name: problem.kind for problem in found.problems}
    names = ("torn", "binary", "gone", "array", "nan", "deep")
    unreadable = dict.fromkeys(names, "unreadable")
    others = {"older": "foreign schema", "cut": "unfinished", "wrong": "invalid"}
    assert kinds == unreadable | others
    assert all(str(problem.path) in problem.text for problem in found.problems)


def test_load_follows_links_and_counts_a_file_once(tmp_path):
    records.write_record(tmp_path / "disk" / "run", make())
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "output")
    assert len(records.load_records(tmp_path / "output").records) == 1
    everything = records.load_records(tmp_path / "disk", tmp_path, tmp_path / "output")
    assert len(everything.records) == 1
    file = tmp_path / "disk" / "run" / "record.json"
    assert list(records.load_records(file, file, tmp_path).records) == [file]
    with pytest.raises(UserError, match="does not exist"):
        records.load_records(tmp_path / "absent")


def test_what_a_new_record_is_not_given():
    names = ("trainer", "dataset", "protocol", "shots", "seed", "backbone", "weights_sha256")
    given = {key: make()[key] for key in (*names, "prompt_parameters", "classes")}
    record = records.new_record(config={}, subset=0, seconds={"bank": 2.0}, **given)
    usual = {"status": "running", "split": "all", "epochs": 0, "processes": 1, "attacks": []}
    usual |= {"seconds": {"train": 0, "bank": 2, "eval": 0}}
    assert {key: record[key] for key in usual} == usual
    for key in ("paper", "source", "train_threat", "clean", "subset"):
        assert record[key] is None, key


def test_flat_config():
    cfg = CfgNode({"OPTIM": {"LR": 0.002, "STEPSIZE": (1, 2)}, "SEED": 0, "EMPTY": {}})
    cfg.ATTACK = CfgNode({"LIST": [{"EPS": "4"}]})
    flat = records.flat_config(cfg)
    values = {"OPTIM.LR": 0.002, "OPTIM.STEPSIZE": [1, 2], "SEED": 0}
    assert flat == values | {"ATTACK.LIST": [{"EPS": "4"}]}
    assert records.flat_config(flat) == flat
    assert records.flat_config({"x": float("inf")}) == {"x": "inf"}


def test_signature_ignores_the_outcome_and_sees_everything_else():
    base = records.attack_signature(WHITE_BOX)
    assert records.attack_signature(WHITE_BOX | outcome(3)) == base
    changed = {"steps": 20, "eps": "4/255", "alpha": "2/255", "start": "zero", "restarts": 2}
    changed |= {"objective": "kl", "target": "frozen_prompt", "norm": "l2", "momentum": 1.0}
    for key, value in changed.items():
        assert records.attack_signature(WHITE_BOX | {key: value}) != base, key


def test_environment_says_what_ran():
    found = records.environment("cpu")
    packages = {"python", "torch", "torchvision", "open_clip", "numpy", "advprompt"}
    assert packages == set(found["versions"])
    assert "not installed" not in found["versions"]["torch"]
    assert found["device"].split(" x CPU ")[0].isdigit()
    commit = found["git_commit"]
    assert commit is None or len(commit.removesuffix("-dirty")) == 40


def test_interval_over_seeds():
    assert mean_interval([50.0]) == (50.0, None)
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / 3**0.5, rel=1e-4)
    assert mean_interval([7.0] * 5) == (7.0, 0.0)


@pytest.mark.parametrize("a, b, mean", [(50, 50, 50), (80, 20, 32), (0, 90, 0), (0, 0, 0)])
def test_harmonic_mean(a, b, mean):
    assert harmonic_mean(a, b) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("attack", "before", "expected"),
    [
        ({}, {}, True),
        ({"eps": "4/255"}, {"eps": "2/255"}, True),
        ({}, {"eps": "2/255"}, False),  # a larger ball breaks more
        ({}, {"eps": None}, False),
        ({"name": "pgd"}, {}, False),
        *(({}, {key: "other"}, False) for key in ("target", "norm", "defence")),
    ],
)
def test_autoattack_starts_from_attacks_of_its_kind(attack, before, expected):
    auto = WHITE_BOX | {"name": "autoattack", "defence": "jpeg"} | attack
    assert records.starts_from(auto, WHITE_BOX | {"defence": "jpeg"} | before) is expected
