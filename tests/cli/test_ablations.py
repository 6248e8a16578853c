"""Ablations: which runs they plan, that these are accepted, and what is drawn of them."""

from __future__ import annotations

import os
import shlex

import pytest

from advprompt.cli import train
from advprompt.experiments import commands
from tests.conftest import REPO

NAP, CAPT = "TRAINER.NAPTUNING.", "TRAINER.CAPT."


def plan(tmp_path, monkeypatch, words: str, **env: str) -> commands.Step:
    """The one step of ``advprompt run WORDS``."""
    monkeypatch.chdir(REPO)
    variables = {"OUTPUT": str(tmp_path / "out"), "DATA": str(tmp_path), "SEEDS": "1 2"} | env
    (step,) = commands.run(shlex.split(words), commands.Context(os.environ | variables, "usage"))
    return step


def grid(key, values, **fixed):
    return [{key: value} | fixed for value in values.split()]


REFINERS = [{NAP + "REFINER.VISION": on, NAP + "REFINER.TEXT": on} for on in ("True", "False")]
RUNS = {
    "naptuning ablate_depth": [
        {NAP + "PROMPT_DEPTH": str(d)} | on for on in REFINERS for d in range(1, 7)
    ],
    "naptuning ablate_parts": grid(NAP + "N_CTX", "16 0", **REFINERS[0])
    + grid(NAP + "N_CTX", "16", **REFINERS[1]),
    "capt ablate_alpha": grid(CAPT + "ALPHA", "conf acc entropy const ramp"),
    "capt ablate_terms": grid(
        CAPT + "ALPHA_CONST", "0 0.25 0.5 0.75 1", **{CAPT + "ALPHA": "const"}
    ),
    "apd ablate_teacher": grid("TRAINER.APD.TEACHER", "online offline zero_shot"),
    "advpt ablate_vectors": grid("TRAINER.ADVPT.N_CTX", "1 2 4 8 16 32 50"),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_runs_of_an_ablation(tmp_path, monkeypatch, name):
    expected, names = RUNS[name], set(RUNS[name][0])
    step = plan(tmp_path, monkeypatch, f"{name} shapes 16 tiny OPTIM.MAX_EPOCH 3")
    found = []
    for job in step.jobs:
        cfg = train.build_cfg(job.words)  # refuses what does not exist
        assert (cfg.DATASET.NUM_SHOTS, cfg.OPTIM.MAX_EPOCH) == (16, 3)
        # what main runs have drawn and attacked serves these too
        assert cfg.DATASET.FEATURE_DIR == str(tmp_path / "out/cache/banks")
        given = dict(zip(job.settings.opts[::2], job.settings.opts[1::2], strict=True))
        found.append((cfg.SEED, {k: v for k, v in given.items() if k in names}))
    assert found == [(seed, values) for values in expected for seed in (1, 2)]
    folders = {job.run for job in step.jobs}
    home = str(tmp_path / "out/ablations" / name.replace(" ablate", "") / "shapes")
    assert len(folders) == len(step.jobs) and all(f.startswith(f"{home}/") for f in folders)
    report, curve = step.shows
    assert report == ["report", home]
    key = next(iter(expected[0]))
    assert curve == ["curves", home, "--over", key, "--out", f"{home}/curve.png"]


def test_depth_goes_to_the_backbones_and_values_may_be_others(tmp_path, monkeypatch):
    def values(words, key, **env):
        jobs = plan(tmp_path, monkeypatch, words, SEEDS="3", **env).jobs
        pairs = [zip(j.settings.opts[::2], j.settings.opts[1::2], strict=True) for j in jobs]
        return [dict(pair)[key] for pair in pairs]

    depths = values("naptuning ablate_depth pets 16 vit_b16", NAP + "PROMPT_DEPTH")
    assert depths == 2 * [str(depth) for depth in range(1, 13)]
    key = "TRAINER.ADVPT.N_CTX"
    assert values("advpt ablate_vectors pets all tiny", key, VALUES="5 6") == ["5", "6"]


def test_an_ablation_of_ones_own(tmp_path, monkeypatch):
    words = shlex.join(["APD", "ablate_rate", "OPTIM.LR=0.1 0.2", "shapes", "16", "tiny"])
    step = plan(tmp_path, monkeypatch, words, SEEDS="1")
    assert [job.settings.opts for job in step.jobs] == [("OPTIM.LR", "0.1"), ("OPTIM.LR", "0.2")]
    assert step.shows[0] == ["report", f"{tmp_path}/out/ablations/apd_rate/shapes"]
