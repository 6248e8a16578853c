"""Gradients in bfloat16: what stays exact, and who has the last word."""

from __future__ import annotations

import pytest
import torch
from victim import problem

from advprompt.attacks import AttackSpec, GradientAttack, objective_for, specs_from_cfg, tower_in
from advprompt.evaluation.evaluator import Evaluation
from advprompt.evaluation.samples import ImageList
from advprompt.evaluation.victim import TrainerVictim
from advprompt.utils.errors import UserError

CFG = {
    "NAME": "pgd",
    "EPS": "4/255",
    "ALPHA": "1/255",
    "STEPS": 5,
    "RESTARTS": 1,
    "START": "uniform",
    "OBJECTIVE": "ce",
    "TARGET": "end_to_end",
}


def test_the_default_leaves_no_trace():
    plain = AttackSpec.from_cfg(CFG | {"PREC": "fp32"})
    assert plain == AttackSpec.from_cfg(CFG)
    assert "prec" not in plain.describe()


def test_bf16_is_told_and_read_back():
    coarse = AttackSpec.from_cfg(CFG | {"PREC": "bf16"})
    assert coarse.describe()["prec"] == "bf16"
    assert AttackSpec.from_cfg(coarse.describe()) == coarse


@pytest.mark.parametrize("name", ["autoattack", "apgd-ce", "square", "torchattacks:PGD"])
def test_other_attacks_refuse_it_and_do_not_inherit_it(name):
    with pytest.raises(UserError, match=f"'{name}' computes in fp32 only, not in bf16"):
        AttackSpec.from_cfg(CFG, {"NAME": name, "PREC": "bf16"})
    pgd, other = specs_from_cfg(CFG | {"PREC": "bf16", "LIST": [{}, {"NAME": name}]})
    assert (pgd.prec, other.prec) == ("bf16", "fp32")


def test_unknown_precision_is_refused():
    with pytest.raises(UserError, match="prec 'fp8' is unknown"):
        AttackSpec.from_cfg(CFG | {"PREC": "fp8"})


def test_a_coarse_forward_cannot_break_a_sample_by_itself():
    logits, clean, labels = problem(10)
    with torch.no_grad():
        labels = logits(clean).argmax(1)  # the model is right everywhere

    def liar(x):  # always wrong, with the true gradient
        true = logits(x)
        return true - 1000 * torch.nn.functional.one_hot(labels[: len(x)], true.shape[1])

    spec = AttackSpec.from_cfg(CFG | {"EPS": "0.01/255", "ALPHA": "0.01/255", "DROP": True})
    for exact, broken in ((None, 10), (logits, 0)):
        loss = objective_for(spec, liar, labels=labels, exact=exact)
        result = GradientAttack(loss, spec).run(clean, range(10))
        assert int((~result.right).sum()) == broken


def test_the_tower_is_coarse_and_its_gradient_is_not_zero():
    torch.manual_seed(0)
    tower = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8), torch.nn.Tanh())
    images = torch.rand(5, 3, 4, 4, requires_grad=True)
    with torch.no_grad():
        tower_in("bf16", tower)(images)  # as the check of restarts does before the next step
    fine, coarse = tower(images), tower_in("bf16", tower)(images)
    assert coarse.dtype == torch.float32
    assert 1e-6 < (fine - coarse).abs().max() < 2e-2
    grads = [torch.autograd.grad(f.square().sum(), images)[0].flatten() for f in (fine, coarse)]
    assert torch.cosine_similarity(*grads, dim=0) > 0.99
    assert tower_in("fp32", tower) is tower
    assert all(p.grad is None for p in tower.parameters())


@pytest.mark.parametrize("drop", [False, True])
def test_in_a_run_what_counts_as_broken_is_broken_in_fp32(build, tmp_path, drop):
    trainer = build("AdvIVLP")
    trainer.set_model_mode("eval")
    images = ImageList(trainer.dm.dataset.test, trainer.preprocess)
    test = Evaluation(
        TrainerVictim(trainer), images, folder=tmp_path / "u", cache=tmp_path / "c", batch_size=8
    )
    test.clean()
    seen, real = [], test.logits
    test.logits = lambda x: seen.append(x.clone()) or real(x)
    spec = AttackSpec.from_cfg(CFG | {"EPS": "16/255", "PREC": "bf16", "DROP": drop})
    entry = test.attack(spec)
    where = test.clean_right.nonzero().flatten()
    with torch.no_grad():
        right = real(torch.cat(seen)).argmax(1) == test.labels[where]
    assert entry["prec"] == "bf16"
    assert entry["correct"] == int(right.sum()) < len(where)
