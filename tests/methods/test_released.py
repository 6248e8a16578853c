"""Checkpoints of public code: names, shapes and objects as its ``save_model`` writes them.

The files are made here; against the public code itself: tests/hosts/test_released.py.
"""

from __future__ import annotations

import json
import re

import pytest
import torch
from PIL import Image
from toy import toy_clip, toy_state_dict

import advprompt
from advprompt.prompting import PromptedCLIP, PromptSpec
from advprompt.utils.errors import UserError
from tests.conftest import NAMES, ok, refusal
from tests.world import Payload

PETS = "a photo of a {}, a type of pet."
BOTH = {"text": 2, "vision": 2, "text_depth": 2, "vision_depth": 2, "text_init": "a photo of a"}
BACK = {"coupling": "vision_to_text", "first_coupling": "text_to_vision", "text_init": PETS}
JOINT = "MultiModalPromptLearner"
KINDS = {  # public trainer -> its prompts, its folder
    "CoOp": (PromptSpec(text=4), "prompt_learner"),
    "APT": (PromptSpec(text=4, csc=True), "prompt_learner"),
    "MaPLe": (PromptSpec(**BOTH, coupling="text_to_vision"), JOINT),
    "AdvIVLP": (PromptSpec(**BOTH), "VLPromptLearner"),
    "AdvVPT": (PromptSpec(vision=2, vision_depth=2), "prompt_learner"),
    "FAP": (PromptSpec(**BOTH | BACK), JOINT),
}
KEYS = {
    "CoOp": {"TRAINER__COOP__N_CTX": 4},
    "APT": {"TRAINER__ADVCOOP__N_CTX": 4, "TRAINER__ADVCOOP__CSC": True},
}


def public(model: PromptedCLIP, whole: bool) -> dict[str, torch.Tensor]:
    """Return what the public code calls these values, with its fixed tokens and its CLIP."""
    clip, spec, learner, outside = model.clip, model.spec, {}, {}
    text, vision = (list(getattr(model, f"{x}_prompts", ())) for x in ("text", "vision"))
    if spec.text:
        words = spec.text_init or " ".join(["X"] * spec.text)
        prompts = [f"{words} {name.replace('_', ' ')}." for name in NAMES]
        embedded = clip.embed_tokens(clip.tokenize(prompts))  # (K, 77, d_t)
        learner = {"ctx": text[0], "token_prefix": embedded[:, :1]}
        learner["token_suffix"] = embedded[:, 1 + spec.text :]
    if spec.coupling == "none" and whole:
        outside = {"image_encoder.VPT": vision[0]}
        for tower, vectors in (("text", text), ("image", vision)):
            for i, value in enumerate(vectors[1:], 1):
                outside[f"{tower}_encoder.transformer.resblocks.{i}.VPT_shallow"] = value
    elif whole:
        deep, tower = (vision, "image") if vision else (text[1:], "text")
        learner |= {f"compound_prompts_{tower}.{i}": value for i, value in enumerate(deep)}
        for i, linear in enumerate(model.projections):
            own = f"compound_prompt_projections.{i - 1}" if i else "proj"
            learner |= {f"{own}.weight": linear.weight, f"{own}.bias": linear.bias}
    if not whole:
        return learner
    outside |= {f"prompt_learner.{name}": value for name, value in learner.items()}
    for name, value in toy_state_dict().items():
        if name != "token_embedding.weight":
            head = "" if name == "logit_scale" else "text_encoder."
            head, name = ("image_encoder.", name[7:]) if name[:7] == "visual." else (head, name)
            outside[head + name] = value.half()
    return outside


@pytest.fixture
def released(tmp_path):
    """Write a run of a public trainer as Dassl does: ``released("MaPLe") -> folder, model``."""

    def write(kind: str, change=None, spec=None, successor=None):
        torch.manual_seed(0)
        own, learner = KINDS[kind]
        model = PromptedCLIP(toy_clip(), list(NAMES), spec or own).eval()
        for value in model.parameters():  # MaPLe saves a projection in half precision
            value.data = (0.3 * torch.randn_like(value)).half().float()
        state = public(model, kind not in ("CoOp", "APT"))
        state = {name: value.detach().clone() for name, value in state.items()}
        if change:
            change(state)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        successor = successor or torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
        whole = {"state_dict": state, "epoch": 5, "optimizer": optimizer.state_dict()}
        whole |= {"scheduler": {"last_epoch": 5, "successor": successor}, "val_result": None}
        folder = tmp_path / f"their {kind}"
        (folder / learner).mkdir(parents=True)
        torch.save(whole, folder / learner / "model.pth.tar-5")
        (folder / learner / "checkpoint").write_text("model.pth.tar-5\n")
        return folder, model

    return write


@pytest.fixture
def tested(white_box, run):
    """Run --eval-only of a public trainer's run: ``tested(folder, "APT") -> code, out, err``."""

    def call(folder, trainer: str, *words: str, **keys):
        ours = {"APT": "AdvCoOp"}.get(trainer, trainer)
        words = white_box(ours, *(words or ("--eval-only", "--model-dir", str(folder))), **keys)
        words[words.index("--trainer") + 1] = trainer
        return run(words)

    return call


def same_logits(model, other) -> None:
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(images), other(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_load_gives_the_same_logits(released, toy_file, kind):
    folder, model = released(kind)
    options = {"trainer": kind, "classnames": NAMES, "backbone": f"file:{toy_file}"}
    mine = advprompt.load(folder, **options)
    same_logits(mine, model)
    assert mine.card["training"]["shots"] is None and mine.card["training"]["epoch"] == 5
    file = next(folder.rglob("model.pth.tar-5"))
    assert torch.equal(advprompt.load(file, **options).texts, mine.texts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_tested_and_its_training_is_unknown(released, tested, tmp_path, kind):
    folder, model = released(kind)
    out = ok(tested(folder, kind, **KEYS.get(kind, {})))
    assert ("as in the public code" in out) == (kind == "AdvVPT")
    assert ("THEIR_TEXT is True" in out) == (kind == "FAP")
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert {p.name for p in folder.iterdir()} == {KINDS[kind][1]}  # nothing of ours is in it
    unknown = ("shots", "epochs", "train_threat", "source", "trained")
    assert all(record[key] is None for key in unknown) and record["seed"] == -1
    config = record["config"]
    assert not any(key.startswith(("OPTIM.", "ATTACK.TRAIN.", "DATASET.NUM_")) for key in config)
    assert not any(key.endswith("AT_LOSS") for key in config)
    assert config["MODEL.RELEASED_EPOCH"] == 5
    template = model.spec.template if kind == "AdvVPT" else PETS
    assert config["MODEL.RELEASED_PROMPTS.template"] == template
    assert "skipped" in tested(folder, kind, **KEYS.get(kind, {}))[1]


def test_a_test_counts_what_the_model_gets_right(released, tested, tmp_path, pets):
    folder, model = released("FAP")
    assert tested(folder, "FAP")[0] == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    split = json.loads((pets / "oxford_pets" / "split_zhou_OxfordPets.json").read_text())["test"]
    right = 0
    for file, label, _ in split:
        image = Image.open(pets / "oxford_pets" / "images" / file).convert("RGB")
        size = image.resize((32, 32), Image.Resampling.BICUBIC)
        pixels = (
            torch.tensor(list(size.get_flattened_data())).view(1, 32, 32, 3).permute(0, 3, 1, 2)
        )
        right += int(model(pixels / 255).argmax(1)) == label
    assert record["clean"] == {"n": len(split), "correct": right}


def other_words(state):
    embedded = toy_clip().embed_tokens(toy_clip().tokenize(["one photo with cat."] * 3))
    state["prompt_learner.token_suffix"] = embedded[:, 3:]


def renamed(new: str):
    old = "prompt_learner.compound_prompts_text.0"
    return lambda state: state.update({f"prompt_learner.{new}": state.pop(old)})


def negative(name: str):
    return lambda state: state.update({name: -state[name]})


@pytest.mark.parametrize(
    ("kind", "change", "trainer", "keys", "said"),
    [
        ("CoOp", None, "CoOp", {"TRAINER__COOP__N_CTX": 5}, "with TRAINER.COOP.N_CTX 4"),
        ("APT", None, "APT", {"TRAINER__ADVCOOP__N_CTX": 4}, "with TRAINER.ADVCOOP.CSC True"),
        ("MaPLe", None, "MaPLe", {"TRAINER__MAPLE__PROMPT_DEPTH": 1}, "MAPLE.PROMPT_DEPTH 2"),
        ("MaPLe", None, "CoOp", {}, "the prompts of MaPLe or AdvMaPLe, not of CoOp"),
        ("AdvVPT", None, "CAPT", {}, "the prompts of AdvVPT, not of CAPT"),
        ("CoOp", negative("token_prefix"), "CoOp", KEYS["CoOp"], "another CLIP .* start token"),
        ("MaPLe", negative("image_encoder.proj"), "MaPLe", {}, "another CLIP .* visual.proj"),
        ("MaPLe", other_words, "MaPLe", {}, "set CTX_INIT"),
        ("MaPLe", None, "MaPLe", {"TRAINER__MAPLE__CTX_INIT": ""}, "words of 'a photo of a'"),
        ("MaPLe", renamed("router"), "MaPLe", {}, "foreign: it has 'prompt_learner.router'"),
        ("MaPLe", renamed("compound_prompts_text.3"), "MaPLe", {}, "layer 1 is missing"),
        ("CoOp", lambda state: state.pop("token_suffix"), "CoOp", KEYS["CoOp"], "token_suffix"),
    ],
)
def test_what_does_not_fit_is_said(released, tested, kind, change, trainer, keys, said):
    folder, _ = released(kind, change)
    sentence = refusal(tested(folder, trainer, **keys))
    assert re.search(said, sentence) and str(folder) in sentence


def test_other_classes_widths_and_depths(released, toy_file, tmp_path):
    folder, _ = released("APT")
    for names in (NAMES[:2], NAMES[::-1]):
        with pytest.raises(UserError, match="of its own 3 classes, not of these"):
            options = {"classnames": names, "backbone": f"file:{toy_file}"}
            advprompt.load(folder, trainer="APT", **options)
    with pytest.raises(UserError, match="names neither"):
        advprompt.load(folder, trainer="APT")
    folder, _ = released("MaPLe")
    with pytest.raises(UserError, match="not of MaPle; give MaPLe as the trainer"):
        advprompt.load(folder, trainer="MaPle", classnames=NAMES, backbone=f"file:{toy_file}")
    sizes = {"another CLIP": {"text_width": 128}, "beyond the 1 blocks": {"text_layers": 1}}
    for said, size in (sizes | {"in_proj_bias differs": {"vision_width": 128}}).items():
        torch.save(toy_state_dict(**size), tmp_path / "other.pt")
        with pytest.raises(UserError, match=said):
            options = {"classnames": NAMES, "backbone": f"file:{tmp_path / 'other.pt'}"}
            advprompt.load(folder, trainer="MaPLe", **options)


def test_prompts_that_no_setting_describes_are_served_by_load(released, tested, toy_file):
    """AdvIVLP's code counts vectors and layers of each tower by itself."""
    folder, model = released("AdvIVLP", spec=PromptSpec(**BOTH | {"vision": 3}))
    assert "advprompt.load" in refusal(tested(folder, "AdvIVLP"))
    options = {"classnames": NAMES, "backbone": f"file:{toy_file}"}
    same_logits(advprompt.load(folder, trainer="AdvIVLP", **options), model)


def test_nothing_in_a_schedule_is_executed_and_none_is_resumed(released, tested, tmp_path):
    folder, _ = released("CoOp", successor=Payload(tmp_path / "executed"))
    assert "could execute code" in refusal(tested(folder, "CoOp", **KEYS["CoOp"]))
    assert not (tmp_path / "executed").exists()
    folder, _ = released("AdvVPT")
    resumed = tested(folder, "AdvVPT", "--resume", str(folder))
    assert "does not say how it was trained" in refusal(resumed)
