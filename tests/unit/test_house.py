"""The shape of the project: its size, its arrows, its style.

``python -m tests.unit.test_house`` prints the counts.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
LIMITS = {
    "lines of Python without tests": 26_000,
    "lines of tests": 25_000,
    "lines of shell": 300,
    "Python files directly in trainers/": 8,
    "own modules imported by name": 0,
    "lines of the longest of the four methods": 130,
    "lines of drop-in": 300,
    "lines of the shared run script": 60,
}
OWN = re.compile(r"""import_module\(\s*(f["']\{|["']\.?(advprompt|trainers|datasets)\b)""")
PUBLIC = [  # what a type checker of our users sees
    "trainers/__init__.py",
    "trainers/losses.py",
    "trainers/engine/zoo.py",
    "trainers/records",
    "trainers/config/shipped.py",
    "trainers/utils/errors.py",
]


def files(pattern: str, *below: str) -> list[Path]:
    found = (path for top in below for path in (REPO / top).rglob(pattern))
    return [path for path in found if "__pycache__" not in path.parts]


def lines(paths) -> int:
    return sum(path.read_text(encoding="utf-8").count("\n") for path in paths)


def counts() -> dict[str, int]:
    """Return what LIMITS bounds."""
    code = files("*.py", "trainers", "datasets", "benchmarks") + list(REPO.glob("*.py"))
    own = [path for path in (REPO / "trainers/custom").glob("*.py") if path.stem != "__init__"]
    code = [path for path in code if path not in own]  # a user's methods are the user's
    # a user's scripts are the user's, too
    known = yaml.safe_load((REPO / "configs/experiments/protocols.yaml").read_text())["methods"]
    scripts = files("*.sh", "scripts")
    methods = [REPO / f"trainers/{name}.py" for name in ("advpt", "naptuning", "capt", "apd")]
    values = [
        lines(code),
        lines(files("*.py", "tests")),
        lines(path for path in scripts if path.parent.name in (*known, "scripts")),
        len(list((REPO / "trainers").glob("*.py"))),
        sum(len(OWN.findall(path.read_text(encoding="utf-8"))) for path in code),
        max(lines([path]) for path in methods),
        lines([REPO / "trainers/cli/dropin.py"]),
        lines([REPO / "scripts/run.sh"]),
    ]
    return dict(zip(LIMITS, values, strict=True))


def test_the_house_keeps_its_size():
    over = {what: (n, LIMITS[what]) for what, n in counts().items() if n > LIMITS[what]}
    assert not over, over


def test_imports_inside_the_package_are_relative():
    """The folder copied into a fork is called trainers.advprompt there."""
    wrong = []
    for path in files("*.py", "trainers", "datasets"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            if any(name.split(".")[0] in ("advprompt", "trainers", "datasets") for name in names):
                wrong.append(f"{path.relative_to(REPO)}:{node.lineno}")
    assert not wrong


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The package as it is installed: one folder called advprompt, with its data sets."""
    folder = tmp_path_factory.mktemp("package")
    skip = shutil.ignore_patterns("__pycache__", "assets")
    shutil.copytree(REPO / "trainers", folder / "advprompt", ignore=skip)
    shutil.copytree(REPO / "datasets", folder / "advprompt/datasets", ignore=skip)
    return folder


def check(*words, cwd=REPO, **environment):
    tool = Path(sys.executable).parent / words[0]
    done = subprocess.run(
        [tool if tool.exists() else words[0], *words[1:]],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_arrows_go_one_way_and_no_files_form_a_circle(package):
    """The contracts of pyproject.toml."""
    words = (str(REPO / "pyproject.toml"), "--no-cache")
    check("lint-imports", *words, cwd=package, PYTHONPATH=str(package))


def test_the_linter_and_the_formatter_agree():
    check("ruff", "check", "--no-cache", ".")
    check("ruff", "format", "--no-cache", "--check", ".")
    noted = [p for p in files("*.py", "trainers", "datasets") if "# fmt:" in p.read_text("utf-8")]
    assert not noted


def test_the_public_surface_is_typed(package, tmp_path):
    public = [path.replace("trainers", "advprompt", 1) for path in PUBLIC]
    config = ("--config-file", str(REPO / "pyproject.toml"), "--cache-dir", str(tmp_path))
    check("mypy", *config, *public, cwd=package)


if __name__ == "__main__":
    for what, number in counts().items():
        print(f"{number:6,} {what} (at most {LIMITS[what]:,})")
