"""RAP: its steps against their definition, and the surrogates it is made on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from advprompt import losses
from advprompt.attacks import RAP, load_surrogate
from advprompt.backbone import text_features
from advprompt.utils.errors import UserError
from tests.toy import toy_clip

from .toy_problem import distance, is_right, problem, spec

SETTINGS = {"late_start": 2, "inner_steps": 3, "inner_eps": "4/255", "surrogate": "clip"}
PROMPTS = ["a red circle", "a green square", "a blue arrow"]


def rap(logits, labels, kwargs=None, **changes) -> RAP:
    usual = {"eps": 8 / 255, "alpha": 2 / 255, "steps": 6}
    return RAP(logits, labels, spec("rap", kwargs=SETTINGS | (kwargs or {}), **usual | changes))


# --- the attack ----------------------------------------------------------------------------------


def test_the_losses_are_those_of_the_images():
    logits, clean, labels = problem(5)
    for late in (0, 2):
        attack = rap(logits, labels, start="zero", kwargs={"late_start": late})
        result = attack.run(clean, range(5))
        with torch.no_grad():
            first, last = (
                -logits(x).gather(1, labels[:, None])[:, 0].float() for x in (clean, result.images)
            )
        torch.testing.assert_close(result.loss_first, first)
        torch.testing.assert_close(result.loss_last, last)
        assert (last > first).all() and not result.zero_grad.any()


def test_it_breaks_the_model_that_it_is_made_on():
    logits, clean, labels = problem(20)
    before = is_right(logits, clean, labels).sum()
    noise = 16 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).sign()
    assert is_right(logits, (clean + noise).clamp(0, 1), labels).sum() > 0.75 * before
    for objective in ("logit", "ce"):
        attack = rap(logits, labels, eps=16 / 255, steps=20, objective=objective)
        images = attack.run(clean, range(20)).images
        assert is_right(logits, images, labels).sum() <= before / 2, objective


def test_the_reverse_perturbation_starts_late_and_descends(monkeypatch):
    logits, clean, labels = problem(6)
    attack, found, real = rap(logits, labels, steps=5), [], RAP.reverse

    def watched(self, images):
        moved = real(self, images)
        found.append((self.step, images.clone(), moved))
        return moved

    monkeypatch.setattr(RAP, "reverse", watched)
    attack.run(clean, range(6))
    assert [step for step, _, _ in found] == [3, 4, 5]  # two steps without
    for _, images, moved in found:
        assert moved.abs().max() <= 4 / 255 + 1e-6 and not moved.requires_grad
        assert (images + moved).min() >= 0 and (images + moved).max() <= 1 + 1e-6
        with torch.no_grad():
            before, after = (
                losses.cross_entropy(logits(x), labels) for x in (images, images + moved)
            )
        assert (after < before).all()


def test_without_a_reverse_perturbation_and_diversity_it_is_pgd():
    """Late start as late as it gets and radius 0: the sign of the plain gradient at every step."""
    logits, clean, labels = problem(4)
    plain = {"inner_eps": 0, "probability": 0.0, "late_start": 0}
    result = rap(logits, labels, start="zero", steps=3, kwargs=plain).run(clean, range(4))
    images = clean.clone()
    for _ in range(3):
        images.requires_grad_(True)
        own = logits(images).gather(1, labels[:, None]).sum()
        (grad,) = torch.autograd.grad(own, images)
        images = (images.detach() - 2 / 255 * grad.sign()).clamp(clean - 8 / 255, clean + 8 / 255)
        images = images.clamp(0, 1)
    torch.testing.assert_close(result.images, images, atol=1e-6, rtol=0)


def test_the_gradient_is_taken_at_the_reversely_perturbed_image():
    logits, clean, labels = problem(4)
    asked = []

    def watched(x):
        if torch.is_grad_enabled() and x.requires_grad:
            asked.append(x.detach().clone())
        return logits(x)

    attack = rap(
        watched,
        labels,
        start="zero",
        steps=1,
        kwargs={"late_start": 0, "probability": 0.0, "inner_steps": 2},
    )
    result = attack.run(clean, range(4))
    # two inner steps, then the step of the attack itself, away from the clean image
    assert len(asked) == 3
    begun = (asked[0] - clean)[(clean > 4 / 255) & (clean < 1 - 4 / 255)]
    assert begun.abs().max() <= 4 / 255 + 1e-6 and begun.mean().abs() < 0.5 / 255
    away = distance(asked[2], clean, "linf")
    assert (away > 1 / 255).all() and (away <= 4 / 255 + 1e-6).all()
    there = asked[2].requires_grad_(True)
    (grad,) = torch.autograd.grad(logits(there).gather(1, labels[:, None]).sum(), there)
    step = (clean - 2 / 255 * grad.sign()).clamp(0, 1)
    torch.testing.assert_close(result.images, step, atol=1e-6, rtol=0)


def test_without_labels_it_leads_away_from_the_surrogates_own_answers():
    logits, clean, _ = problem(5)
    with torch.no_grad():
        own = logits(clean).argmax(1)
    torch.testing.assert_close(
        rap(logits, None).run(clean, range(5)).images, rap(logits, own).run(clean, range(5)).images
    )


# --- surrogates ----------------------------------------------------------------------------------


def test_a_classifier_of_the_data_sets_classes(resnet):
    found = load_surrogate(resnet(3), prompts=PROMPTS)
    assert (found.classes, found.of_dataset, found.size) == (3, True, 224)
    from torchvision.models import resnet18
    from torchvision.transforms.functional import normalize

    model = resnet18(num_classes=3).eval()
    path = resnet(3).partition("=")[2]
    model.load_state_dict(torch.load(path, weights_only=True))
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = model(normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        torch.testing.assert_close(found(images), expected)
    small = torch.rand(2, 3, 32, 32, requires_grad=True)
    (grad,) = torch.autograd.grad(found(small).sum(), small)
    assert grad.abs().flatten(1).amax(1).min() > 0
    assert found.knows("auto", 3) and found.knows("dataset", 3) and not found.knows("surrogate", 3)


@pytest.mark.parametrize(
    ("name", "same"), [("bn1.num_batches_tracked", True), ("conv1.weight", False)]
)
def test_a_classifier_is_known_by_what_its_answers_depend_on(resnet, tmp_path, name, same):
    file = resnet(3)
    state = torch.load(file.partition("=")[2], weights_only=True)
    torch.save(state | {name: state[name] + 1}, tmp_path / "other.pt")
    other = f"torchvision:resnet18?weights={tmp_path / 'other.pt'}"
    digests = {load_surrogate(each, prompts=PROMPTS).sha256 for each in (file, other)}
    assert (len(digests) == 1) == same


def test_a_classifier_of_other_classes_leads_away_from_its_own_answers(resnet):
    found = load_surrogate(resnet(1000), prompts=PROMPTS)
    assert (found.classes, found.of_dataset) == (1000, False) and not found.knows("auto", 3)
    with pytest.raises(UserError, match="1000 classes and the data set 3"):
        found.knows("dataset", 3)


def test_foreign_and_dangerous_files_are_refused(resnet, tmp_path):
    wrong = resnet(3).replace("resnet18?", "resnet50?")
    with pytest.raises(UserError, match="of another network"):
        load_surrogate(wrong, prompts=PROMPTS)
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=3), tmp_path / "whole.pt")
    with pytest.raises(UserError, match="could run code"):
        load_surrogate(f"torchvision:resnet18?weights={tmp_path / 'whole.pt'}", prompts=PROMPTS)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(UserError, match="no checkpoint"):
        load_surrogate(f"torchvision:resnet18?weights={tmp_path / 'text.pt'}", prompts=PROMPTS)


def test_weights_of_torchvision_are_read_without_running_them(resnet, monkeypatch):
    import torchvision.models as models

    state = torch.load(resnet(1000).partition("=")[2], weights_only=True)
    asked = []
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url",
        lambda url, **options: asked.append((url, options)) or state,
    )
    found = load_surrogate("torchvision:resnet18", prompts=PROMPTS)
    assert not found.of_dataset and found.classes == 1000
    ((url, options),) = asked
    assert url == models.ResNet18_Weights.IMAGENET1K_V1.url and options["weights_only"] is True

    def offline(url, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"neither found nor fetched .*resnet18\?weights=PATH"):
        load_surrogate("torchvision:resnet18", prompts=PROMPTS)


def test_a_clip_classifies_by_the_handmade_prompt(toy_file):
    clip = toy_clip()
    found = load_surrogate("clip", prompts=PROMPTS, clip=clip)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = torch.nn.functional.normalize(clip.encode_image(images), dim=-1)
        expected = clip.logit_scale * features @ text_features(clip, PROMPTS).t()
        torch.testing.assert_close(found(images), expected)
        large = torch.rand(2, 3, 80, 96)
        small = F.interpolate(large, (32, 32), mode="bicubic", antialias=True)
        torch.testing.assert_close(found(large), found(small))
    assert found.of_dataset and found.sha256 != clip.sha256
    other = load_surrogate("clip", prompts=PROMPTS[::-1], clip=clip)
    assert other.sha256 != found.sha256


def test_clips_of_open_clip(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "advprompt.attacks.surrogates.load_clip",
        lambda name, device: asked.append(name) or toy_clip(),
    )
    (tmp_path / "own.pt").write_bytes(b"")
    load_surrogate("open_clip:RN50-quickgelu/yfcc15m", prompts=PROMPTS)
    load_surrogate(f"open_clip:RN50?weights={tmp_path / 'own.pt'}", prompts=PROMPTS)
    assert asked == ["open_clip:RN50-quickgelu/yfcc15m", f"file:{tmp_path / 'own.pt'}?arch=RN50"]
