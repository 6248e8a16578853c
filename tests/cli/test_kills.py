"""Some kills and full disks; ``python -m tests.kills`` does as many as are asked for."""

import subprocess
import sys

import pytest

from tests.conftest import REPO


def harmless(tmp_path, *words):
    """Run the harness in a process of its own: it forks, and replaces functions of ``os``."""
    command = [sys.executable, "-m", "tests.kills", "--log", str(tmp_path / "log"), *words]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_few_kills_and_a_full_disk_do_no_harm(tmp_path):
    counts = "--targeted 4 --full 1 --twice 1 --seed 5"
    harmless(tmp_path, *counts.split(), "--scenes", "AdvPT", "export")


@pytest.mark.slow
def test_kills_full_disks_and_second_processes_do_no_harm(tmp_path):
    counts = "--targeted 15 --random 15 --full 6 --readonly 6 --twice 8 --seed 6"
    harmless(tmp_path, *counts.split())


@pytest.mark.slow
def test_a_real_disk_that_is_too_small_does_no_harm(tmp_path):
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    subprocess.run(["umount", str(tmp_path)], check=True)
    harmless(tmp_path, "--disk", "8", "--seed", "7", "--scenes", "AdvPT", "CAPT", "export")
