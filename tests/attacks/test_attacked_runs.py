"""Attacks in whole runs, from the config to the record."""

from __future__ import annotations

import json

import pytest

from advprompt.attacks import compare, spec
from advprompt.records import attack_signature, read_record
from tests.conftest import only_error

ENTRIES = [
    {"NAME": "fgsm"},
    {"NAME": "mi", "ALPHA": 2},
    {"NAME": "di", "KWARGS": {"probability": 0.7}},
    {"NAME": "mdi", "DROP": True, "ALPHA": 2},
    {"NORM": "l2", "EPS": "800/255", "ALPHA": "200/255"},
    {"NORM": "l2", "EPS": 1600, "ALPHA": 400, "NAME": "mi", "DROP": True},
    {"DROP": True},
    {"PREC": "bf16"},
    {"NAME": "torchattacks:PGD"},
    {"NAME": "torchattacks:cw", "KWARGS": {"c": 5}},
    {"NAME": "torchattacks:PGDL2", "NORM": "l2", "EPS": 800},
    {"NAME": "apgd", "STEPS": 5},
    {"NAME": "apgd-ce", "NORM": "l2", "EPS": 800, "STEPS": 5},
]
PROBES = {"probed", "noise_stronger", "large_eps_right", "gradient_differs", "rise_small"}


@pytest.fixture
def tested(run, white_box, tmp_path):
    """Train briefly and test under ``entries``; returns the record and the output."""

    def call(entries: list[dict], **keys):
        usual = {"EPS": 16, "ALPHA": 4, "STEPS": 5, "RESTARTS": 1}
        listed = repr(
            [usual | entry if "NAME" not in entry else {"EPS": 16} | entry for entry in entries]
        )
        code, out, err = run(white_box("AdvIVLP", ATTACK__TEST__LIST=listed, **keys))
        assert code == 0, err
        return read_record(tmp_path / "run" / "record.json"), out

    return call


def test_all_of_them_run_and_stay_apart(tested):
    pytest.importorskip("torchattacks")
    record, _ = tested(ENTRIES, TEST__PROBES=3)
    found = record["attacks"]
    for entry, result in zip(ENTRIES, found, strict=True):
        assert result["correct"] < record["clean"]["correct"], entry  # each breaks something
        checks, eps = result["checks"], result["eps"]
        assert checks["in_range"]
        if eps:
            limit = float(eps.removesuffix("/255")) / 255 + 1e-5
            far = checks.get("max_l2" if result["norm"] == "l2" else "max_linf", 0)
            assert 0 <= far <= limit, entry
    assert len({attack_signature(result) for result in found}) == len(found)
    cw = next(result for result in found if result["name"] == "torchattacks:CW")
    assert cw["eps"] is None and cw["checks"]["reached"]["l2"] > 0
    assert not any("eps_order" in w for ws in compare(found).values() for w in ws)
    assert [r["prec"] for r in found if "prec" in r] == ["bf16"]
    for attack in found:  # alone, composed or of the library; none without a ball
        asked = attack["eps"] is not None
        assert (set(attack["checks"]) >= PROBES) == asked, attack["name"]
    assert [r.get("batch") for r in found[8:12]] == [50, 50, 50, None]  # of theirs alone it is part


def test_autoattack_continues_where_the_other_attacks_end(tested, monkeypatch):
    monkeypatch.setitem(spec.STEPS, "square", 30)
    small, large = {"EPS": 2, "ALPHA": 0.5, "DROP": True}, {"NAME": "mi", "EPS": 64, "ALPHA": 16}
    own = {"EPS": 2, "STEPS": 4}
    record, _ = tested([large, small, {"NAME": "apgd"} | own, {"NAME": "autoattack"} | own])
    loud, weak, apgd, auto = record["attacks"]
    assert record["clean"]["correct"] >= weak["correct"] >= apgd["correct"] >= auto["correct"]
    assert loud["correct"] < auto["correct"]  # what a larger ball broke counts as unbroken here
    left = auto["checks"]["left"]
    assert set(left) < {"apgd-ce", "apgd-t", "fab-t", "square"} and "left" not in weak["checks"]
    assert list(left.values()) == sorted(left.values(), reverse=True)
    assert left["square"] == auto["correct"]


def test_the_order_of_the_list_is_part_of_the_threat(run, white_box, tmp_path):
    pgd, weak, apgd = {"STEPS": 3}, {"STEPS": 2}, {"NAME": "apgd-ce", "STEPS": 3}
    found = []
    for i, listed in enumerate(([pgd, weak, apgd], [weak, pgd, apgd], [apgd, pgd, weak])):
        argv = white_box("ZeroshotCLIP", ATTACK__TEST__LIST=repr(listed), out=str(i))
        assert run(argv)[0] == 0
        record = read_record(tmp_path / str(i) / "record.json")
        found.append({a["name"] + str(a["steps"]): attack_signature(a) for a in record["attacks"]})
    last, later, first = found
    assert last == later  # both started from the same two
    assert last["pgd3"] == first["pgd3"] and last["apgd-ce3"] != first["apgd-ce3"]
    path = tmp_path / "0" / "record.json"
    stored = json.loads(path.read_text())
    assert stored == read_record(path) and "steps 2" in stored["attacks"][2].pop("after")
    path.write_text(json.dumps(stored))
    assert "after" in read_record(path)["attacks"][2]  # the list of an older record tells it


def test_no_probes_no_figures(tested):
    record, _ = tested([{}], TEST__PROBES=0)
    assert not PROBES & set(record["attacks"][0]["checks"])


# --- rap --------------------------------------------------------------------------------------


def black_box(surrogate: str) -> dict:
    kwargs = {"surrogate": surrogate, "late_start": 1, "inner_steps": 2}
    return {"NAME": "rap", "STEPS": 2, "KWARGS": kwargs}


def test_black_boxes(tested, resnet):
    names = ["clip", resnet(3), resnet(1000)]
    record, out = tested([*map(black_box, names), {}], TEST__SUBSET=4)
    made = record["attacks"][:3]
    assert [a["target"] for a in made] == ["surrogate"] * 3 and "surrogate rap-2 (logit)" in out
    assert [a["kwargs"]["surrogate"] for a in made] == names
    assert len({a["surrogate_sha256"] for a in made}) == 3
    for attack in made:
        assert 0 < attack["checks"]["max_linf"] <= 16 / 255 + 1e-6 and attack["checks"]["in_range"]
        assert attack["correct"] <= record["clean"]["correct"]
        assert not PROBES & set(attack["checks"])  # the model is not questioned about another's


def test_a_surrogate_that_is_not_there_is_named_before_any_work(run, white_box, tmp_path):
    listed = repr([black_box("torchvision:resnet51")])
    code, _, err = run(white_box("AdvIVLP", ATTACK__TEST__LIST=listed))
    assert "no classifier 'resnet51'" in only_error(code, err)
    assert not (tmp_path / "run").exists()
