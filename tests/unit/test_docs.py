"""The documents that show code: what they show is written out and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from advprompt.records import load_records
from tests.conftest import REPO

PAGE = REPO / "docs" / "add_a_method.md"
FILE = re.compile(r"^\*\*`(?P<path>[^`]+)`\*\*\n\n```\w+\n(?P<text>.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^```sh\n(?P<line>.*?)\n```$", re.M | re.S)
LAYERS, WIDTH = 2, 64  # of both towers of the toy CLIP


@pytest.fixture
def clone(tmp_path):
    """A copy of the code with the page's files in their places, installed in ``clone/site``."""
    copy = tmp_path / "clone"
    skipped = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for folder in ("trainers", "datasets", "configs", "scripts"):
        shutil.copytree(REPO / folder, copy / folder, ignore=skipped)
    shutil.copy(REPO / "train.py", copy)
    (copy / "site").mkdir()
    (copy / "site" / "advprompt").symlink_to(copy / "trainers")
    (copy / "trainers" / "datasets").symlink_to(copy / "datasets")
    for block in FILE.finditer(PAGE.read_text(encoding="utf-8")):
        path = copy / block["path"]
        assert not path.exists(), f"{path} is in the repository already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block["text"], encoding="utf-8")
    return copy


def call(clone, pets, toy_file, script: str, *words: str, **environment):
    """Run a script of the copy on the toy world."""
    overrides = [
        "MODEL.BACKBONE.NAME",
        f"file:{toy_file}",
        "INPUT.SIZE",
        "(32,32)",
        "OPTIM.MAX_EPOCH",
        "1",
        "TEST.SUBSET",
        "0",
        "DATALOADER.NUM_WORKERS",
        "0",
        "ATTACK.TEST.STEPS",
        "2",
    ]
    variables = {
        "DATA": str(pets),
        "OUTPUT": str(clone / "output"),
        "SEEDS": "1",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(clone / "site"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", str(clone / script), "pets", "4", *words, *overrides],
        cwd=clone,
        env=os.environ | variables | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_added_method_runs_as_the_page_says(clone, pets, toy_file):
    page = PAGE.read_text(encoding="utf-8")
    command = COMMAND.search(page)["line"].split()
    assert command[:1] + command[2:] == ["bash", "shapes", "16", "tiny"]
    out = call(clone, pets, toy_file, command[1], "tiny")
    assert "epoch [1/1]" in out and "loss_cons" in out
    assert "PromptTRADES" in out[out.index("OxfordPets, few-shot") :]  # the table
    (record,) = load_records(clone / "output").records.values()
    assert (record["trainer"], record["paper"]) == (
        "PromptTRADES",
        "https://arxiv.org/abs/1901.08573",
    )
    assert record["prompt_parameters"] == 2 * LAYERS * 2 * WIDTH  # towers, layers, vectors
    assert record["train_threat"]["objective"] == "kl" and record["train_threat"]["steps"] == 3
    assert record["config"]["TRAINER.PROMPTTRADES.BETA"] == 6.0

    out = call(clone, pets, toy_file, "scripts/prompttrades/ablate_beta.sh", "tiny", VALUES="0 6")
    picture = clone / "output/ablations/prompttrades_beta/oxford_pets/curve.png"
    assert f"wrote {picture}" in out and picture.stat().st_size > 10_000


def test_the_page_shows_the_four_files():
    paths = [block["path"] for block in FILE.finditer(PAGE.read_text(encoding="utf-8"))]
    assert paths == [
        "trainers/custom/prompt_trades.py",
        "configs/trainers/PromptTRADES/tiny.yaml",
        "scripts/prompttrades/main.sh",
        "scripts/prompttrades/ablate_beta.sh",
    ]


def test_everything_the_page_points_to_is_there():
    text = PAGE.read_text(encoding="utf-8")
    shown = {block["path"] for block in FILE.finditer(text)}
    named = set(re.findall(r"`((?:trainers|configs|scripts|tests)/[\w./]+)`", text)) - shown
    assert named and all((REPO / path).exists() for path in named), named


def test_the_pages_code_is_typed_as_the_projects(clone):
    """The example passes the linter the project uses, where that is installed."""
    if not shutil.which("ruff"):
        pytest.skip("ruff is not installed")
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [
                "ruff",
                *command,
                "--config",
                str(REPO / "pyproject.toml"),
                "--no-cache",
                "trainers/custom",
            ],
            cwd=clone,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_example_of_the_evaluation_prints_what_the_page_shows(tmp_path):
    """About 10 minutes: both models under AutoAttack."""
    page = (REPO / "docs" / "evaluate.md").read_text(encoding="utf-8")
    code = re.search(r"^```python\n(.*?)^```$", page, re.M | re.S)[1]
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = [line.strip().partition(" in ")[0] for line in page.splitlines() if "    * " in line]
    assert len(shown) == 3 and all(line in done.stdout for line in shown), done.stdout
    records = load_records(tmp_path / "output").records.values()
    assert {record["trainer"] for record in records} == {"FineTuned", "ZeroShot"}
    assert (tmp_path / "output" / "mine" / "picture.png").is_file()
