"""Every method end to end on a toy CLIP: what it trains, its switches, its checkpoints."""

from __future__ import annotations

import math

import pytest
import torch

from advprompt.baselines.tower import TunedTower
from advprompt.config.keys import METHODS
from advprompt.engine.batch import Batch
from advprompt.prompting.quantiser import QuantisedHead
from advprompt.records import read_record
from advprompt.utils.errors import UserError
from tests.conftest import only_error
from tests.toy import toy_state_dict

D, LAYERS = 64, 2  # width and blocks of both toy towers
LINEAR = D * D + D
REFINER = (D * 2 * D + 2 * D) + (2 * D * D + D)  # ratio 2
DEEP = LAYERS * 2 * D  # 2 vectors per block
TOWERS = ("PMGAFT", "FARE", "TGAZSR")  # these train the image tower
TOWER = sum(v.numel() for k, v in toy_state_dict().items() if k.startswith("visual."))
HEAD = QuantisedHead(32, 16, codes=512, inner=256, share=0.5)  # of 4 x 4 patches
# trainer -> values it trains with its default keys, both depths cut to 2 blocks
TRAINED = {
    "NAPTuning": LAYERS * 16 * D + LAYERS * LINEAR + 2 * (LAYERS - 1) * REFINER,
    "CAPT": DEEP + LAYERS * LINEAR,
    "APD": 2 * DEEP,
    "CoOp": 16 * D,
    "MaPLe": DEEP + LAYERS * LINEAR,
    "AdvCoOp": 16 * D,
    "AdvVPT": DEEP,
    "AdvMaPLe": DEEP + LAYERS * LINEAR,
    "AdvIVLP": 2 * DEEP,
    "FAP": DEEP + LAYERS * LINEAR,  # one layer of text vectors, the others visual
    "TeCoA": 16 * D,
    **dict.fromkeys(TOWERS, TOWER),
    "TeCoA finetune": TOWER,
    "DEFEAT": 16 * D + sum(value.numel() for value in HEAD.parameters()),
}
CLEAN = ("CoOp", "MaPLe")


def step(trainer):
    """One batch forward, backward and update; returns the numbers of the log line."""
    summary = trainer.forward_backward(next(iter(trainer.train_loader_x)))
    assert all(map(math.isfinite, summary.values())), summary
    return summary


@pytest.fixture
def tested(white_box, run, tmp_path):
    """Test the model in ``run`` again: ``tested(name, KEY=VALUE) -> its record``."""

    def call(name, **keys):
        load = ["--eval-only", "--model-dir", str(tmp_path / "run")]
        code, _, err = run(white_box(name, *load, out="again", **keys))
        assert code == 0, err
        return read_record(tmp_path / "again" / "record.json")

    return call


def own(node: str, keys: dict) -> dict:
    return {f"TRAINER__{node}__{key}": value for key, value in keys.items()}


def variant(name: str) -> tuple[str, dict]:
    """The trainer and the keys of a name in TRAINED."""
    name, _, kind = name.partition(" ")
    return name, own(name.upper(), {"VARIANT": kind}) if kind else {}


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_an_epoch_a_record_and_its_evaluation(white_box, run, tested, tmp_path, name):
    values, (name, keys) = TRAINED[name], variant(name)
    code, out, err = run(white_box(name, **keys))
    assert code == 0, err
    record = read_record(tmp_path / "run" / "record.json")
    assert record["status"] == "completed" and record["trainer"] == name
    assert record["prompt_parameters"] == values
    state = torch.load(tmp_path / "run/prompt_learner/model.pth.tar-1", weights_only=True)
    tower = [key.startswith("visual.") for key in state["state_dict"]]
    assert all(tower) if values == TOWER else not any(tower)
    assert record["paper"].startswith("https://")
    assert (record["train_threat"] is None) == (name in CLEAN)
    (attack,) = record["attacks"]
    assert attack["target"] == "end_to_end"
    assert 0 < attack["checks"]["max_linf"] <= 4 / 255 + 1e-6
    line = next(x for x in out.splitlines() if x.startswith("epoch [1/1] batch [3/3]"))
    both = (*CLEAN, "CAPT", "FAP", "NAPTuning", "PMGAFT", "TGAZSR")
    wanted = "acc_clean" if name in both else "acc_adv"
    assert wanted in line and " lr " in line
    second = tested(name, **keys)
    assert second["clean"] == record["clean"]
    assert second["attacks"][0]["correct"] == attack["correct"]


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_only_what_is_learned_moves(build, name):
    name, keys = variant(name)
    trainer = build(name, OPTIM__WARMUP_EPOCH=-1, **keys)
    trainer.epoch, trainer.max_epoch = 1, 2  # NAP's lambda is not 0
    if isinstance(trainer.trained, TunedTower):
        pixels, text = torch.rand(2, 3, 32, 32), trainer.clip.model.transformer
        torch.testing.assert_close(
            trainer.image_features(pixels), trainer.clip.encode_image(pixels)
        )
        assert trainer.model.clip.model.transformer is text  # there is one text tower
    frozen = {k: v.clone() for k, v in trainer.clip.state_dict().items()}
    before = {k: v.clone() for k, v in trainer.trained.state_dict().items()}
    step(trainer)
    assert all(torch.equal(v, frozen[k]) for k, v in trainer.clip.state_dict().items())
    assert all(p.grad is None for p in trainer.clip.parameters())
    for key, value in trainer.trained.state_dict().items():
        assert not torch.equal(value, before[key]), f"{key} did not move"


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_base_to_new_classes(white_box, run, tested, tmp_path, name):
    name, keys = variant(name)
    assert run(white_box(name, DATASET__SUBSAMPLE_CLASSES="base", **keys))[0] == 0
    base = read_record(tmp_path / "run" / "record.json")
    new = tested(name, DATASET__SUBSAMPLE_CLASSES="new", **keys)
    assert (base["classes"], new["classes"]) == (2, 1)
    assert base["prompt_parameters"] == new["prompt_parameters"]


@pytest.mark.parametrize(
    ("name", "keys", "other", "words"),
    [
        ("AdvCoOp", {"CSC": True}, {"CSC": True}, "made for other classes"),
        ("CAPT", {}, {"CTX_INIT": ""}, "a photo of a"),  # "of a" would no longer follow
        ("CoOp", {}, {"CLASS_TOKEN_POSITION": "front"}, "front"),
        ("TeCoA", {"VARIANT": "finetune"}, {"VARIANT": "prompt"}, "another method"),
    ],
)
def test_checkpoints_of_other_prompts_are_refused(
    white_box, run, tmp_path, name, keys, other, words
):
    node = name.upper()
    assert run(white_box(name, DATASET__SUBSAMPLE_CLASSES="base", **own(node, keys)))[0] == 0
    part = "new" if name == "AdvCoOp" else "base"
    load = ["--eval-only", "--model-dir", str(tmp_path / "run")]
    options = {"DATASET__SUBSAMPLE_CLASSES": part} | own(node, other)
    assert words in only_error(*run(white_box(name, *load, out="other", **options))[::2])
    assert not (tmp_path / "other" / "record.json").exists()


def test_checkpoints_of_older_versions(white_box, arguments, run, tested, tmp_path):
    """They do not state the words after the vectors; AdvPT's context was a parameter ``ctx``."""
    assert run(white_box("CAPT"))[0] == 0
    file = tmp_path / "run" / "prompt_learner" / "model.pth.tar-1"
    state = torch.load(file, weights_only=True)
    del state["advprompt"]["prompts"]["text_init"]
    torch.save(state, file)
    assert tested("CAPT")["status"] == "completed"

    assert run(arguments("AdvPT", out="advpt"))[0] == 0
    learner, record = tmp_path / "advpt" / "prompt_learner", tmp_path / "advpt" / "record.json"
    state, last = (torch.load(learner / f"model.pth.tar-{e}", weights_only=True) for e in (2, 4))
    correct = [attack["correct"] for attack in read_record(record)["attacks"]]
    state["state_dict"] = {"ctx": state["state_dict"]["text_prompts"][0]}
    for moments in state["optimizer"]["state"].values():
        moments["momentum_buffer"] = moments["momentum_buffer"][0]
    state["advprompt"]["prompts"] = {"position": "end", "csc": False}
    torch.save(state, learner / "model.pth.tar-2")
    (learner / "model.pth.tar-4").unlink()
    (learner / "checkpoint").write_text("model.pth.tar-2\n")
    record.unlink()
    code, out, err = run(arguments("AdvPT", out="advpt"))
    assert code == 0 and "(epoch 2)" in out, err
    again = torch.load(learner / "model.pth.tar-4", weights_only=True)["state_dict"]
    assert torch.equal(again["text_prompts"], last["state_dict"]["text_prompts"])
    assert [attack["correct"] for attack in read_record(record)["attacks"]] == correct


# --- switches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["AdvCoOp", "AdvVPT", "AdvMaPLe", "AdvIVLP", "TeCoA"])
@pytest.mark.parametrize("kind", ["adv", "half", "clean"])
def test_at_loss_chooses_the_images(build, name, kind):
    trainer = build(name, **{f"TRAINER__{name.upper()}__AT_LOSS": kind})
    summary = step(trainer)
    shown = {key for key in summary if key.startswith("loss_")}
    both = {"loss_clean", "loss_adv"}
    assert shown == {"adv": {"loss_adv"}, "half": both, "clean": {"loss_clean"}}[kind]
    assert (trainer.train_threat() is None) == (kind == "clean")
    if kind == "half":
        mean = (summary["loss_clean"] + summary["loss_adv"]) / 2
        assert summary["loss"] == pytest.approx(mean, rel=1e-5)
    else:
        assert summary["loss"] == pytest.approx(summary[f"loss_{kind}"])


@pytest.mark.parametrize(
    ("keys", "parameters"),
    [
        ({"REFINER__VISION": False, "REFINER__TEXT": False}, 2 * 16 * D + 2 * LINEAR),
        ({"REFINER__TEXT": False}, 2 * 16 * D + 2 * LINEAR + REFINER),
        ({"N_CTX": 0}, 2 * REFINER),  # refiners alone, the parameter-matched adapter
        ({"REFINER__INIT": "zero"}, 2 * 16 * D + 2 * LINEAR + 2 * REFINER),
        ({"PROMPT_DEPTH": 1}, 16 * D + LINEAR),  # nothing between the blocks
        ({"CONSISTENCY": False}, 2 * 16 * D + 2 * LINEAR + 2 * REFINER),
        ({"SCHEDULE": "constant"}, 2 * 16 * D + 2 * LINEAR + 2 * REFINER),
        (
            {"SCHEDULE": "constant", "LAMBDA": 0.25, "CONSISTENCY_WEIGHT": 3.0},
            2 * 16 * D + 2 * LINEAR + 2 * REFINER,
        ),
        ({"REFINER__RATIO": 1}, 2 * 16 * D + 2 * LINEAR + 2 * 2 * LINEAR),
    ],
)
def test_nap_switches(build, keys, parameters):
    trainer = build("NAPTuning", **own("NAPTUNING", keys))
    assert trainer.prompt_parameters() == parameters
    summary = step(trainer)
    lam = keys.get("LAMBDA", 0.5) if "SCHEDULE" in keys else 0.0  # the first of the epochs
    assert summary["lambda"] == lam
    weight = keys.get("CONSISTENCY_WEIGHT", 1.0)
    expected = (1 - lam) * summary["loss_clean"] + lam * (
        summary["loss_adv"] + weight * summary["loss_cons"]
    )
    assert summary["loss"] == pytest.approx(expected, rel=1e-5)
    assert (summary["loss_cons"] == 0) == (keys.get("CONSISTENCY") is False)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"N_CTX": 5}, "'a photo of a' is not used: it has fewer words than N_CTX 5"),
        ({"COUPLING": "vision_to_text"}, "is not used: the visual prompts make the text ones"),
        ({}, ""),
    ],
)
def test_words_that_start_nothing_are_noted(build, capsys, keys, said):
    build("CAPT", **{f"TRAINER__CAPT__{key}": value for key, value in keys.items()})
    out = capsys.readouterr().out
    assert said in out if said else "CTX_INIT" not in out


@pytest.mark.parametrize(
    "keys",
    [
        {"ALPHA": "acc"},
        {"ALPHA": "entropy"},
        {"ALPHA": "ramp"},
        {"ALPHA": "const", "ALPHA_CONST": 0.25},
        {"COUPLING": "vision_to_text"},
        {"COUPLING": "none"},
        {"KL_DIRECTION": "adversarial_first"},
        {"DETACH_TARGET": True},
        {"INNER": "kl"},
        {"N_CTX": 5},
        {"LAMBDA": 0.25},
        {"CTX_INIT": ""},
    ],
)
def test_capt_switches(build, keys):
    trainer = build("CAPT", **own("CAPT", keys))
    summary = step(trainer)
    expected = summary["loss_clean"] + keys.get("LAMBDA", 1.5) * summary["loss_cons"]
    assert summary["loss"] == pytest.approx(expected, rel=1e-5)
    if "ALPHA_CONST" in keys:
        mix = 0.75 * summary["loss_cons_train"] + 0.25 * summary["loss_cons_frz"]
        assert summary["loss_cons"] == pytest.approx(mix, rel=1e-5)
    assert trainer.train_threat()["objective"] == keys.get("INNER", "ce")


def test_classes_in_chunks_change_nothing(build):
    losses = []
    for chunk in (0, 1, 2):
        trainer = build("NAPTuning", TRAINER__ADVERSARIAL__CLASS_CHUNK=chunk)
        assert trainer.cfg.TRAINER.ADVERSARIAL.CLASS_CHUNK == chunk
        losses.append(step(trainer)["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_capt_asks_the_frozen_model_once_where_images_never_vary(build, monkeypatch):
    trainer = build("CAPT", INPUT__TRANSFORMS="()", DATALOADER__TRAIN_X__BATCH_SIZE=12)
    encode, calls = trainer.clip.encode_image, []
    monkeypatch.setattr(
        trainer.clip, "encode_image", lambda x: (calls.append(len(x)), encode(x))[1]
    )
    (batch,) = trainer.train_loader_x
    fresh = trainer.frozen_answers(Batch(trainer, batch))
    assert torch.equal(fresh, trainer.frozen_answers(Batch(trainer, batch)))
    assert calls == [12]
    varying = build("CAPT")
    batch = Batch(varying, next(iter(varying.train_loader_x)))
    varying.frozen_answers(batch)
    assert not varying.cached


def test_capt_refuses_a_kl_attack_from_the_clean_image(white_box, run):
    code, _, err = run(white_box("CAPT", TRAINER__CAPT__INNER="kl", ATTACK__TRAIN__START="zero"))
    assert code == 2 and "exactly 0" in err


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"BETA": 0.25},
        {"TEMPERATURE": 3.0},
        {"FEEDBACK": 0.5},
        {"FEEDBACK": 0.0},
        {"TEACHER": "zero_shot"},
        {"INNER": "kl"},
    ],
)
def test_apd_switches_reach_the_loss(build, keys):
    trainer = build("APD", **own("APD", keys))
    with torch.no_grad():  # the teacher leaves its start, which is the student's
        for value in trainer.trained.parameters():
            value += 0.1 * torch.randn_like(value)
    seen = Batch(trainer, next(iter(trainer.train_loader_x)))
    loss, _ = trainer.loss(seen)
    adv, taught = seen.forward_attacked().logits, trainer.teach(seen.images)  # (B, K) each
    beta, t = keys.get("BETA", 0.5), keys.get("TEMPERATURE", 1.0)

    def ce(logits):
        return -logits.log_softmax(1)[range(len(adv)), seen.labels]

    def kl(p, q):
        return (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1)

    expected = (1 - beta) * ce(adv) + beta * t**2 * kl(taught / t, adv / t)
    if "TEACHER" not in keys:
        expected = expected + ce(taught) + keys.get("FEEDBACK", 1.0) * kl(adv, taught)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-4, atol=1e-5)
    assert trainer.train_threat()["objective"] == keys.get("INNER", "ce")


@pytest.mark.parametrize("teacher", ["online", "offline", "zero_shot"])
def test_apd_teachers(white_box, run, tmp_path, teacher):
    keys = {"TRAINER__APD__TEACHER": teacher, "TRAINER__APD__TEACHER_EPOCHS": 2}
    code, out, err = run(white_box("APD", **keys))
    assert code == 0, err
    state = torch.load(tmp_path / "run/prompt_learner/model.pth.tar-1", weights_only=True)
    owners = {key.partition(".")[0] for key in state["state_dict"]}
    assert owners == ({"student", "teacher"} if teacher == "online" else {"student"})
    assert read_record(tmp_path / "run" / "record.json")["prompt_parameters"] == TRAINED["APD"]
    assert out.count("teacher epoch [") == (2 if teacher == "offline" else 0)
    file = tmp_path / "run" / "teacher" / "model.pth.tar-2"
    assert file.is_file() == (teacher == "offline")
    if teacher == "offline":  # a run that goes on does not tune its teacher again
        (tmp_path / "run" / "record.json").unlink()
        code, out, err = run(white_box("APD", **keys))
        assert code == 0 and "teacher epoch [" not in out, err


def test_apd_goes_on_with_a_teacher_that_was_cut(white_box, run, tmp_path, monkeypatch):
    from advprompt.apd import APD

    keys = {"TRAINER__APD__TEACHER": "offline", "TRAINER__APD__TEACHER_EPOCHS": 4}
    assert run(white_box("APD", out="whole", **keys))[0] == 0
    teach, calls = APD.teach, []

    def stop_in_epoch_4(self, pixels):  # three batches each
        calls.append(len(pixels))
        if len(calls) == 3 * 3 + 2:
            raise KeyboardInterrupt
        return teach(self, pixels)

    monkeypatch.setattr(APD, "teach", stop_in_epoch_4)
    assert run(white_box("APD", out="cut", **keys))[0] == 130
    monkeypatch.setattr(APD, "teach", teach)
    torch.manual_seed(99)  # whatever the state of the generators is
    code, out, err = run(white_box("APD", out="cut", **keys))
    assert code == 0 and "Resuming teacher" in out and "teacher epoch [3/4]" in out, err
    assert "teacher epoch [2/4]" not in out
    for file in ("teacher/model.pth.tar-4", "prompt_learner/model.pth.tar-1"):
        whole, cut = (
            torch.load(tmp_path / d / file, weights_only=True)["state_dict"]
            for d in ("whole", "cut")
        )
        assert all(torch.equal(value, cut[key]) for key, value in whole.items())


def test_apd_names_a_teacher_that_diverges(white_box, run, tmp_path, monkeypatch):
    from advprompt.apd import APD

    teach = APD.teach
    monkeypatch.setattr(APD, "teach", lambda self, pixels: teach(self, pixels) * math.nan)
    code, _, err = run(white_box("APD", TRAINER__APD__TEACHER="offline"))
    assert code == 2 and "teacher's loss is nan at epoch 1" in err
    assert not (tmp_path / "run" / "teacher").exists()


# --- the registry -------------------------------------------------------------------------------


def test_two_trainers_of_one_name_are_refused():
    """What a fork registers itself takes the name: tests/test_dropin.py."""
    from dassl.engine import TRAINER_REGISTRY

    from advprompt.engine.trainer import RobustTrainer, register

    ours = TRAINER_REGISTRY.get("CoOp")
    with pytest.raises(UserError, match="'CoOp' of .* has the name of one in .*baselines.coop"):
        register(type("CoOp", (RobustTrainer,), {"__module__": "advprompt.custom.mine"}))
    assert TRAINER_REGISTRY.get("CoOp") is ours and METHODS["CoOp"] is ours
