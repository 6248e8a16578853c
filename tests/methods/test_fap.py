"""FAP: its loss from the formulas alone, and runs of before it followed its authors' scripts.

Against the authors' own code: tests/hosts/test_fap.py.
"""

from __future__ import annotations

import json

import openai_clip_reference as reference
import pytest
import torch
import torch.nn.functional as F
from toy import toy_state_dict

from advprompt.attacks.gradient import GradientAttack
from advprompt.backbone import tokens
from advprompt.cli import export
from advprompt.engine.batch import Batch
from advprompt.engine.zoo import load
from advprompt.records import read_record
from advprompt.report import tables
from tests.conftest import ok, only_error, refusal
from tests.make_records import make

from .test_prompted import plain_image, plain_text

LATER = {f"TRAINER.FAP.{k}" for k in ("FIRST_COUPLING", "INNER", "CTX_INIT", "THEIR_TEXT")}
OLD = {"TRAINER__FAP__FIRST_COUPLING": "same", "TRAINER__FAP__INNER": ""}


@pytest.mark.parametrize(
    ("keys", "words"),
    [({}, "of a"), ({"TRAINER__FAP__THEIR_TEXT": True}, "of a {}, a type of pet.")],
)
def test_the_loss_is_the_authors(build, monkeypatch, keys, words):
    oracle = reference.CLIP(toy_state_dict()).requires_grad_(False)
    oracle.load_state_dict(toy_state_dict())
    trainer = build("FAP", **keys)
    with torch.no_grad():  # vectors large enough to matter
        trainer.model.text_prompts += 0.2 * torch.randn_like(trainer.model.text_prompts)
        trainer.model.vision_prompts += 0.2 * torch.randn_like(trainer.model.vision_prompts)
    seen = Batch(trainer, next(iter(trainer.train_loader_x)))
    clean, eps, alpha = seen.images, 4 / 255, 2 / 255
    start = (clean + eps * (2 * torch.rand_like(clean) - 1)).clamp(0, 1)
    monkeypatch.setattr(GradientAttack, "start", lambda *args: start.clone())
    texts = plain_text(oracle, trainer.model, tokens.from_open_clip().encode(words))

    def answers(images):
        features = F.normalize(plain_image(oracle, trainer.model, images)[0], dim=-1)
        return features, 100 * features @ texts.T

    def kl(first, second):
        return (first.softmax(1) * (first.log_softmax(1) - second.log_softmax(1))).sum(1)

    z, logits = answers(clean)
    images = start
    for _ in range(2):
        images.requires_grad_()
        ascended = kl(logits.detach(), answers(images)[1]).sum()
        images = images.detach() + alpha * torch.autograd.grad(ascended, images)[0].sign()
        images = torch.minimum(torch.maximum(images, clean - eps), clean + eps).clamp(0, 1)
    found = seen.attack()
    assert ((found - images).abs() < 1e-6).float().mean() > 0.99  # a sign decides where it is 0
    seen.outputs["adv"] = seen.forward(found)
    z_adv, logits_adv = answers(found)
    expected = F.cross_entropy(logits, seen.labels)
    expected = expected + 1.5 * (kl(logits, logits_adv) * ((z * z_adv).sum(1) + 1)).mean()
    loss, _ = trainer.loss(seen)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    parameters = list(trainer.model.parameters())
    ours, plain = (torch.autograd.grad(x, parameters) for x in (loss, expected))
    for mine, theirs in zip(ours, plain, strict=True):
        assert theirs.any() and (mine - theirs).abs().max() < 1e-3 * theirs.abs().max()


def test_an_older_run_is_served_as_it_was_trained(white_box, run, tool, tmp_path, toy_file):
    """It was coupled vision to text in every layer, attacked as ATTACK.TRAIN says."""
    assert run(white_box("FAP", **OLD))[0] == 0
    folder = tmp_path / "run"
    file = folder / "prompt_learner" / "model.pth.tar-1"
    state = torch.load(file, weights_only=True)
    del state["advprompt"]["prompts"]["first_coupling"]
    torch.save(state, file)
    config = json.loads((folder / "config.json").read_text())
    assert config.keys() >= LATER
    (folder / "config.json").write_text(json.dumps({k: config[k] for k in config.keys() - LATER}))
    record = json.loads((folder / "record.json").read_text())
    record["config"] = {k: record["config"][k] for k in record["config"].keys() - LATER}
    (folder / "record.json").write_text(json.dumps(record))

    code, out, err = run(white_box("FAP", "--eval-only", "--model-dir", str(folder), out="again"))
    assert code == 0 and "the checkpoint was trained with" in out, err
    again = read_record(tmp_path / "again" / "record.json")
    assert again["clean"] == record["clean"]
    assert again["attacks"][0]["correct"] == record["attacks"][0]["correct"]
    assert again["config"]["TRAINER.FAP.FIRST_COUPLING"] == "same"
    assert again["train_threat"]["objective"] == "ce"

    # its folder is not taken for that of a run with today's defaults, but of the old ones
    assert "TRAINER.FAP.FIRST_COUPLING = 'same'" in refusal(run(white_box("FAP")))
    assert "skipped" in run(white_box("FAP", **OLD))[1]
    ok(tool(export.main, str(folder), "--out", tmp_path / "zoo"))
    served = load(tmp_path / "zoo", weights_dir=toy_file.parent)
    assert not hasattr(served.model, "text_prompts")


def test_a_start_at_zero_is_a_uniform_one(build):
    """KL is flat at the clean image, and the authors' attack starts uniformly."""
    assert build("FAP", ATTACK__TRAIN__START="zero").train_threat()["start"] == "uniform"
    keys = {"TRAINER__FAP__INNER": "ce", "ATTACK__TRAIN__START": "zero"}
    assert build("FAP", **keys).train_threat()["start"] == "zero"


def test_the_authors_text_serves_another_template(white_box, run, tmp_path):
    keys = {"TRAINER__FAP__THEIR_TEXT": True}
    assert run(white_box("FAP", **keys))[0] == 0
    load = ["--eval-only", "--model-dir", str(tmp_path / "run")]
    keys["DATASET__TEMPLATE"] = "a drawing of a {}, maybe."
    assert run(white_box("FAP", *load, out="again", **keys))[0] == 0
    keys["TRAINER__FAP__FIRST_COUPLING"] = "same"
    assert "FIRST_COUPLING is 'same'" in only_error(
        *run(white_box("FAP", out="other", **keys))[::2]
    )


def test_records_of_before_are_rows_of_their_own():
    now = {"INNER": "kl", "FIRST_COUPLING": "text_to_vision"}
    made = [make(trainer="FAP", config=config) for config in ({}, {"TRAINER": {"FAP": now}})]
    known = tables.known_settings(made)
    rows = [tables.empty_row(record, known) for record in made]
    assert tables.differing(rows) == ["TRAINER.FAP.FIRST_COUPLING", "TRAINER.FAP.INNER"]
    others = [tables.empty_row(record | {"trainer": "CAPT"}, known) for record in made]
    assert not tables.differing(others)
