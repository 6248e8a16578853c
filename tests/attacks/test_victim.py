"""The victim interface: whatever turns pixels into logits can be evaluated."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from advprompt.attacks import AttackSpec
from advprompt.evaluation.evaluator import Evaluation
from advprompt.evaluation.samples import ImageList
from advprompt.evaluation.victim import TrainerVictim, Victim
from advprompt.records import read_record
from advprompt.utils.errors import UserError

PGD = AttackSpec("pgd", 32 / 255, 8 / 255, 5, 1, "uniform", "ce", "end_to_end")


class Redness(Victim):
    """Answers which of two channels is brighter."""

    name, device, classnames = "Redness", torch.device("cpu"), ["red", "green"]

    def logits(self, pixels, prec="fp32"):
        return 9 * pixels.mean(dim=(2, 3))[:, :2]

    def digest(self):
        return "redness"


def to_tensor(image):
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(4, 4, 3) / 255


def preprocess(image):
    return to_tensor(image).permute(2, 0, 1)


preprocess.key = "as it is"


@pytest.fixture
def evaluation(tmp_path):
    items = []
    for i, (red, label) in enumerate([(220, 0), (140, 0), (20, 1), (120, 1), (255, 1)]):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (4, 4), (red, 130, 0)).save(path)
        items.append((path, label))
    images = ImageList(items, preprocess)
    return Evaluation(Redness(), images, folder=tmp_path, cache=tmp_path, batch_size=2)


def test_a_model_of_three_lines_is_attacked_and_recorded(evaluation):
    logits = evaluation.clean()
    assert logits.shape == (5, 2) and evaluation.clean_right.tolist() == [True] * 4 + [False]
    entry = evaluation.attack(PGD)
    assert (entry["n"], entry["correct"], entry["warnings"]) == (5, 2, [])  # those far apart
    assert evaluation.outcomes[0][2].tolist() == [True, False, True, False, False]
    shown = evaluation.examples(PGD, 3)
    assert shown["labels"].tolist() == [0, 1, 1] and shown["classnames"] == ["red", "green"]
    whole = replace(PGD, name="autoattack", alpha=None, start=None, objective=None, steps=2)
    moved = evaluation.examples(whole, 3)["adversarial"] - shown["clean"]
    assert 0 < moved.abs().max() <= 32 / 255 + 1e-6


@pytest.mark.parametrize(("probes", "probed"), [(0, None), (2, 2), (9, 4)])
def test_a_model_of_two_classes_is_probed(evaluation, probes, probed):
    evaluation.probes = probes
    evaluation.clean()
    assert evaluation.attack(PGD)["checks"].get("probed") == probed


def test_nan_is_an_error_and_never_a_prediction(evaluation, monkeypatch):
    evaluation.clean()
    one = torch.tensor([0.5, torch.nan])  # of one class, on the second image of a batch
    few = lambda self, x, prec="": torch.stack([one[:1].expand(2), one])[: len(x)]  # noqa: E731
    monkeypatch.setattr(Redness, "logits", few)
    with pytest.raises(UserError, match="Redness answers NaN, which is not a prediction"):
        evaluation.clean()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"objective": "embedding_kl", "target": "embedding"}, "no CLIP inside"),
        ({"target": "frozen_prompt"}, "no CLIP inside"),
        ({"objective": "embedding_kl"}, "no image features"),
    ],
)
def test_what_a_model_does_not_offer_is_named(evaluation, changes, words):
    evaluation.clean()
    spec = AttackSpec(**PGD.facts() | changes)
    with pytest.raises(UserError, match=f"Redness.*{words}.*use"):
        evaluation.attack(spec)


def test_the_digest_of_a_trainer_changes_with_its_prompts(build):
    trainer = build("AdvCoOp")
    trainer.set_model_mode("eval")
    digests = []
    for _ in range(2):
        victim = TrainerVictim(trainer)
        victim.prepare()
        digests.append(victim.digest())
        with torch.no_grad():
            next(iter(trainer.trained.parameters())).add_(1e-3)
    assert digests[0] != digests[1]
    pixels = torch.rand(2, 3, 32, 32, requires_grad=True)
    logits = victim.logits(pixels)
    assert logits.shape == (2, len(victim.classnames))
    assert torch.autograd.grad(logits.sum(), pixels)[0].abs().sum() > 0


# --- image features of its own -------------------------------------------------------------------

TRANSFER = AttackSpec("pgd", 16 / 255, 4 / 255, 4, 1, "uniform", "embedding_kl", "embedding")


def negative(self, pixels):
    return self.clip.encode_image(1 - pixels)


def test_shared_features_are_compared_with_the_models_own(build, tmp_path, monkeypatch, capsys):
    found = []
    for _ in range(2):
        trainer = build("CoOp")
        assert trainer.frozen_image_tower
        trainer.set_model_mode("eval")
        images = ImageList(trainer.dm.dataset.test, trainer.preprocess)
        where = {"folder": tmp_path / "u", "cache": tmp_path / "c", "batch_size": 5}
        test = Evaluation(TrainerVictim(trainer), images, **where)
        clean, _ = test.clean(), test.attack(TRANSFER)
        made = []  # the attack's images, which no prompt has a part in
        for where, pixels in test.pixels(list(range(len(images))), ""):
            result = test.attacker.run(TRANSFER, pixels, test._seeds(where), test.labels[where])
            made.append(result.images)
        with torch.no_grad():
            scores = trainer.image_features(torch.cat(made)) @ trainer.text_features().t()
            right = scores.argmax(1) == test.labels
            logits = torch.cat([test.logits(x) for _, x in test.pixels(range(len(images)), "")])
        torch.testing.assert_close(clean, logits, atol=1e-3, rtol=0)
        assert torch.equal(test.outcomes[0][2], right & test.clean_right)
        found.append((clean, trainer.frozen_image_tower, capsys.readouterr().out))
        monkeypatch.setattr(type(trainer), "image_features", negative)
    (plain, shared, quiet), (inverted, kept, note) = found
    assert (shared, kept) == (True, False) and not torch.allclose(plain, inverted, atol=1)
    assert "CoOp has image features of its own" in note and "of its own" not in quiet


def test_prompts_tuned_on_a_bank_are_chosen_and_tested_on_their_own_features(
    run, arguments, tmp_path, monkeypatch
):
    from advprompt.advpt import AdvPT

    monkeypatch.setattr(AdvPT, "image_features", negative)
    keys = {"TEST__FINAL_MODEL": "best_val", "DATASET__NUM_SHOTS": 2}
    records = []
    for name, check in (("seen", TrainerVictim.check_tower), ("told", never_shared)):
        monkeypatch.setattr(TrainerVictim, "check_tower", check)
        code, out, err = run(arguments("AdvPT", out=name, **keys))
        assert code == 0, err
        assert out.count("image features of its own") == (name == "seen")
        records.append(read_record(tmp_path / name / "record.json"))
    seen, told = records
    assert seen["clean"] == told["clean"] and seen["prompts_sha256"] == told["prompts_sha256"]
    assert [a["correct"] for a in seen["attacks"]] == [a["correct"] for a in told["attacks"]]


def never_shared(self, images):
    self.frozen_image_tower = self.trainer.frozen_image_tower = False
