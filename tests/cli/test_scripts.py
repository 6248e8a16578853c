"""The shell scripts: which command each calls, and that they find Python and their folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from advprompt.experiments.protocols import PROTOCOLS, table
from advprompt.records import load_records
from tests.conftest import REPO

# in the place of Python: writes down folder, variables and arguments of what is called
NOTE = '#!/bin/sh\n[ "$1" = -c ] || { pwd; echo "$OUTPUT $DATA"; echo "$@"; }\n'


def bash(folder, script, *words: str, **env: str) -> subprocess.CompletedProcess:
    """Call a script in a folder."""
    variables = os.environ | {"OUTPUT": "out", "OMP_NUM_THREADS": "1"} | env
    options = {"capture_output": True, "text": True, "timeout": 600}
    return subprocess.run(["bash", str(script), *words], cwd=folder, env=variables, **options)


@pytest.fixture
def noted(tmp_path):
    """Call a script with a Python that only notes its call: (folder, variables, arguments)."""
    python = tmp_path / "python"
    python.write_text(NOTE)
    python.chmod(0o755)

    def call(script, *words: str) -> list[str]:
        done = bash(tmp_path, script, *words, PYTHON=str(python), DATA="/data")
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return call


def test_each_script_calls_its_command(noted, tmp_path):
    for method, (_, ending) in table("protocols")["methods"].items():
        for protocol in () if ending else PROTOCOLS:
            script = REPO / "scripts" / method / f"{protocol}.sh"
            folder, variables, words = noted(script, "pets", "16")
            assert words == f"-m advprompt run {method} {protocol} pets 16"
            assert folder == str(REPO) and variables == f"{tmp_path / 'out'} /data"
    for name in table("ablations"):
        method, part = name.split("_")
        words = noted(REPO / f"scripts/{method}/ablate_{part}.sh", "pets", "16")[-1]
        assert words == f"-m advprompt run {method} ablate_{part} pets 16"
    for name in ("all", "reproduce", "results", "testtime"):
        assert noted(REPO / f"scripts/{name}.sh", "a b")[-1] == f"-m advprompt {name} a b"


def test_in_a_fork_the_forks_copy_is_called(noted, tmp_path):
    shutil.copytree(REPO / "scripts", tmp_path / "fork/scripts/advprompt")
    script = tmp_path / "fork/scripts/advprompt/capt/main.sh"
    folder, _, words = noted(script, "pets", "16")
    assert folder == str(tmp_path / "fork")
    assert words == "-m trainers.advprompt run capt main pets 16"


def script(tmp_path, name: str, *words: str, **env: str) -> subprocess.CompletedProcess:
    variables = {"PYTHON": sys.executable, "HOME": str(tmp_path), "SEEDS": "1"} | env
    return bash(tmp_path, REPO / "scripts" / name, *words, **variables)


@pytest.mark.slow
def test_one_command_runs_and_shows_its_table(tmp_path, pets, toy_file):
    toy = f"MODEL.BACKBONE.NAME file:{toy_file} INPUT.SIZE (32,32) OPTIM.MAX_EPOCH 1"
    toy += " DATALOADER.NUM_WORKERS 0 ATTACK.TEST.STEPS 2 TEST.PROBES 0"
    words = ["pets", "4", "vit_b32", *toy.split()]
    env = {"DATA": os.path.relpath(pets, tmp_path), "SEEDS": "0 7", "ATTACK": "linf4_tiny"}
    done = script(tmp_path, "coop/main.sh", *words, **env)
    assert done.returncode == 0, done.stderr
    table_of = done.stdout[done.stdout.index("OxfordPets, few-shot") :]
    assert "CoOp" in table_of and "end-to-end" in table_of
    records = load_records(tmp_path / "out").records.values()
    assert sorted(r["seed"] for r in records) == [0, 7]
    again = script(tmp_path, "coop/main.sh", *words, **env)
    assert again.stdout.count("skipped: ") == 2


def test_another_python_or_clone_or_a_mistake_ends_with_one_sentence_and_code_2(tmp_path):
    done = script(tmp_path, "advpt/main.sh", "pets", "16", PYTHON="/bin/false")
    assert done.returncode == 2 and "scripts/setup.sh" in done.stderr
    (tmp_path / "other/advprompt").mkdir(parents=True)
    (tmp_path / "other/advprompt/__init__.py").write_text("")
    done = script(tmp_path, "advpt/main.sh", "pets", "16", PYTHONPATH=str(tmp_path / "other"))
    assert done.returncode == 2 and "another clone" in done.stderr
    done = script(tmp_path, "capt/main.sh", "petz", "16")  # a mistake
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "'petz'" in done.stderr
    assert not (tmp_path / "out").exists()
