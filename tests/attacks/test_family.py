"""The PGD family: each part against its definition, torchattacks, the ball, and the batch."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import victim
from hypothesis import given, settings
from hypothesis import strategies as st
from victim import distance, is_right, pixels, problem

from advprompt import losses
from advprompt.attacks import NotFinite, objective_for
from advprompt.attacks.catalogue import FAMILY, family_settings
from advprompt.attacks.family import Aimed, L2Ball, aims_of, gradient_attack
from advprompt.attacks.gradient import Labelled
from advprompt.utils.errors import UserError

NAMES = tuple(FAMILY)
EPS = {"linf": 8 / 255, "l2": 0.3}


@dataclass(frozen=True)
class Threat:
    name: str = "pgd"
    norm: str = "linf"
    eps: float = 8 / 255
    alpha: float = 2 / 255
    steps: int = 5
    restarts: int = 1
    start: str = "uniform"
    objective: str = "ce"
    drop: bool = False


def threat(name="pgd", norm="linf", **changes) -> Threat:
    sizes = {"eps": EPS[norm], "alpha": EPS[norm] / 4}
    return Threat(**{"name": name, "norm": norm} | sizes | changes)


def build(kwargs=None, seeds=None):
    """Return a maker of attacks that knows rightness, as :mod:`victim` asks for."""
    kwargs = kwargs or {}

    def make(logits, labels, spec):
        class WithJudge:
            def run(self, clean, seeds):
                loss = objective_for(spec, logits, labels=labels)
                if "aim" in kwargs:
                    with torch.no_grad():
                        loss = Aimed(
                            logits, labels, aims_of(kwargs["aim"], logits(clean), labels, seeds)
                        )
                own = labels.clone()
                attack = gradient_attack(loss, spec, kwargs)
                return attack.run(clean, seeds, lambda x: logits(x).argmax(1) == own)

        return WithJudge()

    return make


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


def ours(name, logits, clean, labels, spec_changes=None, kwargs=None, seeds=None, norm="linf"):
    spec = threat(name, norm, **({"start": "zero"} | (spec_changes or {})))
    return build(kwargs)(logits, labels, spec).run(clean, seeds or range(len(clean)))


# --- torchattacks, where it is exact: 8 images, so that the mean is the sum to the last bit ------


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
    found = ours(name, logits, clean, labels, kwargs=kwargs, norm=norm).images
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (found - clean).abs().max() > 0.9 * EPS[norm] or norm == "l2"


@pytest.mark.parametrize("name", ["di", "mdi"])
def test_input_diversity_is_the_librarys_but_for_the_draws(name):
    logits, clean, labels = problem(8)
    kwargs = {"probability": 0.7}
    draws = gradient_attack(None, threat(name, start="zero"), kwargs)
    draws.start(clean, range(8))
    attack = library(
        "DIFGSM",
        logits,
        eps=EPS["linf"],
        alpha=EPS["linf"] / 4,
        steps=5,
        decay=float(name == "mdi"),
    )
    attack.input_diversity = draws.vary
    found = ours(name, logits, clean, labels, kwargs=kwargs).images
    torch.testing.assert_close(found, attack(clean, labels), atol=1e-6, rtol=0)
    plain = ours("mi" if name == "mdi" else "pgd", logits, clean, labels).images
    assert not torch.equal(found, plain)


def test_a_targeted_attack_is_the_librarys():
    logits, clean, labels = problem(8)
    attack = library("PGD", logits, eps=8 / 255, alpha=2 / 255, steps=5, random_start=False)
    aims = aims_of("likeliest", logits(clean), labels, range(8))
    attack.set_mode_targeted_by_function(lambda *_: aims, quiet=True)
    found = ours("pgd", logits, clean, labels, kwargs={"aim": "likeliest"}).images
    torch.testing.assert_close(found, attack(clean, labels), atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", victim.NORMS)
def test_pgd_is_at_least_as_strong_as_the_librarys(norm):
    logits, _, _ = problem(1)
    clean = pixels(200, seed=5)
    labels = logits(clean).argmax(1)
    sizes = {"eps": EPS[norm] / 8, "alpha": EPS[norm] / 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attack = library("PGD" if norm == "linf" else "PGDL2", logits, **sizes, steps=10)
        theirs = is_right(logits, attack(clean, labels), labels).sum()
    assert 10 < theirs < 190
    for drop in (False, True):
        changes = sizes | {"steps": 10, "start": "uniform", "drop": drop}
        found = ours("pgd", logits, clean, labels, changes, norm=norm).images
        assert is_right(logits, found, labels).sum() <= theirs + 1


# --- definitions ---------------------------------------------------------------------------------


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


def test_momentum_adds_gradients_of_length_one():
    attack = gradient_attack(None, threat("mi"), {"momentum": 0.5})
    attack.start(torch.zeros(1, 3, 2, 2), [0])
    first = torch.tensor([4.0, -4, 0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    second = torch.tensor([-1.0, 1, 10]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert torch.equal(attack.normalize(first), first.sign())
    # velocity 0.5 (1.5, -1.5, 0) + (-0.25, 0.25, 2.5)
    assert attack.normalize(second).flatten().tolist()[::4] == [1, -1, 1]
    torch.testing.assert_close(attack.velocity[0, :, 0, 0], torch.tensor([0.5, -0.5, 2.5]))
    attack.start(torch.zeros(1, 3, 2, 2), [0])
    assert attack.velocity is None


def test_a_zero_gradient_moves_nothing_and_is_no_nan():
    clean = torch.full((2, 3, 8, 8), 0.5)
    mask = torch.tensor([1.0, 0.0])
    for name in NAMES:
        for norm in victim.NORMS:
            spec = threat(name, norm, start="zero")
            attack = gradient_attack(lambda x: x.flatten(1).sum(1) * mask, spec)
            result = attack.run(clean, [0, 1])
            assert torch.equal(result.images[1], clean[1])
            assert result.zero_grad.tolist() == [False, True]
            assert (result.images[0] > clean[0]).all()


def test_fgsm_takes_one_step_of_eps():
    logits, clean, labels = problem(5)
    found = ours("fgsm", logits, clean, labels, {"alpha": 1 / 255, "steps": 9}).images
    one = ours("pgd", logits, clean, labels, {"alpha": 8 / 255, "steps": 1}).images
    assert torch.equal(found, one)
    random = ours("fgsm", logits, clean, labels, {"start": "uniform"})
    assert not torch.equal(random.images, one) and random.max_linf <= 8 / 255 + 1e-6


def test_l2_starts_have_any_direction_and_radius():
    clean = torch.full((400, 3, 1, 1), 0.5)
    attack = L2Ball(None, threat(norm="l2"))
    change = attack.start(clean, range(400)) - clean
    radius = change.flatten(1).norm(dim=1) / EPS["l2"]
    assert radius.max() <= 1 + 1e-6
    assert abs(radius.mean() - 0.5) < 0.05 and radius.max() > 0.98 and radius.min() < 0.02
    assert change.mean(dim=0).abs().max() < 0.02
    assert torch.equal(attack.start(clean[:2], [7, 3])[1], attack.start(clean[:1], [3])[0])
    with pytest.raises(UserError, match="one_sided"):
        L2Ball(None, threat(norm="l2", start="one_sided")).start(clean, range(400))


def test_l2_steps_have_the_length_alpha():
    clean = torch.full((3, 3, 8, 8), 0.5)
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
    attack = gradient_attack(
        lambda x: (x * weight).flatten(1).sum(1), threat(norm="l2", start="zero", steps=1)
    )
    change = attack.run(clean, range(3)).images - clean
    torch.testing.assert_close(change, (EPS["l2"] / 4 * weight / weight.norm()).expand(3, 3, 8, 8))


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    resize=st.floats(0.01, 1),
    seed=st.integers(0, 10**6),
)
def test_copies_keep_shape_and_range(height, width, resize, seed):
    kwargs = {"probability": 1.0, "resize": resize}
    attack = gradient_attack(None, threat("di"), kwargs)
    images = torch.full((3, 3, height, width), 0.75)
    attack.start(images, [seed, seed + 1, seed])
    varied = attack.vary(images)
    assert varied.shape == images.shape
    torch.testing.assert_close(varied[varied != 0], torch.full_like(varied[varied != 0], 0.75))
    assert (varied != 0).any() and torch.equal(varied[0], varied[2])


def test_copies_are_drawn_as_often_and_as_small_as_asked():
    attack = gradient_attack(None, threat("di"), {"probability": 0.3, "resize": 0.5})
    images = torch.ones(400, 3, 10, 10)
    attack.start(images, range(400))
    varied = attack.vary(images)
    sides = varied[:, 0].amax(dim=1).sum(dim=1)  # (400,) width that is not padding
    assert 0.22 < (sides < 10).float().mean() < 0.38
    assert sides.min() == 5 and set(sides.tolist()) == {5, 6, 7, 8, 9, 10}
    corners = varied[sides == 5][:, 0]
    assert 0 < corners[:, 0, 0].mean() < 1 or 0 < corners[:, 5, 5].mean() < 1
    assert not torch.equal(attack.vary(images), varied)  # the next step draws anew


def test_diversity_reports_the_image_itself():
    logits, clean, labels = problem(10)
    for drop in (False, True):
        result = ours("mdi", logits, clean, labels, {"drop": drop}, {"probability": 1.0})
        with torch.no_grad():
            first, last = (losses.cross_entropy(logits(x), labels) for x in (clean, result.images))
        torch.testing.assert_close(result.loss_first, first)
        torch.testing.assert_close(result.loss_last, last)
        assert torch.equal(result.right, is_right(logits, result.images, labels))


def test_diversity_works_without_labels():
    logits, clean, _ = problem(6)
    spec = threat("mdi", objective="embedding_kl")
    result = gradient_attack(objective_for(spec, logits, reference=logits(clean)), spec).run(
        clean, range(6)
    )
    assert (result.loss_last > result.loss_first).all()
    assert result.loss_last.mean() > 5 * result.loss_first.mean()


# --- targets -------------------------------------------------------------------------------------


def test_aims_are_never_a_samples_own_class():
    logits = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300) % 5
    for aim in ("likeliest", "random", 0, 4):
        aims = aims_of(aim, logits, labels, range(300))
        assert ((aims >= 0) & (aims < 5) & (aims != labels)).all()
    likeliest = aims_of("likeliest", logits, labels, [])
    best = torch.stack([torch.cat([x[:y], x[y + 1 :]]).max() for x, y in zip(logits, labels)])  # noqa: B905
    assert torch.equal(logits.gather(1, likeliest[:, None])[:, 0], best)
    random = aims_of("random", logits, labels, range(300))
    assert all(abs((random == k).float().mean() - 0.2) < 0.08 for k in range(5))
    assert torch.equal(
        random[10:20], aims_of("random", logits[10:20], labels[10:20], range(10, 20))
    )
    fixed = aims_of(4, logits, labels, [])
    assert (fixed[labels != 4] == 4).all()
    assert torch.equal(fixed[labels == 4], likeliest[labels == 4])
    with pytest.raises(UserError, match="aim is 5 but the classes are 0 to 4"):
        aims_of(5, logits, labels, [])


@pytest.mark.parametrize("drop", [False, True])
def test_a_large_ball_reaches_the_class_aimed_at(drop):
    logits, clean, labels = problem(10)
    found = ours(
        "pgd",
        logits,
        clean,
        labels,
        {"eps": 0.3, "alpha": 0.03, "steps": 30, "drop": drop},
        {"aim": 2},
    )
    answers = logits(found.images).argmax(1)
    other = labels != 2
    if not drop:
        assert (answers[other] == 2).all()
    assert (answers != labels).all() and not found.right.any()
    assert (found.loss_last <= 0).all()


# --- what every member keeps to ------------------------------------------------------------------

members = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(victim.NORMS),
    st.sampled_from([{}, {"aim": "likeliest"}, {"aim": "random"}, {"aim": 1}]),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(
    member=members,
    eps=st.floats(0, 1),
    share=st.floats(0.01, 3),
    steps=st.integers(0, 4),
    restarts=st.integers(1, 2),
    n=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_every_iterate_stays_in_the_ball_and_in_range(member, eps, share, steps, restarts, n, seed):
    name, norm, kwargs, drop = member
    eps = eps * (10 if norm == "l2" else 1)
    logits, _, _ = problem(1)
    clean, labels = pixels(n, seed), torch.arange(n) % 5
    spec = threat(name, norm, eps=eps, alpha=share * eps, steps=steps, restarts=restarts, drop=drop)
    seen = []

    def watched(x):
        if name not in ("di", "mdi"):  # those see copies too
            assert x.min() >= 0 and x.max() <= 1
            rows = [int(distance(clean, one[None], norm).argmin()) for one in x]
            seen.append(float(distance(clean[rows], x.detach(), norm).max()))
        return logits(x)

    loss = Labelled(watched, labels, losses.cross_entropy)
    if "aim" in kwargs:
        loss = Aimed(watched, labels, aims_of(kwargs["aim"], logits(clean), labels, range(n)))
    result = gradient_attack(loss, spec, kwargs).run(clean, range(seed, seed + n))
    assert result.images.dtype == torch.float32 and result.images.shape == clean.shape
    assert not result.images.requires_grad
    assert result.images.min() >= 0 and result.images.max() <= 1
    assert (distance(result.images, clean, norm) <= eps * (1 + 1e-5) + 1e-6).all()
    assert all(far <= eps * (1 + 1e-5) + 1e-6 for far in seen)
    assert result.max_linf == pytest.approx(float((result.images - clean).abs().max()))


@settings(max_examples=60, deadline=None)
@given(
    member=members,
    order=st.permutations(range(8)),
    cut=st.integers(1, 7),
    restarts=st.integers(1, 2),
)
def test_batch_size_and_order_do_not_matter(member, order, cut, restarts):
    name, norm, kwargs, drop = member
    logits, clean, labels = problem(8)
    spec = threat(name, norm, eps=EPS[norm] / 4, alpha=EPS[norm] / 16, restarts=restarts, drop=drop)
    seeds = [101 * i + 7 for i in range(8)]
    whole = build(kwargs)(logits, labels, spec).run(clean, seeds)
    for part in (order[:cut], order[cut:]):
        again = build(kwargs)(logits, labels[part], spec).run(clean[part], [seeds[i] for i in part])
        torch.testing.assert_close(again.images, whole.images[part], atol=1e-6, rtol=0)
        assert torch.equal(again.right, whole.right[part])


@pytest.mark.parametrize("norm", victim.NORMS)
@pytest.mark.parametrize("name", ["pgd", "mi", "di", "mdi"])
def test_dropping_forgets_the_right_samples(name, norm):
    """Samples break at different steps, and each then has the image it has alone."""
    logits, _, _ = problem(1)
    clean = pixels(12, seed=3)
    labels = logits(clean).argmax(1)
    spec = threat(name, norm, eps=EPS[norm], alpha=EPS[norm] / 16, steps=8, drop=True)
    loss, left = objective_for(spec, logits, labels=labels), []
    attack = gradient_attack(loss, spec)
    keep = attack.keep
    attack.keep = lambda stays: (left.append(int(stays.sum())), keep(stays))
    whole = attack.run(clean, range(12))
    assert len(set(left)) > 2 and min(left) < 12  # they go one after the other
    for i in range(12):
        alone = gradient_attack(objective_for(spec, logits, labels=labels[i : i + 1]), spec)
        again = alone.run(clean[i : i + 1], [i])
        torch.testing.assert_close(again.images, whole.images[i : i + 1], atol=1e-6, rtol=0)
    last = gradient_attack(loss, threat(name, norm, alpha=EPS[norm] / 16, steps=8))
    unscored = last.run(clean, range(12)).images
    assert whole.right.sum() <= is_right(logits, unscored, labels).sum()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_leaks(name, training):
    for norm, drop in (("linf", True), ("l2", False)):
        spec = threat(name, norm, drop=drop)
        victim.check_nothing_leaks(build({"aim": "random"}), spec, training)


@pytest.mark.parametrize("name", NAMES)
def test_ambient_modes_do_not_matter(name):
    for norm, drop in (("linf", False), ("l2", True)):
        victim.check_ambient_modes(build({"aim": "likeliest"}), threat(name, norm, drop=drop))


def test_broken_logits_are_named():
    logits, clean, labels = problem(3)
    for name in NAMES:
        for norm in victim.NORMS:
            make, spec = build(), threat(name, norm)
            with pytest.raises(NotFinite):
                make(lambda x: logits(x) / 0, labels, spec).run(clean, range(3))


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("mi", {"momentun": 1}, "Did you mean momentum"),
        ("pgd", {"momentum": 1}, "takes no setting 'momentum'. Choose one of: aim"),
        ("mi", {"momentum": -1}, "momentum is -1, expected a number from 0"),
        ("mi", {"momentum": True}, "momentum is True"),
        ("di", {"probability": 1.5}, "probability is 1.5, expected a number from 0 to 1"),
        ("di", {"resize": 0}, "resize is 0"),
        ("di", {"resize": "0.9"}, "resize is '0.9'"),
        ("mdi", {"aim": "likely"}, "aim is 'likely', expected likeliest, random or the number"),
        ("mdi", {"aim": -1}, "aim is -1"),
        ("mdi", {"aim": True}, "aim is True"),
    ],
)
def test_wrong_settings_are_refused(name, kwargs, words):
    with pytest.raises(UserError, match=words):
        gradient_attack(None, threat(name), kwargs)


def test_settings_are_filled_in_for_the_record():
    assert family_settings("pgd", {}) == {}
    assert family_settings("mi", {}) == {"momentum": 1.0}
    assert family_settings("mdi", {"probability": 1, "aim": 3}) == {
        "momentum": 1.0,
        "probability": 1.0,
        "resize": 0.9,
        "aim": 3,
    }
