"""Attacks of torchattacks by name: every class, its defaults, what is checked and refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advprompt import losses
from advprompt.attacks import NotFinite
from advprompt.attacks.library import LibraryAttack
from advprompt.attacks.library_classes import REFUSED, library_class
from advprompt.attacks.library_classes import library_fields as fields_of
from advprompt.utils.errors import UserError

from .toy_problem import distance, is_right, pixels, problem, spec

torchattacks = pytest.importorskip("torchattacks")

CLASSES = sorted(set(torchattacks.__all__) - set(REFUSED))
BOUNDED = [name for name in CLASSES if library_class(f"torchattacks:{name}").bounded]
L2 = ("PGDL2", "PGDRSL2")
QUICK = ("FGSM", "PGD", "MIFGSM", "FFGSM", "TPGD", "DIFGSM", "SPSA", "PIFGSM", "Square", "APGD")
EPS = {"linf": 8 / 255, "l2": 0.3}
SHORT = {"AutoAttack": 5, "SPSA": 8, "Square": 20, "FAB": 5, "APGDT": 8, "EADEN": 20, "EADL1": 20}


def library(name: str, logits, labels, norm: str = "linf", **changes) -> LibraryAttack:
    norm = "l2" if name in L2 else norm
    usual = {"eps": EPS[norm], "alpha": None, "steps": SHORT.get(name)}
    return LibraryAttack(logits, labels, spec(f"torchattacks:{name}", norm, **usual | changes))


def library_fields(name: str, *, norm="linf", eps=None, alpha=None, steps=None, kwargs=None):
    return fields_of(f"torchattacks:{name}", norm, eps, alpha, steps, kwargs or {})


@pytest.fixture
def few_queries(monkeypatch):
    """AutoAttack's Square with 20 queries in the place of 5000."""
    perturb = torchattacks.Square.perturb

    def quick(self, x, y=None):
        self.n_queries = min(self.n_queries, 20)
        return perturb(self, x, y)

    monkeypatch.setattr(torchattacks.Square, "perturb", quick)


# --- every class ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_returns_what_it_says(name, few_queries):
    logits, clean, labels = problem(6)
    was_right = is_right(logits, clean, labels)
    calls = []

    def watched(x):
        calls.append(x.dtype)
        return logits(x)

    attack = library(name, watched, labels)
    result = attack.run(clean, range(6))
    images = result.images
    assert set(calls) == {torch.float32}
    assert images.dtype == torch.float32 and images.shape == clean.shape
    assert not images.requires_grad and images.min() >= 0 and images.max() <= 1
    assert torch.equal(result.right, is_right(logits, images, labels))
    assert torch.equal(images[~was_right], clean[~was_right])
    assert result.max_linf == pytest.approx(float((images - clean).abs().max()))
    assert not result.zero_grad.any()
    with torch.no_grad():
        torch.testing.assert_close(result.loss_first, losses.margin(logits(clean), labels))
        torch.testing.assert_close(result.loss_last, losses.margin(logits(images), labels))
    for key, norm in (("linf", "linf"), ("l2", "l2")):
        torch.testing.assert_close(result.reached[key], distance(images, clean, norm))
    assert (name in BOUNDED) == (attack.spec.eps is not None)
    if name in BOUNDED:
        assert (distance(images, clean, attack.spec.norm) <= attack.spec.eps + 1e-6).all()
        assert not (result.right & ~was_right).any()
    if name not in ("GN", "DeepFool"):  # noise; and see test_deepfool_stops_at_the_boundary
        assert result.right.sum() < was_right.sum()


@pytest.mark.parametrize("name", ["APGD", "APGDT", "FAB", "AutoAttack", "Square"])
def test_classes_of_two_norms_take_the_specs(name, few_queries):
    logits, clean, labels = problem(6)
    attack = library(name, logits, labels, "l2")
    result = attack.run(clean, range(6))
    assert (distance(result.images, clean, "l2") <= EPS["l2"] + 1e-6).all()
    assert distance(result.images, clean, "linf").max() > EPS["linf"]


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from([*QUICK, *L2]),
    eps=st.floats(0, 1),
    share=st.floats(0.01, 3),
    steps=st.integers(1, 4),
    restarts=st.integers(1, 2),
    n=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_the_ball_and_the_range_hold(name, eps, share, steps, restarts, n, seed):
    logits, _, _ = problem(1)
    clean, labels = pixels(n, seed), torch.arange(n) % 5
    changes = {"eps": eps, "alpha": min(share * eps, 1), "steps": steps, "restarts": restarts}
    own = library(name, logits, labels, **changes)
    result = own.run(clean, range(seed, seed + n))
    assert (distance(result.images, clean, own.spec.norm) <= eps + 1e-6).all()
    assert result.images.min() >= 0 and result.images.max() <= 1
    assert torch.equal(result.right, is_right(logits, result.images, labels))


@pytest.mark.parametrize("name", ["FGSM", "MIFGSM", "CW", "JSMA", "PIFGSM"])
def test_the_images_are_the_librarys(name):
    """Classes that draw nothing, on 4 samples that are all right."""
    logits, clean, _ = problem(4)
    labels = logits(clean).argmax(1)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.place = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return logits(x).float()

    eps = EPS["linf"]
    arguments = {"FGSM": {"eps": eps}, "MIFGSM": {"eps": eps}, "CW": {"c": 3.0}}
    arguments["PIFGSM"] = {"max_epsilon": eps}
    direct = getattr(torchattacks, name)(Model(), **arguments.get(name, {}))
    if name == "JSMA":
        wrong = logits(clean).scatter(1, labels[:, None], -torch.inf).argmax(1)
        direct.set_mode_targeted_by_function(lambda *_: wrong, quiet=True)
    kwargs = {"c": 3.0} if name == "CW" else {}
    found = library(name, logits, labels, kwargs=kwargs).run(clean, range(4)).images
    torch.testing.assert_close(found, direct(clean, labels).detach(), atol=1e-6, rtol=0)
    assert not torch.equal(found, clean)


def test_deepfool_stops_at_the_boundary():
    """Its overshoot of 2 % a step is lost to clipping: the library's flaw, to be seen as it is."""
    logits, clean, labels = problem(6)
    kept = library("DeepFool", logits, labels).run(clean, range(6))
    assert kept.loss_last[kept.right].abs().max() < 1e-5
    far = library("DeepFool", logits, labels, kwargs={"overshoot": 0.5})
    assert not far.run(clean, range(6)).right.any()


def test_distances_are_those_of_the_images():
    logits, clean, labels = problem(6)
    result = library("OnePixel", logits, labels, kwargs={"pixels": 2}).run(clean, range(6))
    changed = (result.images != clean).any(dim=1).sum(dim=(1, 2))
    assert result.reached["l0"].tolist() == changed.tolist()
    assert 1 <= changed.max() <= 2 and (changed == 0).any()
    torch.testing.assert_close(result.reached["l1"], (result.images - clean).abs().sum((1, 2, 3)))
    wrong = ~is_right(logits, clean, labels)
    assert all((value[wrong] == 0).all() for value in result.reached.values())


@pytest.mark.parametrize("sign", [1, -1])
def test_a_pixel_counts_once_in_whatever_channel(monkeypatch, sign):
    red = sign * torch.tensor([2 / 255, 0, 0]).view(1, 3, 1, 1)
    attack, clean = misbehaving(monkeypatch, lambda x: x + red)
    result = attack.run(clean, range(3))
    kept = (result.images != clean).flatten(1).any(1)  # where the margin rises
    assert result.reached["l0"].tolist() == (64.0 * kept).tolist()
    assert kept.all() == (sign == -1)


# --- randomness and conduct ----------------------------------------------------------------------


def test_restarts_attack_what_is_left():
    logits, clean, labels = problem(12)
    sizes = {"eps": 5 / 255, "alpha": 1 / 255, "steps": 1}
    one, six = (
        library("PGD", logits, labels, **sizes, restarts=n).run(clean, range(12)) for n in (1, 6)
    )
    assert not (six.right & ~one.right).any() and six.right.sum() < one.right.sum()
    assert (six.loss_last >= one.loss_last - 1e-6)[one.right].all()
    assert torch.equal(six.images[~one.right], one.images[~one.right])


@pytest.mark.parametrize(("name", "kwargs"), [("MIFGSM", {}), ("DeepFool", {"overshoot": 0.5})])
def test_a_gradient_of_zero_is_counted_and_spoils_no_other_sample(name, kwargs):
    """Both divide by it; DeepFool's image is NaN, and the sample comes back as it was."""
    logits, clean, labels = problem(8)
    alone = library(name, logits, labels, kwargs=kwargs).run(clean, range(8))
    flat = (~alone.right & is_right(logits, clean, labels)).nonzero()[0].item()
    sure = 10.0 * torch.nn.functional.one_hot(labels[flat], 5).double()
    lost = []

    def partly_flat(x):
        lost.append(bool(x.isnan().any()))
        here = [bool((one - clean[flat]).abs().max() <= 9 / 255) for one in x.detach()]
        stuck = [bool((one == 0.5).all()) for one in x.detach()]  # what stands for NaN
        return torch.where(
            torch.tensor(here)[:, None] | torch.tensor(stuck)[:, None], sure, logits(x)
        )

    result = library(name, partly_flat, labels, kwargs=kwargs).run(clean, range(8))
    assert not any(lost)
    assert result.zero_grad.nonzero().flatten().tolist() == [flat]
    assert torch.equal(result.images[flat], clean[flat]) and result.right[flat]
    others = torch.arange(8) != flat
    torch.testing.assert_close(result.images[others], alone.images[others], atol=1e-6, rtol=0)


def test_samples_lost_to_nan_come_back_as_they_were(monkeypatch):
    one = torch.zeros(3, 3, 8, 8, dtype=torch.bool)
    one[1, 2, 7, 0] = True  # a value of an image
    attack, clean = misbehaving(monkeypatch, lambda x: x.masked_fill(one, torch.nan))
    result = attack.run(clean, range(3))
    assert result.zero_grad.tolist() == [False, True, False]
    assert torch.equal(result.images, clean) and result.right.all()


def test_a_model_without_gradient_is_refused_but_not_to_black_boxes():
    logits, clean, labels = problem(6)
    steps = lambda x: logits((x * 20).round() / 20).detach()  # noqa: E731
    labels = steps(clean).argmax(1)
    with pytest.raises(UserError, match="does not depend on the images"):
        library("PGD", steps, labels).run(clean, range(6))
    result = library("Square", steps, labels, eps=0.2).run(clean, range(6))
    assert not result.right.all() and not result.zero_grad.any()


# --- what comes back is not taken on trust -------------------------------------------------------


def misbehaving(monkeypatch, change):
    """Make torchattacks.PGD return ``change(images)``."""
    monkeypatch.setattr(
        torchattacks.PGD, "forward", lambda self, images, labels: change(images.clone())
    )
    logits, _, _ = problem(1)
    clean = torch.full((3, 3, 8, 8), 0.5)
    return library("PGD", logits, logits(clean).argmax(1)), clean


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x + 9 / 255, r"PGD went to 0.0352\d*, outside its linf ball of 0.0313"),
        (lambda x: x + 1, "PGD returned pixels from 1.5 to 1.5"),
        (lambda x: x[:2], r"PGD returned images of shape \(2, 3, 8, 8\)"),
        (lambda x: 1 / 0, "PGD failed in the library: ZeroDivisionError"),
    ],
)
def test_what_the_library_gets_wrong_is_an_error(monkeypatch, change, words):
    attack, clean = misbehaving(monkeypatch, change)
    with pytest.raises(RuntimeError, match=words):
        attack.run(clean, range(3))


def test_rounding_is_put_right(monkeypatch):
    attack, clean = misbehaving(monkeypatch, lambda x: x + 8 / 255 + 4e-6)
    assert attack.run(clean, range(3)).max_linf <= 8 / 255 + 1e-7


def test_infinite_logits_stop_it():
    logits, clean, labels = problem(3)
    labels = logits(clean).argmax(1)
    moved = lambda x: logits(x) / (torch.equal(x, clean[: len(x)]) or 0.0)  # noqa: E731
    with pytest.raises(NotFinite, match="logits are not finite"):
        library("Square", moved, labels).run(clean, range(3))


# --- names, settings, defaults -------------------------------------------------------------------


def test_names_in_whatever_case():
    made = fields_of("TorchAttacks:mifgsm", "linf", 0.1, None, None, {})
    assert made["name"] == "torchattacks:MIFGSM"


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_sound_defaults(name):
    norm = "l2" if name in L2 else "linf"
    fields = library_fields(name, norm=norm, eps=0.02)
    assert isinstance(fields["steps"], int) and fields["steps"] >= (name != "GN")
    assert (fields["eps"] == 0.02) == (name in BOUNDED)
    assert fields["alpha"] is None or 0.001 < fields["alpha"] <= 0.03  # never far above eps
    assert not set(fields["kwargs"]) & {"eps", "steps", "alpha", "norm", "seed", "model", "verbose"}
    given = {key: fields[key] for key in ("norm", "eps", "alpha", "steps", "kwargs")}
    assert library_fields(name, **given) == fields


def test_defaults_of_some_classes():
    def of(name, **given):
        return library_fields(name, **({"eps": 4 / 255} | given))

    for name in ("APGD", "APGDT", "AutoAttack", "FAB"):
        assert of(name)["steps"] == 100 and of(name)["alpha"] is None
    assert of("Square")["steps"] == 5000 and of("PGD", steps=7)["steps"] == 7
    assert of("PGD")["alpha"] == pytest.approx(1 / 255)  # eps / 4, as 2/255 of 8/255
    assert of("FFGSM")["alpha"] == pytest.approx(5 / 255)
    assert of("PGD", alpha=3 / 255)["alpha"] == 3 / 255
    assert of("FGSM", steps=50, alpha=0.1) == {
        "name": "torchattacks:FGSM",
        "norm": "linf",
        "eps": 4 / 255,
        "alpha": None,
        "steps": 1,
        "kwargs": {},
    }
    assert of("CW", kwargs={"c": 10}) == {
        "name": "torchattacks:CW",
        "norm": "l2",
        "eps": None,
        "alpha": None,
        "steps": 50,
        "kwargs": {"c": 10, "kappa": 0, "lr": 0.01},
    }
    assert of("Pixle")["kwargs"]["x_dimensions"] == [2, 10]


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("PGDD", {}, "no class 'PGDD'. Did you mean PGD"),
        ("xyzzy", {}, "Choose one of: APGD, APGDT, AutoAttack"),
        ("LGV", {}, "LGV cannot attack here: it trains models"),
        ("multiattack", {}, "MultiAttack cannot attack here: it is made of other attacks"),
        ("VANILA", {}, "returns the images as they are"),
        ("CW", {"kwargs": {"kapa": 1}}, "takes no setting 'kapa'. Did you mean kappa"),
        ("FGSM", {"kwargs": {"std": 1}}, "takes no setting 'std'. It takes none"),
        ("CW", {"kwargs": {"steps": 9}}, "steps is set by STEPS"),
        ("PIFGSM", {"kwargs": {"max_epsilon": 0.1}}, "max_epsilon is set by EPS"),
        ("FAB", {"kwargs": {"n_restarts": 2}}, "n_restarts is set by RESTARTS"),
        ("APGD", {"kwargs": {"seed": 2}}, "takes no setting 'seed'"),
        ("CW", {"kwargs": {"c": "ten"}}, "KWARGS.c is 'ten', expected a value like 1"),
        ("CW", {"kwargs": {"c": True}}, "KWARGS.c is True"),
        ("APGD", {"kwargs": {"loss": 3}}, "KWARGS.loss is 3, expected a value like 'ce'"),
        ("PGD", {"kwargs": {"random_start": 1}}, "KWARGS.random_start is 1"),
        ("Pixle", {"kwargs": {"x_dimensions": "wide"}}, "KWARGS.x_dimensions is 'wide'"),
        ("PGDL2", {}, "ball in l2 but NORM is 'linf'; set NORM l2 and EPS"),
        ("PGD", {"norm": "l2"}, "ball in linf but NORM is 'l2'"),
        ("APGD", {"norm": "l1"}, "ball in linf or l2 but NORM is 'l1'"),
        ("PGD", {"eps": None}, "needs EPS"),
        ("PGD", {"steps": 0}, "at least 1 steps, not 0"),
        ("EADEN", {"steps": 9}, "at least 10 steps, not 9"),
    ],
)
def test_wrong_names_and_settings_are_refused(name, given, words):
    with pytest.raises(UserError, match=words):
        library_fields(name, **({"eps": 0.1} | given))


@pytest.mark.parametrize(
    ("name", "kwargs", "classes", "shape", "words"),
    [
        ("APGDT", {}, 3, (8, 8), "APGDT needs at least 4 classes but the model has 3"),
        ("AutoAttack", {}, 2, (8, 8), "AutoAttack needs at least 4 classes"),
        ("APGDT", {"n_classes": 6}, 5, (8, 8), "n_classes is 6 but the model has 5 classes"),
        ("JSMA", {}, 5, (80, 80), "too many for images of"),
        ("AutoAttack", {"version": "best"}, 5, (8, 8), "refuses its settings: Not valid version"),
        ("Pixle", {"x_dimensions": [0, 2]}, 5, (8, 8), "refuses its settings: dimensions"),
    ],
)
def test_what_cannot_work_is_refused(name, kwargs, classes, shape, words):
    clean = torch.full((2, 3, *shape), 0.5)
    weight = torch.randn(clean[0].numel(), classes, generator=torch.Generator().manual_seed(0))
    logits = lambda x: x.flatten(1) @ weight  # noqa: E731
    with pytest.raises(UserError, match=words):
        labels = logits(clean).argmax(1)
        library(name, logits, labels, kwargs=kwargs).run(clean, range(2))


def test_a_setting_the_library_refuses_on_the_way_is_told():
    logits, clean, labels = problem(3)
    with pytest.raises(RuntimeError, match="APGD failed in the library: ValueError: unknown loss"):
        library("APGD", logits, labels, kwargs={"loss": "cee"}).run(clean, range(3))


@pytest.mark.parametrize(("classes", "targets"), [(4, 3), (7, 6), (30, 9)])
def test_the_number_of_classes_is_the_models(classes, targets):
    logits, clean, labels = problem(3, classes)
    attack = library("AutoAttack", logits, labels, steps=None)
    made = attack._make(clean, classes, 0)
    ce, targeted, fab, square = made._autoattack.attacks
    assert targeted.n_target_classes == fab.n_target_classes == targets
    assert ce.steps == targeted.steps == fab.steps == 100 and square.n_queries == 5000
    more = library("APGDT", logits, labels, kwargs={"n_classes": 3})
    assert more._make(clean, classes, 0).n_target_classes == 2


def test_jsma_attacks_more_and_fewer_than_ten_classes():
    for classes in (3, 12):
        logits, clean, labels = problem(4, classes)
        result = library("JSMA", logits, labels).run(clean, range(4))
        assert not result.right.all()
