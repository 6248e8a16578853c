"""AdvPT's and CAPT's losses are those that Dassl itself gives, to 1e-5.

The figures were measured on a checkout of Dassl, where tests/hosts/test_equality.py measures them
again. Rounding on another processor or with more threads changed them by 1e-6 at most.
"""

from __future__ import annotations

import pytest
from dassl.engine import build_trainer
from dassl.utils import set_random_seed

from advprompt.cli import train
from tests.hosts.dassl_runs import LOSSES, TOLERANCE, keep_losses, ours, pets_of_noise, toy_weights


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Data and weights of those runs."""
    folder = tmp_path_factory.mktemp("equality")
    return pets_of_noise(folder / "data"), toy_weights(folder / "toy.pt")


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_on_dassl(name, toys, tmp_path):
    cfg = train.setup_cfg(train.parser().parse_args(ours(name, *toys, tmp_path)))
    set_random_seed(cfg.SEED)
    losses = []
    keep_losses(build_trainer(cfg), losses).train()
    assert losses == pytest.approx(LOSSES[name], abs=TOLERANCE, rel=0)
