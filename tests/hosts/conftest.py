"""The checkouts of hosts, or a skip that says what is missing."""

import importlib.util
import os
from pathlib import Path

import pytest

from tests.hosts import make_host


@pytest.fixture(scope="session")
def hosts() -> Path:
    """The folder of checkouts, with Dassl itself and what it needs."""
    folder = os.environ.get("ADVPROMPT_HOSTS")
    if not folder:
        pytest.skip("ADVPROMPT_HOSTS names no folder with checkouts of public hosts")
    for package in ("sklearn", "gdown", "tensorboard"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"Dassl itself needs the package {package}")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def world(hosts, tmp_path_factory):
    """Weights and our wheel, made once."""
    folder = tmp_path_factory.mktemp("world")
    return make_host.World(
        hosts=hosts,
        weights=make_host.make_weights(folder / "weights"),
        site=make_host.make_wheel(folder),
    )
