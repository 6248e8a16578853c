"""The ``advprompt`` command, ``python -m advprompt`` and ``train.py``."""

import os
import subprocess
import sys

import pytest

from advprompt import __version__
from advprompt.cli import main as command
from advprompt.cli.main import dispatch
from advprompt.utils.entry import run_tool
from tests.conftest import REPO, only_error


def test_the_version(capsys):
    assert run_tool(dispatch, ["--version"]) == 0
    assert capsys.readouterr().out == f"advprompt {__version__}\n"


def test_an_unknown_command_is_named_with_its_nearest(capsys):
    assert run_tool(dispatch, ["reprot"]) == 2
    assert "'reprot'" in (error := capsys.readouterr().err) and "report" in error


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_shows_its_usage_with_the_programs_name(name, capsys):
    with pytest.raises(SystemExit) as end:
        dispatch([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: advprompt {name}")


def test_python_dash_m_is_the_console_command():
    words = [sys.executable, "-m", "advprompt", "--version"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"advprompt {__version__}\n")


def test_train_py_refuses_another_clones_package(tmp_path):
    (tmp_path / "advprompt").mkdir()
    (tmp_path / "advprompt/__init__.py").write_text("raise SystemExit('it was imported')")
    done = subprocess.run(
        [sys.executable, REPO / "train.py", "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    error = only_error(done.returncode, done.stderr)
    assert f"'{tmp_path / 'advprompt'}', not this clone" in error and "setup.sh" in error
