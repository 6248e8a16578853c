"""Weights that several tests of attacks read."""

import pytest
import torch


@pytest.fixture(scope="session")
def resnet(tmp_path_factory):
    """A randomly initialised ResNet-18 with K outputs as a file: ``resnet(K)``, its name."""
    from torchvision.models import resnet18

    def make(classes: int) -> str:
        path = tmp_path_factory.mktemp("resnet") / f"resnet18_{classes}.pt"
        with torch.random.fork_rng():
            torch.manual_seed(1)
            torch.save(resnet18(num_classes=classes).state_dict(), path)
        return f"torchvision:resnet18?weights={path}"

    return make
