"""Our trainers give the same losses here and in a fork, on the stand-in and on Dassl itself.

Needs ADVPROMPT_HOSTS with checkouts of Dassl.pytorch and CoOp; skipped without. The figures that
Dassl itself gives are also in tests/test_compat_equality.py, which needs no checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts import make_host
from tests.hosts.dassl_runs import (
    LOSSES,
    OURS,
    ROOT,
    TOLERANCE,
    checkout,
    ours,
    pets_of_noise,
    real_dassl,
    run_child,
    toy_weights,
)

pytestmark = pytest.mark.slow

PLACES = {  # place -> road into a fork of CoOp (none: here), provider of CLIP
    "here, stand-in": ("", "open_clip"),
    "here, Dassl": ("", "open_clip"),
    "fork, pip": ("pip", "open_clip"),
    "fork, pip, its clip": ("pip", "clip"),
    "fork, copied, its clip": ("copy", "clip"),
}


def fork_of_coop(folder: Path, road: str) -> dict:
    """Copy CoOp's checkout, bring our trainers into it and return how to run it."""
    host = folder / f"CoOp-{road}"
    shutil.copytree(checkout("CoOp"), host, ignore=shutil.ignore_patterns("__pycache__", ".git"))
    if road == "pip":
        make_host.add_two_lines(host / "train.py")
        return {"host": host, "first": "advprompt", "paths": [make_host.make_wheel(folder)]}
    words = [sys.executable, "-m", "advprompt", "dropin", str(host), "--apply"]
    path = os.pathsep.join(filter(None, [str(real_dassl()), os.environ.get("PYTHONPATH")]))
    subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, check=True)
    return {"host": host, "first": "trainers.advprompt", "paths": []}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Run AdvPT and CAPT in every place: place -> trainer -> losses and test counts."""
    dassl = real_dassl()
    folder = tmp_path_factory.mktemp("equality")
    weights = toy_weights(folder / "toy.pt")
    root = pets_of_noise(folder / "data")
    hosts = {"": {"host": ROOT}} | {road: fork_of_coop(folder, road) for road in ("pip", "copy")}
    found = {}
    for place, (road, provider) in PLACES.items():
        out = folder / place.replace(", ", "-")
        runs = [ours(trainer, root, weights, out / trainer) for trainer in OURS]
        done = run_child(
            out.with_suffix(".json"),
            runs=runs,
            dassl=None if place.endswith("stand-in") else dassl,
            env={"ADVPROMPT_CLIP_PROVIDER": provider},
            **hosts[road],
        )
        found[place] = {}
        for trainer, run in zip(OURS, done["runs"], strict=True):
            record = json.loads((out / trainer / "record.json").read_text())
            attacks = [(a["n"], a["correct"]) for a in record["attacks"]]
            counts = [(record["clean"]["n"], record["clean"]["correct"]), *attacks]
            found[place][trainer] = run["losses"], counts
            assert ("clip.model" in run["code"]) == (provider == "clip")
    return found


@pytest.mark.parametrize("trainer", OURS)
@pytest.mark.parametrize("place", PLACES)
def test_losses_are_those_on_dassl(place, trainer, places):
    losses, counts = places[place][trainer]
    expected, expected_counts = places["here, Dassl"][trainer]
    assert losses == pytest.approx(LOSSES[trainer], abs=TOLERANCE, rel=0)
    assert losses == pytest.approx(expected, abs=TOLERANCE, rel=0)
    assert counts == expected_counts and counts[0][0] == 9
