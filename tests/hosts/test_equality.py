"""Our trainers give the same losses here and in a fork, on the stand-in and on Dassl itself.

Needs ADVPROMPT_HOSTS with checkouts of Dassl.pytorch and CoOp; skipped without. The figures that
Dassl itself gives are also in tests/test_compat_equality.py, which needs no checkout.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

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

CONTENT = shutil.ignore_patterns("__pycache__", ".*", "output")


def as_package(site: Path) -> Path:
    """Lay this repository's folders out below ``site`` as pip installs them."""
    for folder in ("trainers", "datasets", "tools", "compat", "configs"):
        inside = "advprompt" if folder == "trainers" else f"advprompt/{folder}"
        shutil.copytree(ROOT / folder, site / inside, ignore=CONTENT, dirs_exist_ok=True)
    return site


def fork_of_coop(folder: Path) -> Path:
    """Copy CoOp's checkout and add the two lines that make our trainers its own."""
    shutil.copytree(checkout("CoOp"), folder, ignore=CONTENT)
    path = folder / "train.py"
    source = path.read_text(encoding="utf-8")
    line = "    cfg = get_cfg_default()\n    extend_cfg(cfg)\n"
    assert line in source
    source = source.replace(line, f"{line}    advprompt.extend_cfg(cfg)\n")
    path.write_text(f"import advprompt\n{source}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Run AdvPT and CAPT in every place: place -> trainer -> losses and test counts."""
    dassl = real_dassl()
    folder = tmp_path_factory.mktemp("equality")
    weights = toy_weights(folder / "toy.pt")
    root = pets_of_noise(folder / "data")
    fork = fork_of_coop(folder / "CoOp")
    pip = {"host": fork, "first": "advprompt", "paths": [as_package(folder / "site")]}
    found = {}
    for place, job in {
        "here, stand-in": {"host": ROOT},
        "here, Dassl": {"host": ROOT, "dassl": dassl},
        "fork, open_clip": {**pip, "dassl": dassl},
        "fork, its clip": {**pip, "dassl": dassl, "env": {"ADVPROMPT_CLIP_PROVIDER": "clip"}},
    }.items():
        out = folder / place.replace(", ", "-")
        runs = [ours(trainer, root, weights, out / trainer) for trainer in OURS]
        done = run_child(out.with_suffix(".json"), runs=runs, **job)
        found[place] = {}
        for trainer, run in zip(OURS, done["runs"], strict=True):
            record = json.loads((out / trainer / "record.json").read_text())
            attacks = [(a["n"], a["correct"]) for a in record["attacks"]]
            counts = [(record["clean"]["n"], record["clean"]["correct"]), *attacks]
            found[place][trainer] = run["losses"], counts
            assert ("clip.model" in run["code"]) == place.endswith("its clip")
    return found


PLACES = ("here, stand-in", "here, Dassl", "fork, open_clip", "fork, its clip")


@pytest.mark.parametrize("trainer", OURS)
@pytest.mark.parametrize("place", PLACES)
def test_losses_are_those_on_dassl(place, trainer, places):
    losses, counts = places[place][trainer]
    expected, expected_counts = places["here, Dassl"][trainer]
    assert losses == pytest.approx(LOSSES[trainer], abs=TOLERANCE, rel=0)
    assert losses == pytest.approx(expected, abs=TOLERANCE, rel=0)
    assert counts == expected_counts and counts[0][0] == 9
