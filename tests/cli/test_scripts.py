"""The shell scripts as a user calls them."""

from __future__ import annotations

import os
import subprocess

import pytest

from advprompt.records import load_records
from tests.conftest import REPO


@pytest.fixture
def shell(pets, tmp_path, warm_python):
    """Call ``bash SCRIPT ARGS`` from another folder, with a data root and an output of its own."""

    def call(script: str, *args: str, **extra: str) -> subprocess.CompletedProcess:
        environment = (
            os.environ
            | {
                "DATA": os.path.relpath(pets, tmp_path),
                "OUTPUT": "out",
                "PYTHON": str(warm_python),
                "HOME": str(tmp_path),
                "OMP_NUM_THREADS": "1",
            }
            | extra
        )
        command = ["bash", str(REPO / "scripts" / script), *args]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )

    return call


@pytest.fixture
def toy(toy_file):
    """Overrides for a short run on the toy CLIP."""
    return [
        "MODEL.BACKBONE.NAME",
        f"file:{toy_file}",
        "INPUT.SIZE",
        "(32,32)",
        "OPTIM.MAX_EPOCH",
        "2",
        "TRAINER.ADVPT.N_CTX",
        "4",
        "ATTACK.TRAIN.STEPS",
        "2",
        "DATALOADER.NUM_WORKERS",
        "0",
        "ATTACK.TEST.LIST",
        "[{'EPS': 4, 'STEPS': 2}]",
    ]


@pytest.mark.slow
def test_advpt_and_zero_shot_share_a_table(shell, toy, tmp_path):
    done = shell("zsclip/main.sh", "pets", "vit_b32", *toy, SEEDS="1 2 3")
    assert done.returncode == 0, done.stderr
    done = shell("advpt/main.sh", "pets", "4", "vit_b32", *toy, SEEDS="0 7")
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.index("OxfordPets, few-shot") :]
    assert "ZeroshotCLIP" in table and "AdvPT" in table and "end-to-end" in table
    records = load_records(tmp_path / "out").records.values()
    seeds = sorted((r["trainer"], r["seed"]) for r in records)
    assert seeds == [("AdvPT", 0), ("AdvPT", 7), ("ZeroshotCLIP", 1)]  # zero-shot: one is enough
    assert not (tmp_path / "output").exists()
    again = shell("advpt/main.sh", "pets", "4", "vit_b32", *toy, SEEDS="0 7")
    assert again.stdout.count("skipped: ") == 2
    other = [word if word != "2" else "1" for word in toy]  # other settings, another folder
    assert shell("advpt/main.sh", "pets", "4", "vit_b32", *other, SEEDS="0").returncode == 0
    assert len(load_records(tmp_path / "out").records) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["usage", "DATASET SHOTS"]),
        (["pets"], ["usage"]),
        (["pets", "many"], ["'many'", "16"]),
        (["pts", "16", "tiny"], ["pts.yaml", "does not exist"]),
        (["pets", "16", "vit_b61"], ["vit_b61.yaml", "vit_b16.yaml"]),
        (["pets", "16", "tiny", "OPTIM.LRR", "1"], ["OPTIM.LRR", "OPTIM.LR"]),
    ],
)
def test_wrong_calls_end_with_one_sentence_and_code_2(shell, tmp_path, args, words):
    done = shell("advpt/main.sh", *args, SEEDS="1")
    assert done.returncode == 2
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert all(word in line for word in words)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "env", "words"),
    [
        ("all.sh petz 16 tiny", {}, ["'petz'", "DATASET"]),
        ("all.sh shapes tiny", {}, ["SHOTS is 'tiny'", "usage"]),
        ("all.sh shapes 16 tyny", {}, ["'tyny'", "tiny"]),
        ("all.sh shapes 16 tiny", {"METHODS": "zsclip capd"}, ["'capd'", "METHODS"]),
        ("all.sh shapes 16 tiny", {"PROTOCOL": "fewshot"}, ["'fewshot'", "base2new"]),
        ("capt/main.sh shapes 0 tiny", {}, ["SHOTS is '0'"]),
        ("capt/main.sh shapes 16 tiny", {"SEEDS": "1,2"}, ["SEEDS has '1,2'", "blanks"]),
        ("capt/main.sh shapes 16 tiny", {"PROCESSES": "two"}, ["PROCESSES is 'two'"]),
        ("capt/main.sh shapes 16 tiny", {"TESTS": "linf1_bb"}, ["'linf1_bb'", "TESTS"]),
        ("reproduce.sh capt tiny", {"SHOTS": "few"}, ["SHOTS has 'few'"]),
        ("reproduce.sh capt tiny", {"ATTACKS": "linf3"}, ["'linf3'", "ATTACKS"]),
        ("results.sh --help", {}, ["usage", "results.sh"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_words_of_a_call_are_checked_before_any_work(shell, tmp_path, call, env, words):
    done = shell(*call.split(" "), **({"SEEDS": "1"} | env))
    assert done.returncode == 2
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert all(word in line for word in words)
    assert not (tmp_path / "out").exists()


def test_a_missing_environment_is_explained(shell):
    done = shell("advpt/main.sh", "pets", "16", PYTHON="/bin/false")
    assert done.returncode == 2 and "scripts/setup.sh" in done.stderr


@pytest.mark.slow
def test_a_variable_of_make_or_ci_is_no_dry_run(shell, toy, tmp_path):
    done = shell("zsclip/main.sh", "pets", "vit_b32", *toy, JOBS="8")
    assert done.returncode == 0, done.stderr
    assert "OxfordPets, " in done.stdout and not (REPO / "8").exists()
    assert len(load_records(tmp_path / "out").records) == 1
    planned = shell("zsclip/main.sh", "pets", "vit_b32", *toy, "--dry-run", JOBS="8")
    assert planned.returncode == 0 and "1 run: 1 " in planned.stdout


@pytest.mark.slow
def test_without_clip_weights_the_default_is_said(shell):
    done = shell("advpt/main.sh", "pts", "16", SEEDS="1")
    assert "built-in small CLIP" in done.stderr and "vit_b16" in done.stderr


@pytest.mark.slow
def test_all_puts_every_method_under_one_attack(shell, toy, tmp_path):
    done = shell("all.sh", "pets", "4", "vit_b32", *toy, SEEDS="1")
    assert done.returncode == 0, done.stderr
    records = load_records(tmp_path / "out").records.values()
    scripts = {p.parent.name for p in (REPO / "scripts").glob("*/main.sh")}
    assert len(scripts) == 13 and len(records) == 14  # TeCoA twice: prompt and fine-tuning
    assert {r["attacks"][0]["eps"] for r in records} == {"4/255"}
    table = done.stdout[done.stdout.rindex("OxfordPets, few-shot") :]
    assert all(r["trainer"] in table for r in records)
    again = shell("all.sh", "pets", "4", "vit_b32", *toy, SEEDS="1", METHODS="advpt apd")
    assert again.stdout.count("skipped: ") == 2
    wrong = shell("all.sh", "pets", "4", "vit_b32", *toy, SEEDS="1", METHODS="capt nosuch")
    assert wrong.returncode == 2 and "nosuch" in wrong.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shots", "given", "epochs"),
    [("1", [], 20), ("4", [], 50), ("16", [], None), ("1", ["OPTIM.MAX_EPOCH", "1"], 1)],
)
def test_capt_takes_its_epochs_from_the_shots(shell, tmp_path, shots, given, epochs):
    keys = ["SEED", "1", "DATASET.NAME", "Nosuch", *given]  # stops before any work
    done = shell("capt/main.sh", "pets", shots, "vit_b32", *keys, SEEDS="1")
    assert done.returncode == 2 and "Nosuch" in done.stderr
    said = f"_MAX_EPOCH-{epochs}"
    assert said in done.stdout if epochs else "MAX_EPOCH" not in done.stdout


@pytest.mark.slow
def test_base_to_new_tests_the_same_prompts_on_both_halves(shell, toy, tmp_path):
    chosen = {"SEEDS": "1", "METHODS": "zsclip advmaple", "PROTOCOL": "base2new"}
    done = shell("all.sh", "pets", "4", "vit_b32", *toy, **chosen)
    assert done.returncode == 0, done.stderr
    by_kind = {
        (r["trainer"], r["split"]): r for r in load_records(tmp_path / "out").records.values()
    }
    assert sorted(by_kind) == [
        (t, s) for t in ("AdvMaPLe", "ZeroshotCLIP") for s in ("base", "new")
    ]
    base, new = (by_kind["AdvMaPLe", split] for split in ("base", "new"))
    assert {r["protocol"] for r in by_kind.values()} == {"base2new"}
    assert (base["shots"], base["epochs"]) == (new["shots"], new["epochs"]) == (4, 2)
    assert base["seconds"]["train"] > 0 and new["train_threat"] == base["train_threat"]
    assert len(list((tmp_path / "out").rglob("model.pth.tar-*"))) == 1  # trained once
    again = shell("all.sh", "pets", "4", "vit_b32", *toy, **chosen)
    assert again.stdout.count("skipped: ") == 4
