"""Input defences inside an evaluation: what is attacked, what is scored, what the record says."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from advprompt.attacks import AttackSpec
from advprompt.defences.base import Defence
from advprompt.evaluation.evaluator import Evaluation, defence_order
from advprompt.evaluation.samples import ImageList
from advprompt.evaluation.victim import TrainerVictim, Victim
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
        assert probed == (
            "seen by" in entry["defence"].replace("unseen", "") and entry["target"] == "end_to_end"
        )
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


class Invert(Defence):
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


# --- what one answer decides ---------------------------------------------------------------------


class Redness(Victim):
    """Answers which of two channels is brighter."""

    name, device, classnames = "Redness", torch.device("cpu"), ["red", "green"]

    def logits(self, pixels, prec="fp32"):
        return 9 * pixels.mean(dim=(2, 3))[:, :2]

    def digest(self):
        return "redness"


class Flicker(Defence):
    """Raises or lowers the red of a whole image by chance: every other draw errs."""

    name, random, differentiable = "flicker", True, True

    def __call__(self, images, seeds):
        signs = [1 if seed % 2 else -1 for seed in seeds]
        change = torch.zeros_like(images)
        change[:, 0] = torch.tensor(signs)[:, None, None] * 40 / 255
        return images + change


class Backwards(Defence):
    """Does nothing, and its gradient leads the wrong way, as a bad stand-in may."""

    name, random, differentiable = "backwards", False, False

    def __call__(self, images, seeds):
        return images

    def straight_through(self, images, seeds):
        return 2 * images.detach() - images


def preprocess(image):
    red, green = image.getpixel((0, 0))[:2]
    return torch.tensor([red, green, 0]).view(3, 1, 1).expand(3, 4, 4) / 255


preprocess.key = "one colour"


@pytest.fixture
def guarded(tmp_path):
    """An evaluation of Redness on 40 reds, 20 to 29 levels above green, behind a defence."""
    items = []
    for i in range(40):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (4, 4), (120 + i + i % 10, 100 + i, 0)).save(path)
        items.append((path, 0))

    def make(defence, victim=None):
        images = ImageList(items, preprocess)
        where = {"folder": tmp_path / "u", "cache": tmp_path / "c", "batch_size": 16}
        made = Evaluation(victim or Redness(), images, defence=defence, eot=8, **where)
        made.clean()
        return made

    return make


PGD = AttackSpec("pgd", 40 / 255, 8 / 255, 8, 1, "uniform", "ce", "end_to_end", drop=True)
OTHERS = {"alpha": None, "start": None, "objective": None}
SPECS = [
    PGD,
    replace(PGD, restarts=3, drop=False),
    *(replace(PGD, name=n, **OTHERS) for n in ("apgd-ce", "apgd", "autoattack")),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.name}{spec.restarts}")
def test_no_draw_of_a_random_defence_decides(guarded, spec):
    """The first images on which draws err are not wrong in all; the last ones are."""
    made = guarded(Flicker())
    assert 10 < made.clean_right.sum() < 30
    entry = made.attack(spec, seen=True)
    assert (entry["correct"], entry["drop"]) == (0, False)


def test_a_random_victim_decides_nothing_by_one_answer_either(guarded):
    class Dice(Redness):
        random, calls = True, 0

        def logits(self, pixels, prec="fp32"):
            Dice.calls += 1
            return super().logits(
                pixels + torch.tensor([1, 0, 0]).view(3, 1, 1) * (-1) ** Dice.calls * 0.16
            )

    made = guarded(None, Dice())
    made.clean_right[:] = True
    assert made.attack(PGD)["correct"] == 0


def test_square_stops_at_one_draw_and_says_so(guarded):
    made, square = guarded(Flicker()), replace(PGD, name="square", **OTHERS)
    hidden, seen = (made.attack(square, seen=view)["warnings"] for view in (False, True))
    assert not any(w.startswith("one_draw") for w in hidden)
    assert [w for w in seen if w.startswith("one_draw: square stops at the first draw")]


def test_an_attack_through_a_defence_is_never_weaker_than_one_without(guarded):
    alone = guarded(Backwards()).attack(PGD, seen=True)
    assert alone["correct"] == alone["n"] and "after" not in alone
    made = guarded(Backwards())
    hidden, seen = (made.attack(PGD, seen=view) for view in (False, True))
    assert hidden["correct"] == 0 and hidden["drop"] is False and hidden["warnings"] == []
    assert (seen["correct"], seen["checks"]["alone"], seen["drop"]) == (0, 40, True)
    assert seen["after"] == "the same attack on the model without its defence"
    (warning,) = (w for w in seen["warnings"] if w.startswith("defence_order"))
    assert "40 of 40" in warning and "only 0" in warning
    fine = [defence_order(count, 6, 100) == [] for count in (5, 10, 11)]
    assert fine == [True, True, False]  # of 100, 4 are chance


def test_drop_and_its_twin_are_one_attack_behind_a_defence(run, arguments, tmp_path):
    both = f"[{WHITE}, {WHITE[:-1]}, 'DROP': True}}]"
    argv = arguments("AdvPT", ATTACK__TEST__LIST=both, OPTIM__MAX_EPOCH=1, DEFENCE__NAME="rescale")
    record, out = record_of(run, argv, tmp_path)
    assert [a["drop"] for a in record["attacks"]] == [False, False] and "done once" in out
