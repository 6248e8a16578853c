"""Questions to the model: every bound from both sides; the masks themselves are in test_zoo.py."""

from dataclasses import replace

import pytest
import torch

from advprompt.attacks import AttackSpec, judge, probe_attack, probe_model, probes
from advprompt.attacks.probes import LARGE, SHARES
from advprompt.utils.errors import UserError
from tests.attacks.zoo import Toy, backward

SPEC = AttackSpec("pgd", 4 / 255, 1 / 255, 20, 1, "uniform", "ce", "end_to_end")
SEEDS = range(32)
HONEST = {"probed": 32, "repeat_logits": 1e-6, "batch_logits": 1e-5, "logit_spread": 10.0}


def names(figures) -> list[str]:
    return [text.partition(":")[0] for text in judge(figures)]


@pytest.fixture
def sample():
    """32 images of areas of one colour, and the classes that the toy sees in them."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (32, 3, 2, 2), generator=draw) / 255
    pixels = torch.nn.functional.interpolate(pixels, scale_factor=4)
    return pixels, Toy()(pixels).argmax(1)


def test_figures_of_an_honest_model(sample):
    found = probe_model(Toy(), *sample, SEEDS)
    assert found["probed"] == 32 and found["repeat_logits"] == 0 and found["batch_logits"] < 1e-5
    logits = Toy()(sample[0])
    spread = (logits.amax(1) - logits.amin(1)).median().item()
    assert found["logit_spread"] == pytest.approx(spread)
    for name in ("large_eps_right", "gradient_differs", "rise_small", "rise_large"):
        assert found[name] == 0, name
    assert names(found) == []
    unseen = probe_model(Toy(), *sample, SEEDS, exact=False)
    assert unseen.keys() == found.keys() - {"gradient_differs", "rise_small", "rise_large"}


@pytest.mark.parametrize("factor", [1e-2, 1e3])
def test_a_temperature_changes_no_figure_but_the_spread(sample, factor):
    plain = probe_model(Toy(), *sample, SEEDS)
    scaled = probe_model(lambda x: Toy()(x) * factor, *sample, SEEDS)
    assert scaled["logit_spread"] == pytest.approx(plain["logit_spread"] * factor, rel=1e-4)
    for name in ("batch_logits", "gradient_differs", "rise_small", "rise_large"):
        assert scaled[name] == pytest.approx(plain[name], abs=1e-4), name


@pytest.mark.parametrize(
    ("factor", "share"),
    [(1.4, 0), (0.7, 0), (2.3, 1), (0.45, 1)],  # of the gradient that is handed back
)
def test_the_promised_rise_holds_within_a_factor_of_two(sample, factor, share):
    found = probe_model(lambda x: Toy()(backward(lambda g: factor * g)(x)), *sample, SEEDS)
    assert found["rise_small"] == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize(("lost", "differs"), [(0.0, 0), (0.1, 0), (0.9, 1)])
def test_a_gradient_without_some_pixels_differs(sample, lost, differs):
    draw = torch.Generator().manual_seed(1)
    kept = (torch.rand(3, 8, 8, generator=draw) >= lost).float()
    found = probe_model(lambda x: Toy()(backward(lambda g: g * kept)(x)), *sample, SEEDS)
    assert found["gradient_differs"] == pytest.approx(differs, abs=0.1)
    assert found["rise_small"] == 0  # what is left of it is right


def test_figures_are_shares_of_the_images(sample):
    pixels, labels = sample
    dark = pixels.flatten(1).mean(1) < pixels.flatten(1).mean(1).sort().values[12]  # 12 of 32

    def model(x):  # turns the gradient of dark images round
        odd = (x.flatten(1).mean(1) < (pixels[dark].flatten(1).mean(1).max() + 1e-3))[:, None]
        return torch.where(odd, Toy()(backward(lambda g: -g)(x)), Toy()(x))

    found = probe_model(model, pixels, labels, SEEDS)
    for name in ("gradient_differs", "rise_small", "rise_large"):
        assert found[name] == pytest.approx(12 / 32, abs=2 / 32), name


def test_a_flat_gradient_differs(sample):
    found = probe_model(lambda x: Toy()(x).round() + 0 * Toy()(x), *sample, SEEDS)
    assert found["gradient_differs"] == found["rise_small"] == 1


def test_a_model_without_a_graph_is_refused(sample):
    with pytest.raises(UserError, match="does not depend on the images through autograd; remove"):
        probe_model(lambda x: Toy()(x.detach()), *sample, SEEDS)


def test_what_noise_and_the_margin_break_is_counted_against_the_attack(sample):
    nothing = torch.ones(32, dtype=torch.bool)
    found = probe_attack(Toy(), *sample, SPEC, SEEDS, nothing)
    assert found["noise_stronger"] < 0.1 < found["margin_stronger"]
    assert names(HONEST | found) == ["margin_stronger"]
    everything = probe_attack(Toy(), *sample, SPEC, SEEDS, ~nothing)
    assert everything == {"noise_stronger": 0, "margin_stronger": 0}
    wide = replace(SPEC, eps=80 / 255, alpha=20 / 255)
    assert probe_attack(Toy(), *sample, wide, SEEDS, nothing)["noise_stronger"] > 0.1
    assert probe_attack(Toy(), *sample, wide, SEEDS, nothing, random=True)["noise_stronger"] > 0.05

    def at_times(x):  # of whatever image, a third of the answers is wrong
        draw = torch.rand(len(x), 1, generator=torch.Generator().manual_seed(int(x.sum() * 1e4)))
        return torch.where(draw < 1 / 3, Toy()(x).roll(1, 1), Toy()(x))

    asked = at_times, *sample, replace(SPEC, eps=0.1 / 255), SEEDS, nothing
    once, often = (probe_attack(*asked, random=r)["noise_stronger"] for r in (False, True))
    assert often < 0.1 < once
    assert "margin_stronger" not in probe_attack(
        Toy(), *sample, replace(SPEC, name="di"), SEEDS, nothing
    )


@pytest.mark.parametrize(
    ("steps", "alpha", "margin"),
    [(20, 1 / 255, (20, 1 / 255)), (21, 1 / 255, (20, 2 / 255)), (5, None, (5, 2 / 255))],
)
def test_the_margin_takes_no_more_steps_than_the_attack(sample, monkeypatch, steps, alpha, margin):
    seen, real = [], probes.gradient_attack
    monkeypatch.setattr(
        probes, "gradient_attack", lambda loss, spec: seen.append(spec) or real(loss, spec)
    )
    own = {} if alpha else {"name": "apgd-ce", "start": None, "objective": None}
    asked = replace(SPEC, eps=8 / 255, steps=steps, alpha=alpha, restarts=3, **own)
    probe_attack(Toy(), *sample, asked, SEEDS, torch.ones(32, dtype=torch.bool))
    noise, found = seen
    assert noise.steps == 0 and (found.steps, found.alpha) == margin
    assert (found.restarts, found.drop, found.objective) == (1, True, "margin")


def test_a_spread_is_the_median_and_changes_are_relative_to_it(sample):
    calls = []

    def model(x):  # the second answer is off by 0.5, and those to single images by 0.1
        calls.append(len(x))
        return Toy()(x) + (0.5 if len(calls) == 6 else 0.1 * (len(x) == 1))

    pixels = sample[0]
    found = probes._answers(lambda x: model(x), pixels, model(pixels))
    assert calls == [32, 1, 1, 1, 1, 32]  # four images alone
    assert found["repeat_logits"] == pytest.approx(0.5 / found["logit_spread"], rel=1e-3)
    assert found["batch_logits"] == pytest.approx(0.1 / found["logit_spread"], rel=1e-2)


@pytest.mark.parametrize(
    ("name", "most"),
    [("large_eps_right", 2), ("noise_stronger", 2), ("margin_stronger", 7)]
    + [("gradient_differs", 8), ("rise_small", 8), ("rise_large", 12)],
)
def test_bounds_of_shares_hold_from_both_sides(name, most):
    """The largest count of 32 that chance explains, from the binomial distribution."""
    assert name in SHARES
    assert names(HONEST | {name: most / 32}) == []
    assert names(HONEST | {name: (most + 1) / 32}) == [name]


@pytest.mark.parametrize(
    ("name", "fine", "wrong"),
    [
        ("repeat_logits", 0.0099, 0.0101),
        ("batch_logits", 0.0099, 0.0101),
        ("batch_logits", 0.0099, float("nan")),
        ("logit_spread", 0.0011, 0.0009),
    ],
)
def test_bounds_of_logits_hold_from_both_sides(name, fine, wrong):
    assert names(HONEST | {name: fine}) == []
    assert names(HONEST | {name: wrong}) == [name]


@pytest.mark.parametrize(
    ("clean", "classes", "warned"),
    [
        ((72, 8), 10, True),  # 7.2 by guessing
        ((72, 13), 10, True),  # 2.4 %
        ((72, 15), 10, False),  # 0.5 %
        ((40, 4), 10, False),  # too few images to tell
        ((50, 0), 10, True),
    ],
)
def test_a_model_that_guesses_is_no_evidence(clean, classes, warned):
    found = [text.partition(":")[0] for text in judge(HONEST, clean, classes)]
    assert found == ["chance"] * warned


def test_a_random_model_is_not_blamed_on_the_batch():
    assert names(HONEST | {"repeat_logits": 0.2, "batch_logits": 0.2}) == ["repeat_logits"]


def test_texts_state_the_count_and_what_is_wrong():
    large = 64 / 255, 16 / 255, 20  # as texts and docs say
    assert (LARGE.eps, LARGE.alpha, LARGE.steps) == large
    (text,) = judge(HONEST | {"gradient_differs": 0.5})
    assert text.startswith("gradient_differs: 16 of 32 probed images have a gradient that finite")
