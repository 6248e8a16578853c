"""AutoAttack and its parts as test attacks: what they stand for, what follows on what."""

from types import SimpleNamespace

import pytest
import torch

from advprompt.attacks import AttackSpec, parts_of, specs_from_cfg
from advprompt.attacks.autoattack import PARTS, build_part
from advprompt.evaluation.evaluator import Evaluation
from advprompt.evaluation.samples import ImageList
from advprompt.evaluation.victim import Victim
from advprompt.utils.errors import UserError

NODE = {
    "NAME": "pgd",
    "EPS": "16",
    "ALPHA": "4",
    "STEPS": 20,
    "RESTARTS": 2,
    "START": "uniform",
    "OBJECTIVE": "ce",
    "TARGET": "end_to_end",
    "DROP": False,
}


def spec(name, **changes):
    return specs_from_cfg(NODE | {"LIST": [{"NAME": name} | changes]})[0]


@pytest.fixture
def model():
    """Logits (b, K) of images (b, 3, 4, 4), smooth and neither flat nor saturated."""

    def build(classes=6):
        torch.manual_seed(0)
        first, second = torch.randn(48, 16) * 0.4, torch.randn(16, classes)
        return lambda x: (x.flatten(1) @ first).tanh() @ second

    return build


def test_an_entry_of_the_list_takes_steps_from_the_attack_not_from_the_node():
    auto, square, own = spec("autoattack"), spec("square"), spec("apgd", STEPS=7, RESTARTS=3)
    assert (auto.steps, auto.restarts, auto.drop) == (100, 1, True)
    assert (auto.alpha, auto.start, auto.objective) == (None, None, None)
    assert square.steps == 5000 and (own.steps, own.restarts) == (7, 3)
    assert spec("pgd", ALPHA=1).steps == 20


def test_a_described_attack_is_read_back():
    for name in ("autoattack", "square"):
        assert AttackSpec.from_cfg(spec(name).describe()) == spec(name)


def test_an_attack_on_logits_needs_text():
    with pytest.raises(UserError, match="needs logits"):
        spec("autoattack", TARGET="embedding")


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (10, ["apgd-ce", "apgd-t", "fab-t", "square"]),
        (4, ["apgd-ce", "apgd-t", "fab-t", "square"]),
        (3, ["apgd-ce", "square"]),
    ],
)
def test_parts_of_autoattack(classes, names, capsys):
    parts = parts_of(spec("autoattack"), classes)
    assert [part.name for part in parts] == names
    assert [part.steps for part in parts] == [5000 if n == "square" else 100 for n in names]
    assert ("left out" in capsys.readouterr().out) == (classes < 4)


def test_a_part_asked_for_by_name_is_never_left_out_in_silence():
    with pytest.raises(UserError, match="at least 4 classes but there are 3"):
        parts_of(spec("apgd-t"), 3)
    assert [part.name for part in parts_of(spec("apgd"), 2)] == ["apgd-ce"]


@pytest.mark.parametrize("name", PARTS)
def test_every_part_breaks_what_it_says_it_breaks(name, model):
    logits, images = model(), torch.rand(8, 3, 4, 4)
    labels = logits(images).argmax(1)
    steps = {"STEPS": 200} if name == "square" else {"STEPS": 10}
    result = build_part(spec(name, EPS=48, **steps), logits, labels).run(images, range(8))
    assert not result.right.all()
    assert ((logits(result.images).argmax(1) == labels) == result.right).all()
    assert result.max_linf <= 48 / 255 + 1e-6


class InMemory(Victim):
    """A model of images that are held in memory."""

    device, classnames = torch.device("cpu"), [str(i) for i in range(6)]

    def __init__(self, model):
        self.logits = lambda pixels, prec="fp32": model(pixels)

    def digest(self):
        return "0"


class Images(ImageList):
    """Images in memory in the place of files."""

    def __init__(self, images, labels):
        super().__init__(
            [(str(i), label) for i, label in enumerate(labels)], SimpleNamespace(key="0")
        )
        self.images = images

    def digest(self, position):
        return str(position)

    def batches(self, positions, batch_size, device, title):
        for begin in range(0, len(positions), batch_size):
            where = positions[begin : begin + batch_size]
            yield where, self.images[where]


@pytest.fixture
def evaluation(model, tmp_path):
    torch.manual_seed(1)
    logits, images = model(), torch.rand(24, 3, 4, 4)
    labels = logits(images).argmax(1).tolist()
    labels[0] = (labels[0] + 1) % 6  # wrong clean
    listed = Images(images, labels)
    made = Evaluation(InMemory(logits), listed, folder=tmp_path, cache=tmp_path, batch_size=4)
    made.clean()
    return made


def test_autoattack_goes_on_where_the_others_end(evaluation):
    weak = evaluation.attack(spec("pgd", EPS=8, ALPHA=1, STEPS=3, RESTARTS=1, DROP=True))
    apgd = evaluation.attack(spec("apgd", EPS=8, STEPS=10))
    auto = evaluation.attack(spec("autoattack", EPS=8, STEPS=10))
    assert 23 >= weak["correct"] >= apgd["correct"] >= auto["correct"] > 0
    assert [len(right) for *_, right in evaluation.outcomes] == [24] * 3
    pgd, all_of = (right for *_, right in evaluation.outcomes[::2])
    assert not (all_of & ~pgd).any() and not pgd[0]
    left = auto["checks"]["left"]
    assert list(left) == ["apgd-ce", "apgd-t", "fab-t", "square"] and "left" not in weak["checks"]
    assert list(left.values()) == sorted(left.values(), reverse=True)
    assert left["square"] == auto["correct"]


def test_a_larger_ball_or_another_target_lends_nothing(evaluation):
    big = evaluation.attack(spec("pgd", EPS=64, ALPHA=16, STEPS=10, RESTARTS=1, DROP=True))
    small = evaluation.attack(spec("apgd-ce", EPS=1, STEPS=5))
    assert big["correct"] < small["correct"]


def test_dropping_never_leaves_more_than_the_last_iterate_and_forwards_less(evaluation):
    calls = [0]
    inner = evaluation.victim.logits

    def counted(pixels, prec="fp32"):
        calls[0] += len(pixels)
        return inner(pixels)

    evaluation.victim.logits = counted
    counts = {}
    for drop in (False, True):
        calls[0] = 0
        entry = evaluation.attack(spec("pgd", EPS=24, ALPHA=6, STEPS=20, RESTARTS=1, DROP=drop))
        counts[drop] = entry["correct"], calls[0]
        assert entry["checks"]["max_linf"] <= 24 / 255 + 1e-6
    assert counts[True][0] <= counts[False][0]
    assert counts[True][1] < counts[False][1]


def test_dropping_with_restarts_attacks_only_what_is_left(evaluation):
    one = evaluation.attack(spec("pgd", EPS=16, ALPHA=4, STEPS=5, RESTARTS=1, DROP=True))
    five = evaluation.attack(spec("pgd", EPS=16, ALPHA=4, STEPS=5, RESTARTS=5, DROP=True))
    assert five["correct"] <= one["correct"]


@pytest.mark.parametrize("changes", [{"OBJECTIVE": "kl"}, {"TARGET": "frozen_prompt"}])
def test_dropping_needs_labels_and_the_defended_model(changes):
    with pytest.raises(UserError, match="attack drop"):
        spec("pgd", DROP=True, **changes)
