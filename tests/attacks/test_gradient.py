"""The gradient loop and the PGD family: definitions, right values, torchattacks' own images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advprompt import losses
from advprompt.attacks import (
    GradientAttack,
    NotFinite,
    gradient_attack,
    objective_for,
    tower_in,
)
from advprompt.attacks.base import another_seed
from advprompt.records.threats import PGD_FAMILY
from advprompt.utils.errors import UserError

from .toy_problem import NORMS, attack, distance, is_right, pixels, problem, spec

EPS = {"linf": 8 / 255, "l2": 0.3}


def threat(name="pgd", norm="linf", **changes):
    return spec(name, norm, **{"eps": EPS[norm], "steps": 5} | changes)


def ours(name, logits, clean, labels, norm="linf", **changes):
    return attack(threat(name, norm, **{"start": "zero"} | changes), logits, clean, labels)


def of_sums(spec, loss=lambda x: x.flatten(1).sum(1)) -> GradientAttack:
    return gradient_attack(loss, spec)


# --- losses -----------------------------------------------------------------------------------


def test_losses_against_their_definitions():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    labels = torch.tensor([0, 0, 2, 3, 2, 4])  # some right, some wrong
    p, q = a.softmax(1), b.softmax(1)
    torch.testing.assert_close(losses.kl(a, b), (p * (p / q).log()).sum(1))
    torch.testing.assert_close(losses.embedding_kl(a, b), losses.kl(a, b))
    assert losses.kl(a, b).sub(losses.kl(b, a)).abs().max() > 0.1  # the direction matters
    torch.testing.assert_close(losses.cross_entropy(a, labels), -p[range(6), labels].log())
    wrong = a.argmax(1) != labels
    assert torch.equal(losses.margin(a, labels) > 0, wrong) and wrong.any() and (~wrong).any()
    others = torch.stack([torch.cat([a[i, :y], a[i, y + 1 :]]).max() for i, y in enumerate(labels)])
    torch.testing.assert_close(losses.margin(a, labels), others - a[range(6), labels])
    with pytest.raises(ValueError, match="two classes"):
        losses.margin(a[:, :1], labels)


def test_kl_is_flat_at_the_clean_image():
    """The reason why zero starts are refused."""
    x = torch.randn(3, 7, requires_grad=True)
    (grad,) = torch.autograd.grad(losses.embedding_kl(x.detach(), x).sum(), x)
    assert grad.abs().max() < 1e-6


# --- starts -----------------------------------------------------------------------------------


def test_linf_starts_fill_their_range():
    clean, eps = torch.full((4, 3, 32, 32), 0.5), 16 / 255
    state = torch.random.get_rng_state()
    starts = {
        start: of_sums(threat(eps=eps, start=start)).start(clean, [5, 6, 7, 5]) - clean
        for start in ("uniform", "one_sided", "zero")
    }
    assert torch.equal(state, torch.random.get_rng_state())
    uniform, one_sided = starts["uniform"], starts["one_sided"]
    assert torch.equal(uniform[0], uniform[3]) and not torch.equal(uniform[0], uniform[1])
    assert uniform.min() < -0.99 * eps and uniform.max() > 0.99 * eps
    assert uniform.mean().abs() < 0.03 * eps
    assert one_sided.min() >= 0 and one_sided.max() > 0.99 * eps
    assert (one_sided.mean() - eps / 2).abs() < 0.03 * eps
    assert not starts["zero"].any()


def test_l2_starts_have_any_direction_and_radius():
    clean = torch.full((400, 3, 1, 1), 0.5)
    own = of_sums(threat(norm="l2"))
    change = own.start(clean, range(400)) - clean
    radius = change.flatten(1).norm(dim=1) / EPS["l2"]
    assert radius.max() <= 1 + 1e-6
    assert abs(radius.mean() - 0.5) < 0.05 and radius.max() > 0.98 and radius.min() < 0.02
    assert change.mean(dim=0).abs().max() < 0.02
    assert torch.equal(own.start(clean[:2], [7, 3])[1], own.start(clean[:1], [3])[0])


def test_every_restart_starts_elsewhere():
    seen = []

    def loss(x):
        seen.append(x.clone())
        return x.flatten(1).sum(1)

    of_sums(threat(steps=0, restarts=3), loss).run(pixels(1), [7])
    assert len(seen) == 3
    assert not any(torch.equal(seen[i], seen[j]) for i, j in [(0, 1), (0, 2), (1, 2)])


# --- steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_on_a_linear_model_has_the_length_alpha(norm):
    clean = torch.full((3, 3, 8, 8), 0.5)
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
    loss = lambda x: (x * weight).flatten(1).sum(1)  # noqa: E731
    result = of_sums(threat(norm=norm, start="zero", steps=1), loss).run(clean, range(3))
    way = weight.sign() if norm == "linf" else weight / weight.norm()
    torch.testing.assert_close(result.images, clean + EPS[norm] / 4 * way)
    torch.testing.assert_close(result.loss_first, loss(clean))


@pytest.mark.parametrize("objective", ["ce", "margin", "kl", "embedding_kl"])
@pytest.mark.parametrize("name", ["pgd", "mdi"])
def test_the_loss_rises_beyond_noise(objective, name):
    logits, clean, _ = problem(16)
    labels = logits(clean).argmax(1)
    results = [
        attack(threat(name, objective=objective, steps=n), logits, clean, labels) for n in (5, 0)
    ]
    assert (results[0].loss_last > results[0].loss_first).all()
    assert (
        results[0].loss_last.mean() > (2 if "kl" in objective else 1) * results[1].loss_last.mean()
    )


def test_fgsm_takes_one_step_of_eps():
    logits, clean, labels = problem(5)
    found = ours("fgsm", logits, clean, labels, alpha=1 / 255, steps=9).images
    one = ours("pgd", logits, clean, labels, alpha=8 / 255, steps=1).images
    assert torch.equal(found, one)
    random = ours("fgsm", logits, clean, labels, start="uniform")
    assert not torch.equal(random.images, one) and random.max_linf <= 8 / 255 + 1e-6


def test_momentum_adds_gradients_of_length_one():
    own = of_sums(threat("mi", kwargs={"momentum": 0.5}))
    own.start(torch.zeros(1, 3, 2, 2), [0])
    first = torch.tensor([4.0, -4, 0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    second = torch.tensor([-1.0, 1, 10]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert torch.equal(own.normalize(first), first.sign())
    # velocity 0.5 (1.5, -1.5, 0) + (-0.25, 0.25, 2.5)
    assert own.normalize(second).flatten().tolist()[::4] == [1, -1, 1]
    own.start(torch.zeros(1, 3, 2, 2), [0])
    assert torch.equal(own.normalize(-first), -first.sign())  # nothing is left of the first run


def test_without_their_setting_the_parts_are_pgd():
    logits, clean, labels = problem(6)
    plain = ours("pgd", logits, clean, labels).images
    for name, kwargs in (
        ("mi", {"momentum": 0}),
        ("di", {"probability": 0}),
        ("mdi", {"momentum": 0, "probability": 0}),
    ):
        assert torch.equal(ours(name, logits, clean, labels, kwargs=kwargs).images, plain)
        assert not torch.equal(ours(name, logits, clean, labels).images, plain)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PGD_FAMILY)
def test_a_zero_gradient_moves_nothing_and_is_no_nan(name, norm):
    clean, mask = torch.full((2, 3, 8, 8), 0.5), torch.tensor([1.0, 0.0])
    own = of_sums(threat(name, norm, start="zero"), lambda x: x.flatten(1).sum(1) * mask)
    result = own.run(clean, [0, 1])
    assert torch.equal(result.images[1], clean[1]) and (result.images[0] > clean[0]).all()
    assert result.zero_grad.tolist() == [False, True]


@pytest.mark.parametrize(
    "loss, kind, words",
    [
        (lambda x: x.sum(), ValueError, "loss per sample"),
        (lambda x: x.detach().flatten(1).sum(1), UserError, "does not depend"),
        (lambda x: x.flatten(1).sum(1) / 0, NotFinite, "loss is not finite"),
        (lambda x: (x - x).flatten(1).sum(1).sqrt(), NotFinite, "gradient is not finite"),
    ],
)
def test_broken_losses_are_named(loss, kind, words):
    with pytest.raises(kind, match=words):
        of_sums(threat(), loss).run(pixels(2), [0, 1])


def test_seeds_of_restarts_are_different_and_fit_a_generator():
    seeds = [another_seed(2**63 - 1, restart) for restart in range(50)]
    assert len(set(seeds)) == 50 and all(0 <= seed < 2**63 for seed in seeds)
    assert [another_seed(5, n) for n in (0, 1)] == [5, 2177342782468422682]
    assert seeds[0] == 2**63 - 1


# --- copies of input diversity ----------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    resize=st.floats(0.01, 1),
    seed=st.integers(0, 10**6),
)
def test_copies_keep_shape_and_range(height, width, resize, seed):
    own = of_sums(threat("di", kwargs={"probability": 1.0, "resize": resize}))
    images = torch.full((3, 3, height, width), 0.75)
    own.start(images, [seed, seed + 1, seed])
    varied = own.vary(images)
    assert varied.shape == images.shape
    torch.testing.assert_close(varied[varied != 0], torch.full_like(varied[varied != 0], 0.75))
    assert (varied != 0).any() and torch.equal(varied[0], varied[2])
    for copy in varied[:, 0] != 0:
        rows, columns = copy.any(1).sum().item(), copy.any(0).sum().item()
        assert rows >= max(int(height * resize), 1) and columns == max(
            round(width * rows / height), 1
        )


def test_copies_are_drawn_as_often_and_as_small_as_asked():
    own = of_sums(threat("di", kwargs={"probability": 0.3, "resize": 0.5}))
    images = torch.ones(400, 3, 10, 10)
    own.start(images, range(400))
    varied = own.vary(images)
    sides = varied[:, 0].amax(dim=1).sum(dim=1)  # (400,) width that is not padding
    assert 0.22 < (sides < 10).float().mean() < 0.38
    assert sides.min() == 5 and set(sides.tolist()) == {5, 6, 7, 8, 9, 10}
    assert not torch.equal(own.vary(images), varied)  # the next step draws anew


def test_copies_lie_anywhere_in_the_frame():
    own = of_sums(threat("di", kwargs={"probability": 1.0, "resize": 0.5}))
    own.start(torch.ones(600, 3, 10, 10), range(600))
    copies = own.vary(torch.ones(600, 3, 10, 10))[:, 0]
    for size in range(5, 10):
        chosen = copies[copies.amax(dim=1).sum(dim=1) == size]
        for dim in (1, 2):
            first = chosen.amax(dim=dim).argmax(dim=1)
            assert set(first.tolist()) == set(range(10 - size + 1))


@pytest.mark.parametrize(
    ("steps", "scored", "forwards"), [(0, 0, 1), (1, 0, 1), (1, 1, 2), (2, 0, 2)]
)
def test_an_unscored_attack_saves_the_last_forward(steps, scored, forwards):
    asked = []
    own = of_sums(threat(steps=steps), lambda x: asked.append(0) or x.flatten(1).sum(1))
    result = own.run(pixels(2), [0, 1], scored=bool(scored))
    assert len(asked) == forwards and result.loss_last.shape == (2,)


@pytest.mark.parametrize("drop", [False, True])
def test_diversity_reports_the_image_itself(drop):
    logits, clean, labels = problem(10)
    result = ours("mdi", logits, clean, labels, drop=drop, kwargs={"probability": 1.0})
    with torch.no_grad():
        first, last = (losses.cross_entropy(logits(x), labels) for x in (clean, result.images))
    torch.testing.assert_close(result.loss_first, first)
    torch.testing.assert_close(result.loss_last, last)
    assert torch.equal(result.right, is_right(logits, result.images, labels))


# --- which image is kept ----------------------------------------------------------------------


def test_a_misclassified_image_beats_a_higher_loss():
    """Restart 1 of sample 0 is wrong at low loss; the later ones right at higher loss."""
    answers = iter([False, True, True])
    for losses_, right, kept in (
        ([1.0, 5.0, 9.0], lambda x: torch.tensor([next(answers)]), 1.0),
        ([1.0, 9.0, 5.0], None, 9.0),
    ):
        calls = iter(losses_)
        own = of_sums(
            threat(steps=0, restarts=3),
            lambda x, calls=calls: x.flatten(1).sum(1) * 0 + next(calls),
        )
        result = own.run(pixels(1), [0], right)
        assert result.loss_last.tolist() == [kept]
        assert (result.right is None) == (right is None) and not (right and result.right.any())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["pgd", "mi", "di", "mdi"])
def test_dropping_forgets_the_right_samples(name, norm):
    """Samples break at different steps, and each then has the image it has alone."""
    logits, clean, labels = problem(12, wrong=False)
    own = threat(name, norm, alpha=EPS[norm] / 16, steps=8, drop=True)
    loss, left = objective_for(own, logits, labels=labels), []
    made = gradient_attack(loss, own)
    keep = made.keep
    made.keep = lambda stays: (left.append(int(stays.sum())), keep(stays))
    whole = made.run(clean, range(12))
    assert len(set(left)) > 2 and min(left) < 12  # they go one after the other
    for i in range(12):
        alone = gradient_attack(objective_for(own, logits, labels=labels[i : i + 1]), own)
        again = alone.run(clean[i : i + 1], [i])
        torch.testing.assert_close(again.images, whole.images[i : i + 1], atol=1e-6, rtol=0)
    last = attack(threat(name, norm, alpha=EPS[norm] / 16, steps=8), logits, clean, labels)
    assert whole.right.sum() <= last.right.sum()


def test_dropping_costs_fewer_forwards():
    logits, clean, labels = problem(20, wrong=False)
    counts = {}
    for drop in (False, True):
        seen = []
        own = threat(drop=drop, steps=20)
        result = attack(own, lambda x, s=seen: s.append(len(x)) or logits(x), clean, labels)
        counts[drop] = int(result.right.sum()), sum(seen)
    assert counts[True][0] <= counts[False][0] and counts[True][1] < counts[False][1]


# --- gradients in bfloat16 --------------------------------------------------------------------


def test_a_coarse_forward_cannot_break_a_sample_by_itself():
    logits, clean, labels = problem(10, wrong=False)

    def liar(x):  # always wrong, with the true gradient
        true = logits(x)
        return true - 1000 * torch.nn.functional.one_hot(labels[: len(x)], true.shape[1])

    own = threat(eps=0.01 / 255, drop=True)
    for exact, broken in ((None, 10), (logits, 0)):
        loss = objective_for(own, liar, labels=labels, exact=exact)
        result = GradientAttack(loss, own).run(clean, range(10))
        assert int((~result.right).sum()) == broken


def test_the_tower_is_coarse_and_its_gradient_is_not_zero():
    torch.manual_seed(0)
    tower = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8), torch.nn.Tanh())
    images = torch.rand(5, 3, 4, 4, requires_grad=True)
    with torch.no_grad():
        tower_in("bf16", tower)(images)  # as the check of restarts does before the next step
    fine, coarse = tower(images), tower_in("bf16", tower)(images)
    assert coarse.dtype == torch.float32
    assert 1e-6 < (fine - coarse).abs().max() < 2e-2
    grads = [torch.autograd.grad(f.square().sum(), images)[0].flatten() for f in (fine, coarse)]
    assert torch.cosine_similarity(*grads, dim=0) > 0.99
    assert tower_in("fp32", tower) is tower
    assert all(p.grad is None for p in tower.parameters())


# --- torchattacks, where it is exact: 8 images, so that the mean is the sum to the last bit ------


def library(name, logits, **arguments):
    """Return an attack of torchattacks on ``logits``."""
    torchattacks = pytest.importorskip("torchattacks")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.place = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return logits(x)

    return getattr(torchattacks, name)(Model(), **arguments)


@pytest.mark.parametrize(
    ("name", "norm", "theirs", "arguments", "kwargs"),
    [
        ("pgd", "linf", "PGD", {"steps": 5, "random_start": False}, {}),
        ("fgsm", "linf", "FGSM", {}, {}),
        ("mi", "linf", "MIFGSM", {"steps": 5, "decay": 1.0}, {}),
        ("mi", "linf", "MIFGSM", {"steps": 5, "decay": 0.3}, {"momentum": 0.3}),
        ("pgd", "l2", "PGDL2", {"steps": 5, "random_start": False}, {}),
    ],
)
def test_the_librarys_images_from_the_same_start(name, norm, theirs, arguments, kwargs):
    logits, clean, labels = problem(8)
    sizes = {"eps": EPS[norm]} | ({} if name == "fgsm" else {"alpha": EPS[norm] / 4})
    expected = library(theirs, logits, **sizes, **arguments)(clean, labels)
    found = ours(name, logits, clean, labels, norm, kwargs=kwargs).images
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (found - clean).abs().max() > 0.9 * EPS[norm] or norm == "l2"


@pytest.mark.parametrize("name", ["di", "mdi"])
def test_input_diversity_is_the_librarys_but_for_the_draws(name):
    logits, clean, labels = problem(8)
    draws = of_sums(threat(name, start="zero", kwargs={"probability": 0.7}))
    draws.start(clean, range(8))
    sizes = {"eps": EPS["linf"], "alpha": EPS["linf"] / 4, "steps": 5}
    theirs = library("DIFGSM", logits, decay=float(name == "mdi"), **sizes)
    theirs.input_diversity = draws.vary
    found = ours(name, logits, clean, labels, kwargs={"probability": 0.7}).images
    torch.testing.assert_close(found, theirs(clean, labels), atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_is_at_least_as_strong_as_the_librarys(norm):
    logits, _, _ = problem(1)
    clean = pixels(200, seed=5)
    labels = logits(clean).argmax(1)
    sizes = {"eps": EPS[norm] / 8, "alpha": EPS[norm] / 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = library("PGD" if norm == "linf" else "PGDL2", logits, **sizes, steps=10)
        theirs = is_right(logits, theirs(clean, labels), labels).sum()
    assert 10 < theirs < 190
    for drop in (False, True):
        own = threat("pgd", norm, **sizes, steps=10, drop=drop)
        found = attack(own, logits, clean, labels)
        assert is_right(logits, found.images, labels).sum() <= theirs + 1
        assert (distance(found.images, clean, norm) <= sizes["eps"] + 1e-6).all()
