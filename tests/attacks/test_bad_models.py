"""Models and labels that no attack should be given."""

import pytest
import torch

from advprompt.attacks import GradientAttack, objective_for
from advprompt.attacks.autoattack import PARTS, build_part
from advprompt.utils.errors import UserError

from .test_autoattack import spec

IMAGES = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))


def logits(x):
    return x.flatten(1) @ WEIGHTS


def attack(name, model, labels):
    if name == "pgd":
        threat = spec("pgd", STEPS=2, RESTARTS=1)
        loss = objective_for(threat, model, labels=labels)
        return GradientAttack(loss, threat).run(IMAGES, range(4))
    return build_part(spec(name, STEPS=2), model, labels).run(IMAGES, range(4))


@pytest.mark.parametrize("name", ["pgd", *PARTS])
def test_probabilities_are_no_logits(name):
    labels = logits(IMAGES).argmax(1)
    with pytest.raises(UserError, match="returns probabilities .* leave the softmax out"):
        attack(name, lambda x: logits(x).softmax(1), labels)
    attack(name, logits, labels)


@pytest.mark.parametrize("name", ["pgd", *PARTS])
@pytest.mark.parametrize("label", [-1, 6])
def test_labels_have_a_class(name, label):
    with pytest.raises(UserError, match=rf"label {label} is outside 0..5"):
        attack(name, logits, torch.tensor([0, 1, label, 2]))
