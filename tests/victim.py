"""A toy classifier to attack, and what every attack on labelled images must keep to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from advprompt import losses
from advprompt.attacks import NotFinite
from advprompt.utils.errors import UserError

NORMS = ("linf", "l2")
EPS = {"linf": 3 / 255, "l2": 0.1}  # where the victim keeps some samples and loses others


def threat(norm: str = "linf", **changes) -> SimpleNamespace:
    return SimpleNamespace(**{"norm": norm, "eps": EPS[norm], "steps": 6, "restarts": 1} | changes)


def net(classes: int) -> nn.Module:
    """A convolutional classifier in double precision, so that batch size moves no sign."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(8 * 36, classes),
        )
    return model.double().eval()


def pixels(n: int, seed: int = 0) -> Tensor:
    """Images with many pixels exactly at 0 and 1, where clipping matters."""
    noise = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (1.4 * noise - 0.2).clamp(0, 1)


def problem(n: int, classes: int = 5, model: nn.Module | None = None):
    """Return a model's logits, images, and labels of which every fifth is wrong."""
    model, clean = model or net(classes), pixels(n)
    with torch.no_grad():
        centre = net(classes)(pixels(100, seed=1).double()).mean(dim=0)  # so that no class rules

    def logits(x):
        return 20 * (model(x.double()) - centre)

    with torch.no_grad():
        labels = logits(clean).argmax(1)
    labels[::5] = (labels[::5] + 1) % classes
    return logits, clean, labels


def distance(a: Tensor, b: Tensor, norm: str) -> Tensor:
    return (a - b).flatten(1).norm(p=torch.inf if norm == "linf" else 2, dim=1)  # (B,)


def is_right(logits, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return logits(images).argmax(1) == labels


# --- make(logits, labels, spec) builds the attack ----------------------------------------------


def check_result(logits, clean, labels, spec, result) -> None:
    """The ball, the range, and that the result says what is true of its images."""
    images = result.images
    assert images.dtype == torch.float32 and images.shape == clean.shape
    assert not images.requires_grad and images.min() >= 0 and images.max() <= 1
    assert (distance(images, clean, spec.norm) <= spec.eps + 1e-6).all()
    assert result.max_linf == pytest.approx(float((images - clean).abs().max()))
    was_right = is_right(logits, clean, labels)
    assert torch.equal(result.right, is_right(logits, images, labels))
    assert torch.equal(images[~was_right], clean[~was_right])
    with torch.no_grad():
        torch.testing.assert_close(result.loss_first, losses.margin(logits(clean), labels))
        torch.testing.assert_close(result.loss_last, losses.margin(logits(images), labels))


def check_batches(make, spec, order, cut: int) -> None:
    """Neither the size nor the order of the batch matters."""
    logits, clean, labels = problem(8)
    seeds = [101 * i + 7 for i in range(8)]
    whole = make(logits, labels, spec).run(clean, seeds)
    assert 0 < whole.right.sum() < is_right(logits, clean, labels).sum()
    for part in (order[:cut], order[cut:]):
        again = make(logits, labels[part], spec).run(clean[part], [seeds[i] for i in part])
        torch.testing.assert_close(again.images, whole.images[part], atol=1e-6, rtol=0)
        assert torch.equal(again.right, whole.right[part])


def check_nothing_leaks(make, spec, training: bool) -> None:
    """Flags, modes, gradients, values, the global generator and the inputs are as before."""
    model = net(5).train(training)
    model[0].bias.requires_grad_(False)
    model[1].momentum = 0.0  # running statistics are the model's own affair
    model[4].weight.grad = marker = torch.ones_like(model[4].weight)
    flags = [p.requires_grad for p in model.parameters()]
    values = [p.clone() for p in model.parameters()]
    logits, clean, labels = problem(5, model=model)
    given, state = clean.clone().requires_grad_(True), torch.random.get_rng_state()
    make(logits, labels, spec).run(given, range(5))
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(map(torch.equal, values, model.parameters()))
    assert all(m.training is training for m in model.modules())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) == 1 and grads[0] is marker and (marker == 1).all()
    assert given.grad is None and torch.equal(given, clean)
    assert torch.equal(state, torch.random.get_rng_state())


def check_ambient_modes(make, spec) -> None:
    """The result is the same inside no_grad, inference_mode and autocast."""
    logits, clean, labels = problem(5)
    plain = make(logits, labels, spec).run(clean, range(5))
    for context in (torch.no_grad, torch.inference_mode):
        with context(), torch.autocast("cpu", dtype=torch.bfloat16):
            again = make(logits, labels + 0, spec).run(clean + 0, range(5))
        assert torch.equal(again.images, plain.images)


def check_refusals(make, spec) -> None:
    """Wrong input is named; an empty batch, or one with nothing right, is no mistake."""
    logits, clean, labels = problem(4)
    for bad, words in ((clean * 2, "range from 0 to 2"), (clean * torch.nan, "nan")):
        with pytest.raises(UserError, match=words):
            make(logits, labels, spec).run(bad, range(4))
    with pytest.raises(ValueError, match="4 images, 3 seeds"):
        make(logits, labels, spec).run(clean, range(3))
    with pytest.raises(NotFinite):
        make(lambda x: logits(x) / 0, labels, spec).run(clean, range(4))
    assert len(make(logits, labels[:0], spec).run(clean[:0], []).images) == 0
    wrong = (is_right(logits, clean, labels) + labels) % 5
    result = make(logits, wrong, spec).run(clean, range(4))
    assert torch.equal(result.images, clean) and not result.right.any()
