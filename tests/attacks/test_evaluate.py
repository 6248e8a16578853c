"""``advprompt.evaluate``: any model, any images, one record."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import advprompt
from advprompt import UserError
from advprompt.evaluation.models import ModelVictim
from advprompt.records import read_record

LINF = {"ATTACK.TEST.EPS": 8, "ATTACK.TEST.ALPHA": 2, "ATTACK.TEST.STEPS": 10}


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
    return nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(128, 4))


@pytest.fixture
def images():
    return torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels(model, images):
    with torch.no_grad():
        return model.eval()(images).argmax(1)


def by_hand(model, images, labels):
    """PGD-10 at 8/255 from the images themselves."""
    delta = torch.zeros_like(images)
    for _ in range(10):
        delta.requires_grad_()
        loss = nn.functional.cross_entropy(model((images + delta).clamp(0, 1)), labels)
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = (delta.detach() + 2 / 255 * gradient.sign()).clamp(-8 / 255, 8 / 255)
        delta = (images + delta).clamp(0, 1) - images
    return int((model(images + delta).argmax(1) == labels).sum())


def test_a_record_holds_what_pgd_by_hand_finds(model, images, labels, tmp_path):
    model.train()
    settings = LINF | {"ATTACK.TEST.START": "zero", "ATTACK.TEST.DROP": False}
    record = advprompt.evaluate(
        model, images, labels, threat="linf1", folder=tmp_path / "r", settings=settings
    )
    assert model.training and model[4].training  # as it was found
    model.eval()
    (attack,) = record["attacks"]
    assert record["clean"] == {"n": 24, "correct": 24}
    assert attack["correct"] == by_hand(model, images, labels) and 0 < attack["correct"] < 24
    assert read_record(tmp_path / "r" / "record.json")["attacks"] == record["attacks"]
    assert record["shots"] is None and record["trainer"] == "Sequential" and record["classes"] == 4


def test_normalisation_is_part_of_the_attacked_model(model, images, labels, tmp_path):
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.4, 0.3)
    shape = (1, 3, 1, 1)
    inner = lambda x: model(x * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape))  # noqa: E731
    settings = {"settings": LINF, "threat": "linf1"}
    plain = advprompt.evaluate(model, images, labels, **settings)
    same = advprompt.evaluate(inner, images, labels, normalize=(mean, std), **settings)
    assert same["attacks"][0]["correct"] == plain["attacks"][0]["correct"]
    assert same["weights_sha256"] != plain["weights_sha256"]


def test_pairs_count_as_the_same_images(model, images, labels):
    settings = {"settings": LINF, "threat": "linf1"}
    plain = advprompt.evaluate(model, images, labels, **settings)
    pairs = advprompt.evaluate(model, TensorDataset(images, labels), **settings)
    loader = torch.utils.data.DataLoader(TensorDataset(images, labels), batch_size=7, shuffle=True)
    again = advprompt.evaluate(model, loader, **settings)
    for record in (pairs, again):
        assert record["data_sha256"] == plain["data_sha256"]
        assert record["attacks"][0]["correct"] == plain["attacks"][0]["correct"]


def test_a_finished_record_is_returned_and_another_model_is_refused(
    model, images, labels, tmp_path, capsys
):
    settings = {"settings": LINF, "threat": "linf1", "folder": tmp_path / "r"}
    first = advprompt.evaluate(model, images, labels, **settings)
    assert advprompt.evaluate(model, images, labels, **settings) == first
    assert "skipped" in capsys.readouterr().out
    with torch.no_grad():
        model[-1].bias += 0.1
    with pytest.raises(UserError, match="holds the record of another model"):
        advprompt.evaluate(model, images, labels, **settings)
    with torch.no_grad():
        model[-1].bias -= 0.1


WRONG = {
    "probabilities": (lambda m: lambda x: m(x).softmax(1), "returns probabilities"),
    "tuple": (lambda m: lambda x: (m(x), 1), "returns tuple"),
    "features": (lambda m: lambda x: m[:4](x), r"shape \(4, 128\), expected logits \(4, 4\)"),
    "detached": (lambda m: lambda x: m(x).detach(), "no gradient leads from the logits"),
    "another size": (lambda m: lambda x: m[-1](x.flatten(1)), "cannot take pixels of shape"),
    "half": (lambda m: m.bfloat16(), "computes in torch.bfloat16"),
    "nothing": (lambda m: 5, "the model is 5"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_model_that_gives_no_logits_is_named(kind, model, images, labels):
    make, message = WRONG[kind]
    with pytest.raises(UserError, match=message):
        advprompt.evaluate(make(model), images, labels, classnames="abcd", threat="linf1")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y: (x * 2 - 1, y), r"pixels from -.* expected \[0, 1\]; leave Normalize out"),
        (lambda x, y: ((x * 255).byte(), y), "torch.uint8, expected floats"),
        (lambda x, y: (x[:, :1], y), r"is \(1, 16, 16\), expected a tensor \(3, H, W\)"),
        (lambda x, y: (x, y[:3]), "24 images and 3 labels"),
        (lambda x, y: (x, y + 4), "is not one of the 4 classes"),
        (lambda x, y: (x[:0], y[:0]), "there are no images"),
        (lambda x, y: ("nowhere", None), "no data set is called 'nowhere'"),
    ],
)
def test_images_of_another_form_are_named(change, message, model, images, labels):
    with pytest.raises(UserError, match=message):
        advprompt.evaluate(model, *change(images, labels), threat="linf1")


def asked(model, classnames="abcd", *, gradients=True, **keys):
    victim = ModelVictim(model, classnames, **keys)
    victim.check(torch.linspace(0, 1, 3 * 3 * 16 * 16).view(3, 3, 16, 16), gradients=gradients)
    return victim


def answering(*rows):
    """A function that always gives these logits, with a gradient."""
    return lambda x: torch.tensor(rows[: len(x)]) + 0 * x.flatten(1)[:, :1]


@pytest.mark.parametrize(
    ("rows", "fine"),
    [
        ([[0.0, 1.0]] * 3, False),
        ([[0.5, 0.4991]] * 3, False),
        ([[0.5, 0.5009]] * 3, False),
        ([[0.5, 0.4989]] * 3, True),
        ([[0.5, 0.5011]] * 3, True),
        ([[1.5, -0.5]] * 3, True),
        ([[0.5, 0.5], [0.5, 0.5], [0.5, 0.6]], True),  # two of them by chance
        ([[1.0]] * 3, True),  # of one class, every row would be
    ],
)
def test_probabilities_are_rows_that_sum_to_one(rows, fine):
    if fine:
        assert asked(answering(*rows), "ab"[: len(rows[0])]).name == "<lambda>"
    else:
        with pytest.raises(UserError, match="returns probabilities"):
            asked(answering(*rows), "ab")


NORMALIZE = [5, ((0, 0), (1, 1)), ((0, 0, 0), (1, 0, 1)), ((0, 0, 0), (1, 1, -1))]
NORMALIZE += [((0, float("inf"), 0), (1, 1, 1)), ((0, 0, 0),), "x"]


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_statistics_of_another_form_are_refused(normalize):
    with pytest.raises(UserError, match=r"normalize is .*expected \(mean, std\)"):
        ModelVictim(answering([0.0, 9.0]), "ab", normalize=normalize)


def test_pixels_are_normalised_as_asked():
    seen = []
    plain = ModelVictim(seen.append, "ab")
    other = ModelVictim(seen.append, "ab", normalize=((0.1, 0.2, 0.3), (0.5, 0.25, 1)))
    for victim in (plain, other):
        victim.logits(torch.full((1, 3, 1, 1), 0.6))
    assert seen[0].flatten().tolist() == pytest.approx([0.6, 0.6, 0.6])
    assert seen[1].flatten().tolist() == pytest.approx([1.0, 1.6, 0.3])


def test_what_an_answer_tells_and_what_is_not_asked_of_it():
    assert asked(answering(*[[0.0, 9.0, 1.0]] * 3), "").classnames == ["0", "1", "2"]
    assert asked(lambda x: torch.zeros(len(x), 4), gradients=False)  # for Square alone
    with pytest.raises(UserError, match="returns torch.int64, expected logits"):
        asked(lambda x: torch.zeros(len(x), 4, dtype=torch.long))
    with pytest.raises(UserError, match="returns dict of logits, loss, expected a tensor"):
        asked(lambda x: {"logits": x, "loss": 0})
    with pytest.raises(UserError, match=r"cannot take .*\(first x{114}\); give images"):

        def fails(x):
            raise ValueError("\n  first " + "x" * 200 + "\nsecond")

        asked(fails)
    assert ModelVictim(nn.Linear(2, 2), "ab", name="mine").name == "mine"


def test_the_digest_of_a_function_is_that_of_its_answers():
    one, near, other = ([1.0, 2.0], [1.0001, 2.0], [1.01, 2.0])
    digests = [asked(answering(*[row] * 3), "ab").digest() for row in (one, near, other)]
    assert digests[0] == digests[1] != digests[2]
    shifted = asked(answering(*[one] * 3), "ab", normalize=((0, 0, 0.1), (1, 1, 1)))
    assert shifted.digest() != digests[0]
    layers = [nn.Sequential(nn.Flatten(), nn.Linear(768, 4)) for _ in range(2)]
    assert asked(layers[0]).digest() == asked(layers[0]).digest() != asked(layers[1]).digest()
