"""The ablation scripts: which runs they start, that train.py accepts them, what they draw."""

from __future__ import annotations

import os
import subprocess

import pytest

from advprompt.cli import train
from tests.conftest import REPO

# stands for the interpreter: notes the words of every call and does nothing
NOTE = """#!/usr/bin/env bash
[ "$1" != -c ] || exit 0
printf '%s\\037' "$@" >> "{log}"; echo >> "{log}"
exit ${{CODE:-0}}
"""
NAP, CAPT = "TRAINER.NAPTUNING.", "TRAINER.CAPT."


@pytest.fixture
def calls(tmp_path):
    """Run a script with an interpreter that only notes its calls; return (calls, process)."""

    def run(script: str, *words: str, **extra: str):
        log, python = tmp_path / "log", tmp_path / "python"
        python.write_text(NOTE.format(log=log))
        python.chmod(0o755)
        environment = {
            "OUTPUT": str(tmp_path / "out"),
            "DATA": str(tmp_path),
            "SEEDS": "1 2",
            "PYTHON": str(python),
        } | extra
        done = subprocess.run(
            ["bash", str(REPO / "scripts" / script), *words],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.split("\x1f")[:-1] for line in lines], done

    return run


def grid(key, values, **fixed):
    return [{key: value} | fixed for value in values]


REFINERS = [{NAP + "REFINER.VISION": on, NAP + "REFINER.TEXT": on} for on in ("True", "False")]
RUNS = {
    "naptuning/ablate_depth.sh": (
        "NAPTuning",
        NAP + "PROMPT_DEPTH",
        [{NAP + "PROMPT_DEPTH": str(d)} | on for on in REFINERS for d in range(1, 7)],
    ),
    "naptuning/ablate_parts.sh": (
        "NAPTuning",
        NAP + "N_CTX",
        grid(
            NAP + "N_CTX",
            ["16", "0"],
            **{NAP + "REFINER.VISION": "True", NAP + "REFINER.TEXT": "True"},
        )
        + grid(
            NAP + "N_CTX",
            ["16"],
            **{NAP + "REFINER.VISION": "False", NAP + "REFINER.TEXT": "False"},
        ),
    ),
    "capt/ablate_alpha.sh": (
        "CAPT",
        CAPT + "ALPHA",
        grid(CAPT + "ALPHA", "conf acc entropy const ramp".split()),
    ),
    "capt/ablate_terms.sh": (
        "CAPT",
        CAPT + "ALPHA_CONST",
        grid(CAPT + "ALPHA_CONST", "0 0.25 0.5 0.75 1".split(), **{CAPT + "ALPHA": "const"}),
    ),
    "apd/ablate_teacher.sh": (
        "APD",
        "TRAINER.APD.TEACHER",
        grid("TRAINER.APD.TEACHER", ["online", "offline", "zero_shot"]),
    ),
    "advpt/ablate_vectors.sh": (
        "AdvPT",
        "TRAINER.ADVPT.N_CTX",
        grid("TRAINER.ADVPT.N_CTX", "1 2 4 8 16 32 50".split()),
    ),
}


def test_every_ablation_is_tested():
    there = {str(p.relative_to(REPO / "scripts")) for p in REPO.glob("scripts/*/ablate_*.sh")}
    assert there == set(RUNS)


@pytest.mark.parametrize("script", RUNS)
def test_the_runs_of_an_ablation(calls, tmp_path, monkeypatch, script):
    trainer, key, expected = RUNS[script]
    made, done = calls(script, "shapes", "16", "tiny", "OPTIM.MAX_EPOCH", "3")
    assert done.returncode == 0, done.stderr
    *runs, table, picture = made
    monkeypatch.chdir(REPO)
    settings, folders = [], set()
    for argv in runs:
        assert argv[0] == "train.py"
        args = train.parser().parse_args(argv[1:])
        cfg = train.setup_cfg(args)  # refuses what does not exist
        assert (cfg.TRAINER.NAME, cfg.DATASET.NUM_SHOTS, cfg.OPTIM.MAX_EPOCH) == (trainer, 16, 3)
        given = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
        names = set(expected[0])
        settings.append((cfg.SEED, {k: v for k, v in given.items() if k in names}))
        folders.add(cfg.OUTPUT_DIR)
        # what main runs have drawn and attacked serves these too
        assert cfg.DATASET.FEATURE_DIR == str(tmp_path / "out" / "cache" / "banks")
    assert settings == [(seed, values) for values in expected for seed in (1, 2)]
    assert len(folders) == len(runs)
    root = str(tmp_path / "out" / "ablations" / script.replace("/ablate", "")[:-3] / "shapes")
    assert all(folder.startswith(root) for folder in folders)
    assert table == ["-m", "advprompt", "report", root]
    assert picture == [
        "-m",
        "advprompt",
        "curves",
        root,
        "--over",
        key,
        "--out",
        f"{root}/curve.png",
    ]


def test_depth_goes_to_the_backbones(calls):
    made, _ = calls("naptuning/ablate_depth.sh", "pets", "16", "vit_b16", SEEDS="1")
    depths = [argv[argv.index(NAP + "PROMPT_DEPTH") + 1] for argv in made if argv[0] == "train.py"]
    assert depths == 2 * [str(depth) for depth in range(1, 13)]


def test_other_values(calls):
    made, _ = calls("advpt/ablate_vectors.sh", "pets", "all", "tiny", SEEDS="3", VALUES="5 6")
    found = [argv[argv.index("TRAINER.ADVPT.N_CTX") + 1] for argv in made if argv[0] == "train.py"]
    assert found == ["5", "6"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pets"], "usage"),
        (["pets", "many"], "'many'"),
        (["pets", "16", "tiny", "TRAINER.ADVPT.N_CTX", "4"], "set VALUES instead"),
    ],
)
def test_wrong_calls_start_nothing(calls, words, said):
    made, done = calls("advpt/ablate_vectors.sh", *words)
    assert done.returncode == 2 and made == []
    assert done.stderr.startswith("error: ") and said in done.stderr


def test_a_run_that_fails_ends_the_ablation(calls):
    made, done = calls("apd/ablate_teacher.sh", "pets", "16", "tiny", CODE="3")
    assert done.returncode == 3 and [argv[0] for argv in made] == ["train.py"]
