"""Attacks in words: sizes, defaults, what is read back from a record, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from dassl.config import get_cfg_default
from yacs.config import CfgNode

from advprompt import extend_cfg
from advprompt.attacks import AttackSpec, parse_255, parts_of, specs_from_cfg
from advprompt.config import merging
from advprompt.config.keys import check_cfg
from advprompt.records.threats import ALGORITHMS, PGD_FAMILY
from advprompt.report.threats import attack_headings, describe
from advprompt.utils.errors import UserError

CFG = {
    "NAME": "PGD",
    "EPS": "8/255",
    "ALPHA": 2,
    "STEPS": 5,
    "RESTARTS": 1,
    "START": "uniform",
    "OBJECTIVE": "ce",
    "TARGET": "end_to_end",
}
RAP = {"NAME": "rap", "KWARGS": {"surrogate": "clip"}}


def node(**changes) -> AttackSpec:
    return AttackSpec.from_cfg(CFG | {k.upper(): v for k, v in changes.items()})


def entry(**changes) -> AttackSpec:
    """An attack of LIST, over a node that has been set for another one."""
    given = {k.upper(): v for k, v in changes.items()}
    kwargs = RAP["KWARGS"] | given.get("KWARGS", {})
    given |= {"KWARGS": kwargs} if given.get("NAME") == "rap" else {}
    return specs_from_cfg(CFG | {"RESTARTS": 2, "KWARGS": {}, "LIST": [given]})[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((v, 4 / 255) for v in (4, "4", 4.0, "4/255", " 4 / 255 ", "4.0")),
        *((0, 0), ("0.5/255", 0.5 / 255), (255, 1), ("0.01/255", 0.01 / 255), (0.1, 0.1 / 255)),
    ],
)
def test_sizes_in_255(value, expected):
    assert parse_255(value, "EPS") == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((v, "write 4 or 4/255") for v in (0.0157, "0.0157")),
        *((0.0999, "write 25.5 or 25.5/255"), (-0.01, "outside 0..255")),
        *((v, "outside 0..255") for v in (256, 255.01, -1)),
        *((v, "not a size in 1/255") for v in ("four", "4/256", "4/", "nan", "inf", True, None)),
    ],
)
def test_wrong_sizes_are_refused_with_the_key(value, words):
    with pytest.raises(UserError, match=f"ATTACK.TEST.EPS.*{words}"):
        parse_255(value, "ATTACK.TEST.EPS")


def test_list_entries_override_the_node():
    given = CfgNode({**CFG, "LIST": [{"EPS": 16, "STEPS": 40}, {"OBJECTIVE": "margin"}]})
    first, second = specs_from_cfg(given, key="ATTACK.TEST")
    assert (first.eps, first.steps, first.objective) == (16 / 255, 40, "ce")
    assert (second.eps, second.steps, second.objective) == (8 / 255, 5, "margin")
    assert specs_from_cfg(CfgNode(CFG)) == [node()]
    with pytest.raises(UserError, match=r"the same attack twice \(entries 1 and 2"):
        specs_from_cfg(CFG | {"LIST": [{"STEPS": 7}, {"STEPS": 7, "EPS": "8"}]})


def test_an_attack_takes_its_usual_settings_not_the_nodes():
    auto, square = entry(name="autoattack"), entry(name="square")
    assert (auto.steps, auto.restarts, auto.drop) == (100, 1, True)
    assert (auto.alpha, auto.start, auto.objective) == (None, None, None)
    own = entry(name="apgd-ce", steps=7, restarts=3)
    assert square.steps == 5000 and (own.steps, own.restarts) == (7, 3)
    assert entry(name="pgd", alpha=1).steps == 5
    fgsm = entry(name="fgsm")
    assert (fgsm.steps, fgsm.alpha, fgsm.start, fgsm.restarts) == (1, fgsm.eps, "zero", 1)
    assert entry(name="mdi", kwargs={"probability": 1}).kwargs == {
        "momentum": 1.0,
        "probability": 1.0,
        "resize": 0.9,
    }
    rap = entry(name="rap", eps=16)
    assert (rap.steps, rap.restarts, rap.start, rap.alpha) == (400, 1, "uniform", 2 / 255)
    assert (rap.target, rap.objective, rap.drop) == ("surrogate", "logit", False)
    usual = {"late_start": 100, "inner_steps": 8, "inner_eps": "16/255", "labels": "auto"}
    assert rap.kwargs == usual | {"probability": 0.7, "resize": 0.5, "surrogate": "clip"}


READ = [{"name": name} for name in ALGORITHMS] + [
    {"name": "mdi", "drop": True, "alpha": 2},
    {"name": "di", "kwargs": {"probability": 0.7}},
    {"norm": "l2", "eps": 400, "alpha": "50/255"},
    {"prec": "bf16"},
    {"name": "apgd-ce", "norm": "l2", "eps": 200},
    {"name": "torchattacks:PGD"},
    {"name": "torchattacks:cw", "kwargs": {"c": 5}},
    {"name": "torchattacks:PGDL2", "norm": "l2", "eps": 200},
]


@pytest.mark.parametrize("fields", READ, ids=lambda e: "-".join(map(str, e.values())))
def test_a_description_is_json_and_is_read_back(fields):
    if "torchattacks" in fields.get("name", ""):
        pytest.importorskip("torchattacks")
    made = entry(**fields)
    described = json.loads(json.dumps(made.describe()))
    assert AttackSpec.from_cfg(described) == made and described["eps"] in (
        None,
        "8/255",
        *(f"{v}/255" for v in (200, 400)),
    )
    assert ("prec" in described) == (made.prec != "fp32")  # as in records from before it existed
    assert replace(made) == made
    assert describe(described)  # every one can be put in words
    (heading,) = attack_headings([described])
    assert heading


def test_words_for_the_report():
    assert node(eps="2.66666/255").describe()["eps"] == "2.6667/255"
    told = [entry(name="rap", eps=16, kwargs={"late_start": n}).describe() for n in (100, 0)]
    assert attack_headings(told[:1]) == ["black-box RAP 16/255 (MaxLogit)"]
    assert "surrogate clip" in describe(told[0]) and "late_start 100" in describe(told[0])
    assert len(set(attack_headings(told))) == 2
    assert attack_headings([node().describe()]) == ["end-to-end PGD-5 8/255"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "pgdd"}, "Did you mean pgd"),
        ({"objective": "embeding_kl"}, "Did you mean embedding_kl"),
        ({"objective": "logit"}, "objective is 'logit', expected one of"),
        ({"target": "prompt"}, "target is 'prompt', expected one of"),
        ({"target": "surrogate"}, "goes with rap alone"),
        ({"start": "zer"}, "Did you mean zero"),
        ({"norm": "l7"}, "norm is 'l7', expected one of"),
        ({"prec": "fp8"}, "prec is 'fp8', expected one of"),
        ({"drop": "yes"}, "expected True or False"),
        ({"steps": -1}, "whole number from 0"),
        ({"steps": 2.5}, "whole number from 0"),
        ({"restarts": 0}, "whole number from 1"),
        ({"alpha": 0}, "no step moves"),
        ({"eps": 0.03}, "fraction of 1"),
        ({"kwargs": "momentum"}, "expected keys and values"),
        ({"stepz": 3}, "Did you mean STEPS"),
        ({"start": "zero", "restarts": 2}, "restarts the same"),
        ({"start": "zero", "objective": "kl"}, "exactly 0"),
        ({"start": "zero", "objective": "embedding_kl"}, "exactly 0"),
        ({"start": "one_sided", "norm": "l2"}, "L_inf's"),
        ({"drop": True, "objective": "kl"}, "drop scores every iterate"),
        ({"drop": True, "target": "frozen_prompt"}, "drop scores every iterate"),
        ({"name": "autoattack", "target": "embedding"}, "needs logits"),
        (
            {"name": "autoattack", "kwargs": {"c": 1}},
            "no setting 'c'. Choose one of: backward",
        ),
        ({"name": "apgd", "target": "surrogate"}, "goes with rap alone"),
        ({"name": "mi", "kwargs": {"momentun": 1}}, "Did you mean momentum"),
        (
            {"name": "pgd", "kwargs": {"momentum": 1}},
            "no setting 'momentum'.* backward",
        ),
        ({"name": "mi", "kwargs": {"momentum": -1}}, "momentum is -1, expected a number from 0"),
        ({"name": "mi", "kwargs": {"momentum": True}}, "momentum is True"),
        ({"name": "di", "kwargs": {"probability": 1.5}}, "is 1.5, expected a number from 0 to 1"),
        ({"name": "di", "kwargs": {"resize": 0}}, "resize is 0"),
        ({"name": "di", "kwargs": {"resize": "0.9"}}, "resize is '0.9'"),
        ({"name": "mdi", "kwargs": {"aim": 1}}, "no setting 'aim'"),
    ],
)
def test_wrong_settings_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        node(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "end_to_end"}, "'rap' has target 'end_to_end'"),
        ({"objective": "margin"}, "objective is 'margin', expected one of"),
        ({"norm": "l2"}, "keeps to a ball in linf"),
        ({"steps": 100}, "after 100 steps but has 100"),
        ({"drop": True}, "drop scores every iterate"),
        ({"start": "zero", "restarts": 2}, "all 2 restarts the same"),
        ({"kwargs": {"late_strat": 1}}, "late_start"),
        ({"kwargs": {"late_start": -1}}, "late_start is -1"),
        ({"kwargs": {"inner_steps": 0}}, "whole number from 1"),
        ({"kwargs": {"inner_eps": 0.05}}, "looks like a fraction of 1"),
        ({"kwargs": {"probability": 2}}, "from 0 to 1"),
        ({"kwargs": {"labels": True}}, "labels is True, expected one of"),
        ({"kwargs": {"surrogate": "torchvison:resnet50"}}, "torchvision:NAME"),
        ({"kwargs": {"surrogate": "torchvision:resnet5O"}}, "resnet50"),
        ({"kwargs": {"surrogate": "torchvision:resnet50/IMAGENET1K_V3"}}, "IMAGENET1K_V2"),
        ({"kwargs": {"surrogate": "torchvision:resnet50?weights=/no/such.pt"}}, "does not exist"),
        ({"kwargs": {"surrogate": "torchvision:fcn_resnet50"}}, "no classifier"),
        ({"kwargs": {"surrogate": "open_clip:ViT-B-33/openai"}}, "no architecture"),
        ({"kwargs": {"surrogate": "open_clip:ViT-B-32/opanai"}}, "openai"),
        ({"kwargs": {"surrogate": "clip:ViT-B/32"}}, "is unknown"),
        ({"kwargs": {"surrogate": ""}}, "is unknown"),
    ],
)
def test_wrong_settings_of_rap_are_refused_before_anything_runs(changes, words):
    with pytest.raises(UserError, match=words):
        entry(name="rap", **changes)


@pytest.mark.parametrize(
    ("name", "key", "fine", "wrong"),
    [
        ("mi", "momentum", (0, 1e6), (-0.01, 1.01e6)),
        ("di", "probability", (0, 1), (-0.01, 1.01)),
        ("di", "resize", (0.01, 1), (0.009, 1.01)),
        ("rap", "late_start", (0,), (-1,)),
        ("rap", "inner_steps", (1,), (0,)),
        ("rap", "inner_eps", (0, 255), (-1, 256)),
        ("rap", "probability", (0, 1), (-0.01, 1.01)),
        ("rap", "resize", (0.01, 1), (0.009, 1.01)),
    ],
)
def test_bounds_of_settings_hold_from_both_sides(name, key, fine, wrong):
    for value in fine:
        assert key in entry(name=name, kwargs={key: value}).kwargs
    for value in wrong:
        with pytest.raises(UserError, match=key):
            entry(name=name, kwargs={key: value})


@pytest.mark.parametrize(("norm", "most"), [("linf", 1), ("l2", 100)])
def test_bounds_of_sizes_hold_from_both_sides(norm, most):
    for key in ("eps", "alpha"):
        assert getattr(node(norm=norm, **{key: 255 * most}), key) == most
        assert getattr(node(norm=norm, **{key: 1}), key) == 1 / 255
        with pytest.raises(UserError, match=f"outside 0..{255 * most}"):
            node(norm=norm, **{key: 255.1 * most})
        with pytest.raises(UserError, match=f"from 0 to {most}"):
            replace(node(norm=norm), **{key: 1.001 * most})


@pytest.mark.parametrize("name", ["autoattack", "apgd-ce", "square", "torchattacks:PGD"])
def test_other_attacks_refuse_bf16_and_do_not_inherit_it(name):
    if name.startswith("torchattacks"):
        pytest.importorskip("torchattacks")
    with pytest.raises(UserError, match=f"'{name}' computes in fp32 only, not in bf16"):
        entry(name=name, prec="bf16")
    pgd, other = specs_from_cfg(CFG | {"PREC": "bf16", "LIST": [{}, {"NAME": name}]})
    assert (pgd.prec, other.prec) == ("bf16", "fp32")


def test_a_missing_setting_is_named():
    with pytest.raises(UserError, match="ATTACK.TEST.STEPS"):
        AttackSpec.from_cfg({k: v for k, v in CFG.items() if k != "STEPS"}, key="ATTACK.TEST")


@pytest.mark.parametrize("classes", [10, 4, 3])
def test_parts_of_autoattack(classes, capsys):
    parts = parts_of(entry(name="autoattack"), classes)
    all_of = {"apgd-ce": 100, "apgd-t": 100, "fab-t": 100, "square": 5000}
    left_out = [] if classes > 3 else ["apgd-t", "fab-t"]
    assert {p.name: p.steps for p in parts} == {
        name: steps for name, steps in all_of.items() if name not in left_out
    }
    assert ("left out" in capsys.readouterr().out) == bool(left_out)


def test_a_part_asked_for_by_name_is_never_left_out_in_silence():
    with pytest.raises(UserError, match="at least 4 classes but there are 3"):
        parts_of(entry(name="apgd-t"), 3)
    assert [part.name for part in parts_of(entry(name="apgd"), 2)] == ["apgd-ce"]
    assert [part.name for part in parts_of(entry(name="pgd"), 2)] == ["pgd"]


def test_training_takes_the_family_alone(run, white_box):
    code, _, err = run(white_box("AdvIVLP", ATTACK__TRAIN__NAME="autoattack"))
    assert code == 2 and f"which is for tests; train with one of: {', '.join(PGD_FAMILY)}" in err
    code, _, err = run(white_box("AdvIVLP", ATTACK__TRAIN__NAME="mi", TEST__SUBSET=3))
    assert code == 0, err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"EPS": 0}, "EPS 0, which attacks nothing"),
        ({"TARGET": "embedding"}, "which has no text"),
    ],
)
def test_attacks_that_test_nothing_are_refused(run, white_box, given, words):
    code, _, err = run(white_box("AdvIVLP", ATTACK__TEST__LIST=repr([given])))
    assert code == 2 and words in err


def test_defaults_of_the_keys():
    cfg = get_cfg_default()
    extend_cfg(cfg)
    usual = {"NAME": "pgd", "ALPHA": "1/255", "RESTARTS": 1, "START": "uniform"}
    train = {"EPS": "8/255", "STEPS": 10, "OBJECTIVE": "embedding_kl", "TARGET": "embedding"}
    test = {"EPS": "1/255", "STEPS": 100, "OBJECTIVE": "ce", "TARGET": "end_to_end", "LIST": []}
    test |= {"DROP": False, "NORM": "linf", "KWARGS": {}, "PREC": "fp32"}
    assert (dict(cfg.ATTACK.TRAIN), dict(cfg.ATTACK.TEST)) == (usual | train, usual | test)
    own = {"backward": "soft"}  # an attack's own settings, as on the command line
    merging.merge_opts(cfg, ["ATTACK.TEST.KWARGS.backward", "soft"])
    assert [attack.kwargs for attack in specs_from_cfg(cfg.ATTACK.TEST)] == [own]


@pytest.mark.parametrize(
    ("key", "value", "fine"),
    [
        ("RESTARTS", 1, True),
        ("RESTARTS", 10**4, True),
        ("RESTARTS", 0, False),
        ("RESTARTS", 10**4 + 1, False),
        ("STEPS", 0, True),
        ("STEPS", -1, False),
    ],
)
def test_bounds_of_the_keys(key, value, fine):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.ATTACK.TEST[key] = value
    if fine:
        check_cfg(cfg)
    else:
        with pytest.raises(UserError, match=f"ATTACK.TEST.{key} is {value}"):
            check_cfg(cfg)


HIDE = """
import sys
for name in ("torchattacks", "timm"):
    sys.modules[name] = None
import advprompt
from advprompt.attacks import specs_from_cfg
from advprompt.utils.errors import UserError
node = {node!r}
for name in {names!r}:
    specs_from_cfg(node | dict(LIST=[dict(NAME=name)]))
assert "torchvision" not in sys.modules
try:
    specs_from_cfg(node | dict(LIST=[dict(NAME="torchattacks:CW")]))
except UserError as error:
    assert "pip install --no-deps torchattacks" in str(error), error
else:
    raise SystemExit("not refused")
"""


def test_torchattacks_timm_and_torchvision_are_needed_by_name_only():
    code = HIDE.format(node=CFG, names=[n for n in ALGORITHMS if n != "rap"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
