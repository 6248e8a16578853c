"""The adversarial step: what is computed how often, what trains, what stops it, what resumes."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from advprompt.config.keys import METHODS
from advprompt.engine import trainer as robust_trainer
from advprompt.engine import watching
from advprompt.engine.alarms import collapse_warning
from advprompt.engine.batch import Batch
from advprompt.engine.tuning import PromptTrainer
from advprompt.evaluation.samples import ImageList
from advprompt.prompting import PromptedCLIP
from advprompt.records import read_record
from tests.conftest import REPO, ok, refusal, weights

SPLIT = "split_zhou_OxfordPets.json"


def first_batch(trainer):
    return Batch(trainer, next(iter(trainer.train_loader_x)))


# --- the attack ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["AdvIVLP", "NAPTuning", "TeCoA"])
def test_the_attack_leaves_no_gradients_in_the_prompts(build, name):
    trainer = build(name)
    seen = first_batch(trainer)
    images = seen.attack()
    assert not images.requires_grad
    moved = (images - seen.images).abs()
    assert 0 < float(moved.max()) <= 4 / 255 + 1e-6
    parameters = list(trainer.model.parameters())
    assert all(p.grad is None and p.requires_grad for p in parameters)
    assert trainer.model.training


@pytest.mark.parametrize(
    ("name", "texts", "others"),  # others: passes of clean images
    [
        ("AdvIVLP", 1, []),
        ("AdvMaPLe", 1, []),
        ("AdvCoOp", 1, []),
        ("NAPTuning", 1, ["prompted"]),
        ("FAP", 1, ["prompted"]),
        ("CAPT", 1, ["prompted", "frozen"]),
        ("APD", 2, ["teacher"]),
    ],
)
def test_one_step_costs_what_it_must(build, monkeypatch, name, texts, others):
    trainer = build(name, ATTACK__TRAIN__STEPS=3)
    calls = []

    def count(owner, method, label):
        original = getattr(owner, method)

        def counted(*args, **options):
            calls.append(label(args[0]))
            return original(*args, **options)

        monkeypatch.setattr(owner, method, counted)

    count(PromptedCLIP, "text_features", lambda model: "texts")
    count(
        PromptedCLIP,
        "image_features",
        lambda model: "teacher" if model is getattr(trainer, "teacher", None) else "prompted",
    )
    if name == "CAPT":
        count(trainer.clip, "encode_image", lambda pixels: "frozen")
        trainer.handmade  # noqa: B018  (once per run, not per step)
    trainer.forward_backward(next(iter(trainer.train_loader_x)))
    assert sorted(calls) == sorted(["texts"] * texts + ["prompted"] * (3 + 1) + others)


@pytest.mark.parametrize("attack", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["NAPTuning", "AdvMaPLe"])
def test_bf16_keeps_attack_and_gradients(build, name, attack):
    # a refiner that starts as the identity has no gradient in its first layer yet
    own = {"TRAINER__NAPTUNING__REFINER__INIT": "default"}

    def step(precision):
        trainer = build(
            name,
            **own,
            TRAINER__ADVERSARIAL__PREC=precision,
            OPTIM__WARMUP_EPOCH=-1,
            TRAINER__ADVERSARIAL__ATTACK_PREC=attack if precision == "bf16" else "fp32",
            ATTACK__TRAIN__STEPS=1,
        )
        trainer.epoch, trainer.max_epoch = 1, 2  # NAP's lambda is not 0
        seen = first_batch(trainer)
        loss, _ = trainer.loss(seen)
        loss.backward()
        assert seen.attacked
        grads = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        return float(loss.detach()), grads

    loss, grads = step("bf16")
    exact_loss, exact = step("fp32")
    assert loss == pytest.approx(exact_loss, rel=0.05)
    assert set(grads) == set(exact)
    for name, grad in exact.items():
        cosine = torch.cosine_similarity(grad.flatten(), grads[name].flatten(), dim=0)
        assert grads[name].dtype == torch.float32 and cosine > 0.8, name


@pytest.mark.parametrize("name", ["AdvIVLP", "APD"])
def test_scaled_float16_keeps_attack_and_step(build, name):
    """What amp does on a GPU, with the scaler that PyTorch has for a CPU."""

    def step(half):
        trainer = build(name, OPTIM__WARMUP_EPOCH=-1, OPTIM__LR=1.0, ATTACK__TRAIN__STEPS=1)
        if half:
            trainer.cfg.defrost()
            trainer.cfg.TRAINER.ADVERSARIAL.PREC = "amp"
            trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        before = [p.detach().clone() for p in trainer.trained.parameters()]
        summary = trainer.forward_backward(next(iter(trainer.train_loader_x)))
        after = trainer.trained.parameters()
        return summary, [(p - q).detach() for p, q in zip(after, before, strict=True)]

    summary, moved = step(half=True)
    exact_summary, exact = step(half=False)
    assert summary["loss"] == pytest.approx(exact_summary["loss"], rel=0.05)
    for ours, wanted in zip(moved, exact, strict=True):
        assert ours.dtype == torch.float32 and float(wanted.abs().max()) > 0
        assert torch.cosine_similarity(ours.flatten(), wanted.flatten(), dim=0) > 0.8


def test_a_loss_that_forgets_its_attack_is_refused(build, monkeypatch):
    trainer = build("AdvIVLP")
    monkeypatch.setattr(trainer, "loss", lambda batch: (batch.forward_clean().logits.mean(), {}))
    with pytest.raises(RuntimeError, match="lost its attack"):
        trainer.forward_backward(next(iter(trainer.train_loader_x)))


@pytest.mark.parametrize("objective", ["kl", "margin"])
def test_other_objectives_of_the_attack(build, objective):
    trainer = build("AdvIVLP", ATTACK__TRAIN__OBJECTIVE=objective)
    summary = trainer.forward_backward(next(iter(trainer.train_loader_x)))
    assert all(map(math.isfinite, summary.values()))
    assert trainer.train_threat()["objective"] == objective


# --- the optimizer ------------------------------------------------------------------------------


def test_accumulated_batches_equal_one_large_batch(white_box, run, tmp_path):
    keys = {"ATTACK__TRAIN__START": "zero", "OPTIM__MAX_EPOCH": 2}
    small = white_box("AdvIVLP", out="small", TRAINER__ADVERSARIAL__ACCUMULATE=3, **keys)
    large = white_box("AdvIVLP", out="large", DATALOADER__TRAIN_X__BATCH_SIZE=12, **keys)
    for argv in (small, large):
        ok(run(argv))
    small, large = (weights(tmp_path / d, 2)["state_dict"] for d in ("small", "large"))
    for name in large:
        torch.testing.assert_close(small[name], large[name], atol=1e-5, rtol=1e-3)


ADAM = {"OPTIM__NAME": "adamw", "OPTIM__LR": 1e-3}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("AdvPT", {}),
        ("AdvIVLP", {}),
        ("APD", {}),
        ("NAPTuning", ADAM),
        ("FARE", {}),
        ("DEFEAT", {"TRAINER__DEFEAT__CODE_WIDTH": 8}),
        ("CAPT", {"TRAINER__ADVERSARIAL__ACCUMULATE": 2}),
    ],
)
def test_resuming_equals_not_stopping(white_box, arguments, run, tmp_path, monkeypatch, name, keys):
    keys = {"OPTIM__MAX_EPOCH": 4, "DATALOADER__TRAIN_X__BATCH_SIZE": 4} | keys
    make = arguments if name == "AdvPT" else white_box
    assert run(make(name, out="whole", **keys))[0] == 0
    step = PromptTrainer.forward_backward

    def stop_in_epoch_3(self, batch):
        if self.epoch == 3 and self.batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(PromptTrainer, "forward_backward", stop_in_epoch_3)
    assert run(make(name, out="cut", **keys))[0] == 130
    assert not (tmp_path / "cut" / "record.json").exists()
    monkeypatch.setattr(PromptTrainer, "forward_backward", step)
    torch.manual_seed(99)  # whatever the state of the generators is
    assert "(epoch 2)" in ok(run(make(name, out="cut", **keys)))
    whole, cut = weights(tmp_path / "whole", 4), weights(tmp_path / "cut", 4)
    assert whole["state_dict"].keys() == cut["state_dict"].keys()
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, cut["state_dict"][key]), key
    moments = [s["optimizer"]["state"][0] for s in (whole, cut)]
    kept = {"momentum_buffer", "exp_avg", "exp_avg_sq"} & moments[0].keys()
    assert kept
    for key in kept:
        assert torch.equal(*(moment[key] for moment in moments)), key
    first, second = (read_record(tmp_path / d / "record.json") for d in ("whole", "cut"))
    assert first["clean"] == second["clean"]
    assert [a["correct"] for a in first["attacks"]] == [a["correct"] for a in second["attacks"]]


# --- what stops or warns ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "where"),
    [("AdvIVLP", "loss"), ("AdvIVLP", "gradient"), ("AdvIVLP", "attack"), ("AdvPT", "loss")],
)
def test_a_non_finite_step_stops_with_its_facts(
    white_box, arguments, run, tmp_path, monkeypatch, name, where
):
    loss = METHODS[name].loss

    def spoiled(self, batch):
        if (self.epoch, self.batch_idx) != (2, 1):
            return loss(self, batch)
        if where == "attack":
            batch.texts = batch.texts * math.nan
        value, terms = loss(self, batch)
        if where == "gradient":
            next(self.trained.parameters()).register_hook(lambda grad: grad * math.inf)
        return value * (math.nan if where == "loss" else 1), terms

    monkeypatch.setattr(METHODS[name], "loss", spoiled)
    make = arguments if name == "AdvPT" else white_box
    keys = {"DATALOADER__TRAIN_X__BATCH_SIZE": 4, "OPTIM__WARMUP_EPOCH": -1}
    sentence = refusal(run(make(name, OPTIM__MAX_EPOCH=4, **keys)))
    assert "epoch 3" in sentence and "lr " in sentence and "not finite" in sentence
    assert "batch 2 of 3" in sentence and "checkpoints are unchanged" in sentence
    assert "loss nan" in sentence or where != "loss"
    state = weights(tmp_path / "run", 2)["state_dict"]
    assert all(torch.isfinite(v).all() for v in state.values())
    assert not (tmp_path / "run" / "prompt_learner" / "model.pth.tar-3").exists()
    assert not (tmp_path / "run" / "record.json").exists()


def test_the_collapse_alarm_knows_its_case():
    chance = math.log(10)
    warning = collapse_warning(chance, 0.001, 10, "TRAINER.CAPT.LAMBDA")
    assert "TRAINER.CAPT.LAMBDA" in warning and "2.303" in warning and "0.001" in warning
    assert collapse_warning(0.5 * chance, 0.001, 10, "K") is None  # learns, and is robust
    assert collapse_warning(chance, 0.5, 10, "K") is None  # learns nothing yet
    assert collapse_warning(None, None, 10, "K") is None
    assert collapse_warning(0.0, 0.0, 1, "K") is None  # one class


def test_the_collapse_alarm_in_a_run(white_box, run, monkeypatch):
    keys = {"OPTIM__MAX_EPOCH": 3}
    code, out, err = run(white_box("CAPT", out="well", **keys))
    assert code == 0 and "collapsed" not in out, err
    texts = PromptedCLIP.text_features

    def all_the_same(self, class_chunk=0):  # answers nothing, and so is perfectly consistent
        features = texts(self, class_chunk)
        return features[:1].expand_as(features)

    monkeypatch.setattr(PromptedCLIP, "text_features", all_the_same)
    out = ok(run(white_box("CAPT", out="collapsed", **keys)))
    (line,) = [x for x in out.splitlines() if "may have collapsed" in x]  # once, after warm-up
    assert "epoch 2" in line and "TRAINER.CAPT.LAMBDA" in line and "1.099" in line


def test_depth_beyond_the_towers_is_cut_and_said(white_box, run, tmp_path):
    out = ok(run(white_box("AdvIVLP", TRAINER__ADVIVLP__PROMPT_DEPTH=9)))
    assert "text_depth 9 is cut to the 2 blocks" in out and "vision_depth 9" in out


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"ATTACK__TRAIN__TARGET": "embedding", "ATTACK__TRAIN__OBJECTIVE": "embedding_kl"},
            ["ATTACK.TRAIN", "ATTACK.THREAT linf1"],
        ),
        ({"TRAINER__ADVERSARIAL__ACCUMULATE": 0}, ["ACCUMULATE", "0"]),
        ({"TRAINER__ADVIVLP__PROMPT_DEPTH": 0}, ["PROMPT_DEPTH", "0"]),
        ({"TRAINER__ADVIVLP__N_CTX": 0}, ["TRAINER.ADVIVLP.N_CTX", "from 1"]),
        ({"DATALOADER__TRAIN_X__BATCH_SIZE": 0}, ["TRAIN_X.BATCH_SIZE", "from 1"]),
        ({"TEST__SUBSET": -1}, ["TEST.SUBSET", "-1"]),
        ({"ATTACK__TEST__EPS": "8/255"}, ["ATTACK.TEST.EPS 8/255 would change nothing", "LIST"]),
        ({"ATTACK__TRAIN__EPS": 0}, ["ATTACK.TRAIN", "EPS 0", "CoOp"]),
        ({"ATTACK__TRAIN__STEPS": 0, "ATTACK__TRAIN__START": "zero"}, ["STEPS 0", "START zero"]),
    ],
)
def test_wrong_keys_are_refused_before_anything_is_written(white_box, run, tmp_path, keys, words):
    sentence = refusal(run(white_box("AdvIVLP", **keys)))
    assert all(word in sentence for word in words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "keys", [{"PROMPT_DEPTH": 1}, {"REFINER__TEXT": False, "REFINER__VISION": False}]
)
def test_nap_without_prompts_and_refiners_is_refused(white_box, run, tmp_path, keys):
    own = {f"TRAINER__NAPTUNING__{k}": v for k, v in ({"N_CTX": 0} | keys).items()}
    sentence = refusal(run(white_box("NAPTuning", **own)))
    assert "TRAINER.NAPTUNING.N_CTX is 0" in sentence and not (tmp_path / "run").exists()


@pytest.fixture
def writer(monkeypatch):
    """TensorBoard's, which is optional; ``values`` are what was written."""

    class Writer:
        values: ClassVar[dict] = {}

        def __init__(self, log_dir):
            assert log_dir.endswith("tensorboard")

        def add_scalar(self, tag, value, step=None):
            self.values.setdefault(tag, []).append((step, float(value)))

        def close(self):
            pass

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return Writer


def test_scalars_for_tensorboard(white_box, run, writer):
    ok(run(white_box("NAPTuning", OPTIM__MAX_EPOCH=2)))
    names = ["loss", "loss_clean", "loss_adv", "loss_cons", "lambda", "acc_clean", "acc_adv", "lr"]
    for name in names:
        steps, values = zip(*writer.values[f"train/{name}"], strict=True)
        assert steps == tuple(range(2 * 3)) and all(map(math.isfinite, values)), name
    assert not any(name.startswith("robust") for name in writer.values)


@pytest.mark.parametrize("trainer", ["CAPT", "APD", "TeCoA", "MaPLe"])
def test_robust_accuracy_during_training_changes_no_bit_of_it(
    white_box, run, writer, tmp_path, monkeypatch, trainer
):
    """Nor does one that fails; and only the fixed images of the validation set are shown."""
    shown = []
    monkeypatch.setattr(watching, "ImageList", lambda *a: shown.append(a[0]) or ImageList(*a))

    def held(trainer):
        model = trainer.model
        before = torch.get_rng_state(), [m.training for m in model.modules()]
        watching.watch(trainer)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert [m.training for m in model.modules()] == before[1]

    monkeypatch.setattr(robust_trainer, "watch", held)
    keys = {"TRAIN__ROBUST_FREQ": 2, "TRAIN__ROBUST_SUBSET": 4, "OPTIM__MAX_EPOCH": 5}
    assert run(white_box(trainer, out="with", **keys))[0] == 0
    assert [step for step, _ in writer.values["robust/pgd10"]] == [1, 3]
    clean, robust = (writer.values[f"robust/{name}"] for name in ("clean", "pgd10"))
    assert all(r[1] <= c[1] <= 100 for r, c in zip(robust, clean, strict=True))
    names = [[item.impath for item in items] for items in shown]
    assert names[0] == names[1] and len(names[0]) == 4
    split = json.loads((Path(names[0][0]).parents[1] / SPLIT).read_text(encoding="utf-8"))
    assert {Path(name).name for name in names[0]} <= {item[0] for item in split["val"]}

    def fail(*_):
        torch.rand(3)
        raise RuntimeError("no such luck")

    monkeypatch.setattr(watching, "_accuracies", fail)
    code, out, _ = run(white_box(trainer, out="failed", **keys))
    assert code == 0 and out.count("robust accuracy is not written") == 1 and "luck" in out
    assert run(white_box(trainer, out="without", OPTIM__MAX_EPOCH=5))[0] == 0
    learned = [weights(tmp_path / out, 5)["state_dict"] for out in ("with", "failed", "without")]
    for other in learned[1:]:
        assert learned[0].keys() == other.keys()
        assert all(torch.equal(learned[0][name], other[name]) for name in other)


def test_robust_accuracy_is_not_there_without_an_image_tower(arguments, run, writer):
    code, out, _ = run(arguments("AdvPT", TRAIN__ROBUST_FREQ=1, OPTIM__MAX_EPOCH=2))
    assert code == 0 and out.count("AdvPT has no image tower while it is tuned") == 1
    assert "robust/clean" not in writer.values


def test_every_config_merges(white_box, run):
    from advprompt.cli import train

    for path in sorted((REPO / "configs" / "trainers").glob("*/*.yaml")):
        argv = ["--trainer", path.parent.name, "--config-file", str(path), "--attack-config-file"]
        advpt = path.parent.name in ("AdvPT", "ZeroshotCLIP")
        threats = ["advpt16"] if advpt else ["linf1", "linf4", "linf4_tiny", "nap1", "nap4"]
        threats = threats if path.stem == "tiny" else threats[:1]  # they share no keys
        for threat in threats:
            attack = str(REPO / f"configs/attacks/{threat}.yaml")
            args = train.parser().parse_args([*argv, attack, "DATASET.NAME", "Shapes"])
            assert train.setup_cfg(args).MODEL.BACKBONE.NAME
        head = path.read_text().split("DATALOADER")[0]
        assert f"main.sh {'shapes' if 'tiny' in path.name else 'pets'}" in head, path
    assert set(METHODS) == {p.name for p in (REPO / "configs" / "trainers").iterdir()}
