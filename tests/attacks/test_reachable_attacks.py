"""Every kind of attack, from a config to a record's entry."""

import json

import pytest

from advprompt.attacks import AttackSpec, compare, specs_from_cfg
from advprompt.records import attack_signature
from advprompt.utils.errors import UserError

from .test_autoattack import NODE, evaluation, model  # noqa: F401  (fixtures)

ENTRIES = [
    {"NAME": "fgsm"},
    {"NAME": "mi", "ALPHA": 2},
    {"NAME": "di", "KWARGS": {"probability": 0.7}},
    {"NAME": "mdi", "DROP": True, "ALPHA": 2},
    {"NORM": "l2", "EPS": "200/255", "ALPHA": "50/255"},
    {"NORM": "l2", "EPS": 400, "ALPHA": 100, "NAME": "mi", "DROP": True},
    {"KWARGS": {"aim": "likeliest"}},
    {"KWARGS": {"aim": 2}, "DROP": True},
    {"NAME": "torchattacks:PGD"},
    {"NAME": "torchattacks:cw", "KWARGS": {"c": 5}},
    {"NAME": "torchattacks:PGDL2", "NORM": "l2", "EPS": 200},
    {"NAME": "torchattacks:APGD"},
    {"NAME": "torchattacks:DeepFool"},
    {"NAME": "autoattack", "STEPS": 5},
    {"NAME": "apgd-ce", "NORM": "l2", "EPS": 200},
]


def read(entry):
    return specs_from_cfg(NODE | {"KWARGS": {}, "NORM": "linf", "LIST": [entry]})[0]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: "-".join(map(str, e.values())))
def test_a_description_is_json_and_is_read_back(entry):
    spec = read(entry)
    assert AttackSpec.from_cfg(json.loads(json.dumps(spec.describe()))) == spec


def test_all_of_them_run_and_stay_apart(evaluation):  # noqa: F811
    evaluation.probes, evaluation._seeds = 4, lambda where: list(where)
    found = [evaluation.attack(read(entry)) for entry in ENTRIES]
    clean = int(evaluation.clean_right.sum())
    for entry, result in zip(ENTRIES, found, strict=True):
        assert result["correct"] < clean, entry  # every one of them breaks something
        if result["eps"] and result["norm"] == "l2":
            limit = float(result["eps"].removesuffix("/255")) / 255 + 1e-5
            assert 0 <= result["checks"].get("max_l2", 0) <= limit, entry
    assert len({attack_signature(result) for result in found}) == len(found)
    by_name = {r["name"]: r for r in found}
    assert by_name["torchattacks:CW"]["eps"] is None
    assert by_name["torchattacks:CW"]["checks"]["reached"]["l2"] > 0
    assert compare(found) == {}


def test_training_takes_the_family_alone(run, white_box):
    code, _, err = run(white_box("AdvIVLP", ATTACK__TRAIN__NAME="autoattack"))
    assert code == 2 and "which is for tests; train with one of: pgd" in err
    code, _, err = run(white_box("AdvIVLP", ATTACK__TRAIN__NAME="mi"))
    assert code == 0, err


def test_settings_that_an_attack_does_not_have_are_refused():
    with pytest.raises(UserError, match="momentum"):
        read({"NAME": "mi", "KWARGS": {"momentun": 1}})
    with pytest.raises(UserError, match="torchattacks"):
        read({"NAME": "torchattacks:PGDD"})
