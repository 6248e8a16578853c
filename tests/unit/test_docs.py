"""The documents: the site builds, generated pages are current, what is shown can be run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from dassl.engine import TRAINER_REGISTRY

from advprompt.cli.main import command, dispatch
from advprompt.cli.run import PLANS
from advprompt.cli.train import build_cfg
from advprompt.config import keys, shipped
from advprompt.records import load_records
from advprompt.report.curves import AXES
from tests import reference
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
    overrides = f"MODEL.BACKBONE.NAME file:{toy_file} INPUT.SIZE (32,32) OPTIM.MAX_EPOCH 1"
    overrides += " TEST.SUBSET 0 DATALOADER.NUM_WORKERS 0 ATTACK.TEST.STEPS 2"
    variables = {
        "DATA": str(pets),
        "OUTPUT": str(clone / "output"),
        "SEEDS": "1",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(clone / "site"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", str(clone / script), "pets", "4", *words, *overrides.split()],
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
    for check in (["check"], ["format", "--check"]):
        config = ["--config", str(REPO / "pyproject.toml"), "--no-cache"]
        words = ["ruff", *check, *config, "trainers/custom"]
        done = subprocess.run(words, cwd=clone, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_example_of_the_evaluation_runs_on_three_of_its_classes(tmp_path):
    """The page's code on 3 images; with 16 AutoAttack takes minutes."""
    page = (REPO / "docs" / "evaluate.md").read_text(encoding="utf-8")
    code = re.search(r"^```python\n(.*?)^```$", page, re.M | re.S)[1]
    fewer = code.replace("[:8]", "[:3]").replace('("test", 2)', '("test", 1)')
    assert len(code) == len(fewer) and code.count("[:8]") == code.count('("test", 2)') == 1
    call = [sys.executable, "-c", fewer]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = [line.strip() for line in page.splitlines() if "    * " in line]
    assert len(shown) == 3
    for line in (re.escape(re.sub(r"\d.*", "", text.partition(": ")[0])) for text in shown):
        assert len(re.findall(f"^{line}", done.stdout, re.M)) == 2, done.stdout
    records = load_records(tmp_path / "output").records.values()
    assert {record["trainer"] for record in records} == {"FineTuned", "ZeroShot"}
    assert (tmp_path / "output" / "mine" / "picture.png").is_file()


def test_the_site_builds_without_a_dead_link_and_fetches_nothing(tmp_path):
    for module in ("mkdocs", "material"):
        if not find_spec(module):
            pytest.skip(f"{module} is not installed: bash scripts/setup.sh test")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=REPO,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = [path.with_suffix(".html") for path in (REPO / "docs").rglob("*.md")]
    for page in (p.relative_to(REPO / "docs") for p in pages):
        page = page.with_name(page.name.replace("README", "index"))
        html = (tmp_path / "site" / page).read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]*src=.?(?:https?:)?//", html), page
        assert not re.findall(r"<link[^>]*stylesheet[^>]*href=.?(?:https?:)?//", html), page


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_reference_pages_are_current(name, monkeypatch):
    ours = re.compile(r"advprompt\.(?!custom)")
    others = [method for method in keys.METHODS.values() if not ours.match(method.__module__)]
    own = tuple(f"TRAINER.{method.node}." for method in others)
    kept = {n: key for n, key in keys.KEYS.items() if not n.startswith(own or "?")}
    monkeypatch.setattr(keys, "KEYS", kept)
    monkeypatch.delenv("DATA", raising=False)
    page = (REPO / f"docs/reference/{name}.md").read_text(encoding="utf-8")
    assert page == reference.page_of(name)


# --- every command line of every page ------------------------------------------------------------

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md"))]
ASSIGNED = r"(?:\w+=(?:\"[^\"]*\"|\S*) +)*"
LINE = re.compile(
    rf"^ *({ASSIGNED}(?:python3? (?:-m |train)|bash (?:scripts|benchm)|advprompt (?!trains)).*)$",
    re.M,
)
USAGE = re.compile(r"<method>|\[CFG\]| \.\.\. |\|")  # a form to fill in
# commands on what the same page makes: run by the tests above, or by test_zoo.py
ELSEWHERE = ("prompttrades", "MODEL.INIT_WEIGHTS zoo/")
SETTINGS = {"RUN": "output/run", "$DATA": "data", "$OPTS": "DATASET.FOLDER_NAME photos"}


def shown_commands() -> list[tuple[str, str]]:
    """Return page and command line, continued lines joined and comments left out."""
    found = []
    for page in (page for page in PAGES if page.parent.name != "reference"):
        text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
        for line in dict.fromkeys(line.partition(" #")[0].strip() for line in LINE.findall(text)):
            if not USAGE.search(line) and not any(word in line for word in ELSEWHERE):
                found.append((page.name, line))
    return found


@pytest.fixture
def called(tmp_path):
    """Return what a script passes to Python."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || for w in "$@"; do echo "$w"; done\n')
    python.chmod(0o755)

    def call(*words: str) -> list[str]:
        env = os.environ | {"PYTHON": str(python)}
        done = subprocess.run(["bash", *words], cwd=REPO, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return call


@pytest.mark.parametrize("page, line", shown_commands())
def test_a_shown_command_is_understood(page, line, called, monkeypatch, tmp_path, capsys):
    """Its words are read by the command's own parser, its names and settings checked."""
    for name, value in SETTINGS.items():
        line = line.replace(name, value)
    words = shlex.split(re.sub(r"\$\(advprompt configs (\S+)\)", r"\1", line))
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    if words[0] == "bash":
        script = words[1].replace("scripts/advprompt/", "scripts/")
        assert (REPO / script).is_file()
        if not (REPO / script).read_text().count("run.sh"):
            return  # of its own: set-up, tests, the demo
        words = ["python", *called(script, *words[2:])]
    if words[:2] == ["python", "train.py"]:
        assert words[words.index("--trainer") + 1] in TRAINER_REGISTRY.registered_names()
        build_cfg([w.replace("configs/advprompt/", "configs/") for w in words[2:]])
        return
    words = words[2:] if words[:2] == ["python", "-m"] else words
    if words[0].startswith(("tests.", "benchmarks.")):
        assert find_spec(words[0])
        return
    assert words[0] in ("advprompt", "trainers.advprompt")
    name, *words = words[1:]
    if name in ("results", "reproduce"):
        return  # many runs; test_protocols.py calls them with --dry-run
    if name in PLANS or name == "sweep":
        monkeypatch.setenv("OUTPUT", str(tmp_path / "out"))
        monkeypatch.setenv("SEEDS", "1")
        words = [w for w in words if w not in ("--slurm",)]
        code = dispatch([name, *words, *["--dry-run"] * ("--dry-run" not in words)])
        assert not code and "refused" not in capsys.readouterr().out
        return
    args, rest = reference.parser_of(command(name)).parse_known_args(words)
    assert not rest or name == "test", rest
    threats = getattr(args, "attack_config_file", None) or []
    for threat in [threats] if isinstance(threats, str) else threats:
        assert shipped.config_file("attacks", threat).is_file()
    if name == "curves":
        assert args.over in AXES or args.over in keys.KEYS
    assert not {w for w in getattr(args, "opts", None) or [] if w.isupper()} - {*keys.KEYS}
