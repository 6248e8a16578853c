"""Input defences inside an evaluation: what is attacked, what is scored, what the record says."""

import pytest
import torch

from advprompt.evaluation.evaluator import Evaluation
from advprompt.evaluation.samples import ImageList
from advprompt.evaluation.victim import TrainerVictim
from advprompt.records import read_record
from tests.conftest import only_error

TRANSFER = "{'EPS': 8, 'STEPS': 2, 'OBJECTIVE': 'embedding_kl', 'TARGET': 'embedding'}"
WHITE = "{'EPS': 8, 'ALPHA': 2, 'STEPS': 4}"
LIST = f"[{TRANSFER}, {WHITE}, {{'NAME': 'apgd-ce', 'EPS': 8, 'STEPS': 4}}]"


def record_of(run, argv, folder):
    code, out, err = run(argv)
    assert code == 0, err
    return read_record(folder / "run" / "record.json"), out


@pytest.mark.parametrize(
    ("adaptive", "views"), [("both", ["unseen", "seen"]), ("none", ["unseen"]), ("bpda", ["seen"])]
)
def test_attacks_stand_side_by_side(run, arguments, tmp_path, adaptive, views):
    keys = {"DEFENCE__NAME": "jpeg", "DEFENCE__QUALITY": 60, "DEFENCE__ADAPTIVE": adaptive}
    argv = arguments("AdvPT", ATTACK__TEST__LIST=LIST, OPTIM__MAX_EPOCH=1, **keys)
    record, out = record_of(run, argv, tmp_path)
    said = [a["defence"] for a in record["attacks"]]
    assert [s.split(", ")[-1 if "unseen" in s else -2].split()[0] for s in said] == [
        view for view in views for _ in range(3)
    ]
    assert all(s.startswith("jpeg, quality 60, ") for s in said)
    for entry in record["attacks"]:
        probed = "noise_stronger" in entry["checks"]
        seen = "seen by" in entry["defence"].replace("unseen", "")
        assert probed == (seen and entry["target"] == "end_to_end")
        assert entry["correct"] <= record["clean"]["correct"]


@pytest.fixture
def evaluation(build, tmp_path):
    trainer = build("AdvIVLP")
    trainer.set_model_mode("eval")

    def make(defence):
        made = Evaluation(
            TrainerVictim(trainer),
            ImageList(trainer.dm.dataset.test, trainer.preprocess),
            folder=tmp_path / "u",
            cache=tmp_path / "c",
            batch_size=4,
            defence=defence,
        )
        made.clean()
        return made

    return make


class Invert:
    """A defence that anyone can see at work: it turns an image into its negative."""

    name, random, differentiable = "invert", False, True
    calls = 0

    def __call__(self, images, seeds):
        Invert.calls += 1
        return 1 - images

    straight_through = __call__

    def describe(self):
        return {"name": self.name}


def test_what_is_scored_is_defended_and_what_is_attacked_is_as_told(evaluation):
    from advprompt.attacks import AttackSpec

    plain, inverted = evaluation(None), evaluation(Invert())
    pixels = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(inverted.logits(pixels), plain.logits(1 - pixels), atol=1e-4)
    spec = AttackSpec("pgd", 8 / 255, 2 / 255, 3, 1, "zero", "ce", "end_to_end")
    where, images = [0, 1, 2, 3], torch.rand(4, 3, 32, 32) * 0.5 + 0.25
    Invert.calls = 0
    unseen = inverted.run_attack(spec, where, images)
    assert Invert.calls == 0  # made without the defence
    assert torch.equal(unseen.images, plain.run_attack(spec, where, images).images)
    seen = inverted.run_attack(spec, where, images, seen=True)
    assert Invert.calls > 0
    mirrored = 1 - plain.run_attack(spec, where, 1 - images).images
    assert torch.allclose(seen.images, mirrored, atol=1e-4)


def test_only_the_answers_of_the_tested_model_count(evaluation):
    from advprompt.attacks import AttackSpec

    plain = evaluation(None)
    spec = AttackSpec("apgd-ce", 32 / 255, None, 5, 1, None, None, "frozen_prompt", drop=True)
    where = list(range(len(plain.images)))
    ((_, pixels),) = plain.pixels(where, "", len(where))
    result = plain.run_attack(spec, where, pixels)
    with torch.no_grad():
        right = plain.logits(result.images).argmax(1) == plain.labels
    assert torch.equal(plain.right_on(spec, result, where), right)
    assert (right & ~result.right).any()  # right says the hand-made prompt's model


def test_another_view_is_never_continued(evaluation):
    from advprompt.attacks import AttackSpec

    made = evaluation(Invert())
    spec = AttackSpec("pgd", 8 / 255, 2 / 255, 3, 1, "zero", "ce", "end_to_end")
    keys = {made._key(spec, seen, [0]) for seen in (False, True)}
    keys |= {evaluation(None)._key(spec, False, [0])}
    assert len(keys) == 3


def test_an_unknown_defence_is_refused(run, white_box, tmp_path):
    code, _, err = run(white_box("AdvIVLP", DEFENCE__NAME="jpg"))
    assert "'jpg'" in only_error(code, err) and "jpeg" in err
    assert not (tmp_path / "run").exists()
