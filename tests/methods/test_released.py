"""Checkpoints of public code: names, shapes and objects as its ``save_model`` writes them.

The files are made here; against the public code itself: tests/hosts/test_released.py.
"""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from toy import toy_clip, toy_state_dict

import advprompt
from advprompt.prompting import PromptedCLIP, PromptSpec
from advprompt.utils.errors import UserError
from tests.conftest import NAMES, only_error

PETS = "a photo of a {}, a type of pet."
BOTH = {"text": 2, "vision": 2, "text_depth": 2, "vision_depth": 2}
WORDS = {"text_init": "a photo of a"}
BACK = {"coupling": "vision_to_text", "first_coupling": "text_to_vision", "text_init": PETS}
KINDS = {  # as the public trainers have them
    "CoOp": PromptSpec(text=4),
    "APT": PromptSpec(text=4, csc=True),
    "MaPLe": PromptSpec(**BOTH, **WORDS, coupling="text_to_vision"),
    "AdvIVLP": PromptSpec(**BOTH, **WORDS),
    "AdvVPT": PromptSpec(vision=2, vision_depth=2),
    "FAP": PromptSpec(**BOTH, **BACK),
}
FOLDERS = {"MaPLe": "MultiModalPromptLearner", "FAP": "MultiModalPromptLearner"}
FOLDERS |= {"AdvIVLP": "VLPromptLearner"}
KEYS = {
    "CoOp": {"TRAINER__COOP__N_CTX": 4},
    "APT": {"TRAINER__ADVCOOP__N_CTX": 4, "TRAINER__ADVCOOP__CSC": True},
}


def made(kind: str, seed: int = 0) -> PromptedCLIP:
    """Return a model with random values, whose text is that of the public trainer."""
    model = PromptedCLIP(toy_clip(), list(NAMES), KINDS[kind])
    torch.manual_seed(seed)
    for value in model.parameters():
        value.data = 0.3 * torch.randn_like(value)
    return model.eval()


def public(kind: str, model: PromptedCLIP, names=NAMES) -> dict[str, torch.Tensor]:
    """Return what the public code calls these values, with its fixed tokens and its CLIP."""
    clip, spec, learner, blocks = model.clip, model.spec, {}, {}
    text, vision = (getattr(model, f"{x}_prompts", ()) for x in ("text", "vision"))
    if spec.text:
        learner["ctx"] = text[0]
        prompts = [f"{' '.join(['X'] * spec.text)} {name.replace('_', ' ')}." for name in names]
        if spec.text_init:
            prompts = [f"{spec.text_init} {name.replace('_', ' ')}." for name in names]
        embedded = clip.embed_tokens(clip.tokenize(prompts))  # (K, 77, d_t)
        learner |= {"token_prefix": embedded[:, :1], "token_suffix": embedded[:, 1 + spec.text :]}
    if spec.coupling == "none":
        blocks = (
            {f"text_encoder.transformer.resblocks.{i}.VPT_shallow": text[i] for i in (1,)}
            if (spec.text_depth > 1)
            else {}
        )
        if spec.vision:
            blocks |= {"image_encoder.VPT": vision[0]}
            blocks |= {"image_encoder.transformer.resblocks.1.VPT_shallow": vision[1]}
    else:
        deep, name = (vision, "image") if len(vision) else (text[1:], "text")
        learner |= {f"compound_prompts_{name}.{i}": value for i, value in enumerate(deep)}
        for key, value in model.projections.state_dict().items():
            i, part = key.split(".")
            own = "proj" if i == "0" else f"compound_prompt_projections.{int(i) - 1}"
            learner[f"{own}.{part}"] = value.half().float()
    if kind in ("CoOp", "APT"):
        return learner
    clip_values = {
        name.replace("visual.", "image_encoder.", 1)
        if name.startswith("visual.")
        else name
        if name == "logit_scale"
        else f"text_encoder.{name}": value.half()
        for name, value in toy_state_dict().items()
        if name != "token_embedding.weight"
    }
    return (
        {f"prompt_learner.{name}": value for name, value in learner.items()} | blocks | clip_values
    )


def save(folder, state: dict, *, successor=None):
    """Write a checkpoint as Dassl does: the warm-up's state holds the main schedule, pickled."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    main = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    schedule = {"last_epoch": 5, "cons_lr": 1e-5, "successor": successor or main}
    folder.mkdir(parents=True)
    state = {key: value.detach().clone() for key, value in state.items()}
    whole = {"state_dict": state, "epoch": 5, "optimizer": optimizer.state_dict()}
    torch.save(whole | {"scheduler": schedule, "val_result": None}, folder / "model.pth.tar-5")
    (folder / "checkpoint").write_text("model.pth.tar-5\n")
    return folder / "model.pth.tar-5"


@pytest.fixture
def released(tmp_path):
    """Write a run of a public trainer: ``released("MaPLe") -> (its folder, the model)``."""

    def write(kind: str, change=lambda state: None, **options):
        model, folder = made(kind), tmp_path / f"their {kind}"
        if model.spec.coupling != "none":  # saved in half precision
            for value in model.projections.parameters():
                value.data = value.data.half().float()
        state = public(kind, model)
        change(state)
        save(folder / FOLDERS.get(kind, "prompt_learner"), state, **options)
        return folder, model

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_load_gives_the_same_logits(released, toy_file, kind):
    folder, model = released(kind)
    options = {"trainer": kind, "classnames": NAMES, "backbone": f"file:{toy_file}"}
    mine = advprompt.load(folder, **options)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(mine.logits(images), model(images), atol=1e-4, rtol=0)
    assert mine.card["training"]["shots"] is None and mine.card["training"]["epoch"] == 5
    file = next(folder.rglob("model.pth.tar-5"))
    assert torch.equal(advprompt.load(file, **options).texts, mine.texts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_tested_and_its_training_is_unknown(released, white_box, run, kind):
    folder, model = released(kind)
    ours = {"APT": "AdvCoOp"}.get(kind, kind)
    words = white_box(ours, "--eval-only", "--model-dir", str(folder), out="", **KEYS.get(kind, {}))
    words[words.index("--output-dir") : words.index("--output-dir") + 2] = []
    words[words.index("--trainer") + 1] = kind
    code, out, err = run(words)
    assert code == 0, err
    (path,) = folder.glob("tests/*/record.json")
    record = json.loads(path.read_text())
    assert record["trainer"] == ours and record["attacks"]
    unknown = ("shots", "epochs", "train_threat", "source", "trained")
    assert all(record[key] is None for key in unknown) and record["seed"] == -1
    said = [
        k for k in record["config"] if k.startswith(("OPTIM.", "ATTACK.TRAIN.", "DATASET.NUM_"))
    ]
    assert not said and not any(key.endswith("AT_LOSS") for key in record["config"])
    assert record["config"]["MODEL.RELEASED_EPOCH"] == 5
    assert ("the public code" in out) == (kind == "AdvVPT")
    assert ("the authors' code, THEIR_TEXT is True" in out) == (kind == "FAP")
    assert "skipped" in run(words)[1]


def test_a_test_counts_what_the_model_gets_right(released, white_box, run, tmp_path):
    folder, model = released("FAP")
    words = white_box("FAP", "--eval-only", "--model-dir", str(folder))
    assert run(words)[0] == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    from advprompt.cli import train
    from advprompt.config.keys import METHODS

    trainer = METHODS["FAP"](train.build_cfg(words))
    right = 0
    for item in trainer.test_images:
        from PIL import Image

        pixels = trainer.preprocess(Image.open(item.impath).convert("RGB"))[None]
        right += int(model(pixels).argmax(1)) == item.label
    assert record["clean"] == {"n": len(trainer.test_images), "correct": right}


def rename(old: str, new: str):
    return lambda state: state.update({new: state.pop(old)})


def other_start(state):
    state["token_prefix"] += 0.1


def other_tower(state):
    state["image_encoder.proj"] = -state["image_encoder.proj"]


def other_words(state):
    embedded = toy_clip().embed_tokens(toy_clip().tokenize(["one photo with cat."] * 3))
    state["prompt_learner.token_suffix"] = embedded[:, 3:]


WRONG = [  # kind, change of the file, trainer, settings, what is said
    ("CoOp", None, "CoOp", {"TRAINER__COOP__N_CTX": 5}, "with TRAINER.COOP.N_CTX 4"),
    ("APT", None, "APT", {"TRAINER__ADVCOOP__N_CTX": 4}, "with TRAINER.ADVCOOP.CSC True"),
    ("MaPLe", None, "MaPLe", {"TRAINER__MAPLE__PROMPT_DEPTH": 1}, "TRAINER.MAPLE.PROMPT_DEPTH 2"),
    ("MaPLe", None, "CoOp", {}, "the prompts of MaPLe or AdvMaPLe, not of CoOp"),
    ("AdvVPT", None, "CAPT", {}, "the prompts of AdvVPT, not of CAPT"),
    ("CoOp", other_start, "CoOp", KEYS["CoOp"], "another CLIP .* start token differs"),
    ("MaPLe", other_tower, "MaPLe", {}, "another CLIP .* visual.proj differs"),
    ("MaPLe", other_words, "MaPLe", {}, "set CTX_INIT"),
    ("MaPLe", None, "MaPLe", {"TRAINER__MAPLE__CTX_INIT": ""}, "the words of 'a photo of a'"),
    (
        "MaPLe",
        rename("prompt_learner.compound_prompts_text.0", "prompt_learner.router.weight"),
        "MaPLe",
        {},
        "foreign: it has 'prompt_learner.router.weight'",
    ),
    (
        "MaPLe",
        rename("prompt_learner.compound_prompts_text.0", "prompt_learner.compound_prompts_text.3"),
        "MaPLe",
        {},
        r"damaged: its text prompts are of layers \[0, 4\]",
    ),
    ("CoOp", lambda state: state.pop("token_suffix"), "CoOp", KEYS["CoOp"], "no 'token_suffix'"),
]


@pytest.mark.parametrize(("kind", "change", "trainer", "keys", "said"), WRONG)
def test_what_does_not_fit_is_said(released, white_box, run, kind, change, trainer, keys, said):
    folder, _ = released(kind, change or (lambda state: None))
    ours = {"APT": "AdvCoOp"}.get(trainer, trainer)
    words = white_box(ours, "--eval-only", "--model-dir", str(folder), **keys)
    words[words.index("--trainer") + 1] = trainer
    sentence = only_error(*run(words)[::2])
    assert re.search(said, sentence), sentence
    assert str(folder) in sentence


def test_other_classes_widths_and_depths(released, toy_file, tmp_path):
    options = {"trainer": "APT", "backbone": f"file:{toy_file}"}
    folder, _ = released("APT")
    for names in (NAMES[:2], NAMES[::-1]):
        with pytest.raises(UserError, match="of 3 classes, and they are not these"):
            advprompt.load(folder, classnames=names, **options)
    with pytest.raises(UserError, match="neither its classes nor its backbone"):
        advprompt.load(folder, trainer="APT")
    with pytest.raises(UserError, match="trainer is 'MaPle'.*MaPLe"):
        advprompt.load(folder, trainer="MaPle", classnames=NAMES)
    folder, _ = released("MaPLe")
    options = {"trainer": "MaPLe", "classnames": NAMES}
    sizes = {
        "128 as the width|64 as the width": {"text_width": 128, "vision_width": 64},
        "64 as the width of the visual vectors": {"vision_width": 128},
        "for 2 layers, but the text tower": {"text_layers": 1},
    }
    for said, size in sizes.items():
        torch.save(toy_state_dict(**size), tmp_path / "other.pt")
        with pytest.raises(UserError, match=said):
            advprompt.load(folder, backbone=f"file:{tmp_path / 'other.pt'}", **options)


def test_prompts_that_no_setting_describes_are_served_by_load(toy_file, tmp_path, white_box, run):
    """AdvIVLP's code counts vectors and layers of each tower by itself."""
    spec = PromptSpec(text=2, text_depth=2, vision=3, vision_depth=2, **WORDS)
    model = PromptedCLIP(toy_clip(), list(NAMES), spec).eval()
    save(tmp_path / "their" / "VLPromptLearner", public("AdvIVLP", model))
    words = white_box("AdvIVLP", "--eval-only", "--model-dir", str(tmp_path / "their"))
    assert "advprompt.load" in only_error(*run(words)[::2])
    options = {"trainer": "AdvIVLP", "classnames": NAMES, "backbone": f"file:{toy_file}"}
    images = torch.rand(2, 3, 32, 32)
    mine = advprompt.load(tmp_path / "their", **options)
    with torch.no_grad():
        torch.testing.assert_close(mine.logits(images), model(images), atol=1e-4, rtol=0)


class Payload:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_schedule_is_executed(released, white_box, run, tmp_path):
    folder, _ = released("CoOp", successor=Payload(tmp_path / "executed"))
    words = white_box("CoOp", "--eval-only", "--model-dir", str(folder), **KEYS["CoOp"])
    assert "could execute code" in only_error(*run(words)[::2])
    assert not (tmp_path / "executed").exists()


def test_a_training_cannot_resume_from_it(released, white_box, run):
    folder, _ = released("CoOp")
    words = white_box("CoOp", "--resume", str(folder), **KEYS["CoOp"])
    assert "does not say how it was trained" in only_error(*run(words)[::2])
