"""What pip installs: one package called advprompt, with everything it needs inside."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("trainers", "datasets", "configs", "scripts")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "constraints-cpu.txt")
INSIDE = {folder: f"advprompt/{folder}" for folder in FOLDERS} | {"trainers": "advprompt"}
VERSION = re.search('"(.+)"$', (ROOT / "trainers/utils/version.py").read_text().strip())[1]
SHIPPED = {".py", ".yaml", ".safetensors", ".md", ".sh", ".json", ".j2", ".typed"}

pytestmark = pytest.mark.slow


def run(*command, cwd):
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources: building writes beside setup.py."""
    copy = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for name in FILES:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", folder, cwd=source)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel):
    """The unpacked wheel, as it would lie in site-packages."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.parent / "site")
    return wheel.parent / "site"


def test_only_advprompt_reaches_site_packages(site):
    names = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert names == {"advprompt"}


def test_every_file_of_the_clone_is_shipped(source, site):
    expected = set()
    for folder in FOLDERS:
        for path in (source / folder).rglob("*"):
            if path.is_file() and path.suffix in SHIPPED:
                expected.add(f"{INSIDE[folder]}/{path.relative_to(source / folder).as_posix()}")
    shipped = {p.relative_to(site).as_posix() for p in (site / "advprompt").rglob("*")}
    assert expected - shipped == set()
    assert any(name.endswith(".yaml") for name in shipped)


def test_metadata(site):
    (info,) = site.glob("*.dist-info")
    text = (info / "METADATA").read_text(encoding="utf-8")
    assert f"Version: {VERSION}" in text
    assert "Requires-Python: >=3.10" in text
    assert "Requires-Dist: torch>=2.4" in text
    for extra in ("attacks", "defences", "tensorboard", "test"):
        assert f"Provides-Extra: {extra}" in text
    assert "git+" not in text  # the package index refuses direct references
    assert "Requires-Dist: torchattacks; extra" in text.replace(" ;", ";")
    entry_points = (info / "entry_points.txt").read_text(encoding="utf-8")
    assert "advprompt = advprompt.cli.main:main" in entry_points
    assert list(info.rglob("LICENSE"))


IMPORTS = """
import pathlib, site, sys
home, folder = map(pathlib.Path, sys.argv[1:])
# an editable install that this environment may already have would answer first
old = "__editable___advprompt"
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith(old)]
for name in [name for name in sys.modules if name.startswith(old)]:
    del sys.modules[name]
sys.path.insert(0, str(folder))
site.addsitedir(folder)  # as site-packages: runs the hook of an editable install
import advprompt, dassl
import advprompt.datasets, advprompt.report, advprompt.compat
from dassl.engine import TRAINER_REGISTRY
assert home.resolve() in pathlib.Path(advprompt.__file__).resolve().parents, advprompt.__file__
assert "AdvPT" in TRAINER_REGISTRY.registered_names()
try:
    advprompt.load("nowhere")
except advprompt.UserError as error:
    assert "'nowhere' is not an export" in str(error)
import advprompt.cli.export
assert not {"trainers", "datasets", "tools", "compat"} & set(sys.modules), "top-level names"
sys.argv = ["advprompt", "report", "nowhere"]
from advprompt.cli.main import main
main()
"""


def check_imports(home, site_packages, cwd):
    """Import everything and run the command with a missing folder: one sentence, code 2."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(home), str(site_packages)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: 'nowhere' does not exist")


README_FROM_THE_WHEEL = """
import sys, torch, advprompt
from advprompt.backbone import load_clip
from advprompt.cli.main import dispatch
assert advprompt.__file__.startswith(sys.argv[1]), advprompt.__file__
model = advprompt.zero_shot(load_clip("tiny"), "circle, star")
pixels, labels = torch.rand(2, 3, 64, 64), [0, 1]
settings = {"ATTACK.TEST.STEPS": 1, "TEST.PROBES": 0}
advprompt.evaluate(model, pixels, labels, threat="linf1", folder="my_model", settings=settings)
for words in (
    "--version",
    "configs --list",
    "run zsclip main shapes tiny --dry-run",
    "report my_model --format html --out report.html",
    "report my_model --format markdown",
    "picture my_model --out picture.png",
):
    assert not dispatch(words.split()), words
"""


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_release_installs_into_an_empty_environment_and_runs(kind, wheel, source, tmp_path):
    """The release check: what is uploaded, next to the packages that it requires."""
    archive = wheel
    if kind == "sdist":
        run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path / "dist", cwd=source)
        (archive,) = (tmp_path / "dist").iterdir()
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty", cwd=tmp_path)
    python = tmp_path / "empty/bin/python"
    (own,) = (tmp_path / "empty/lib").glob("python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]  # without their hooks
    (own / "others.pth").write_text("\n".join(others))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-deps", "--no-build-isolation", "--no-index", archive, cwd=tmp_path)
    checked = subprocess.run([*pip, "check"], cwd=tmp_path, capture_output=True, text=True).stdout
    assert not re.search("^advprompt ", checked, re.M), checked
    out = run(python, "-c", README_FROM_THE_WHEEL, own, cwd=tmp_path)
    shown = f"advprompt {VERSION}", "linf1_aa", "1 to run", "end-to-end PGD-1 1/255"
    assert not [text for text in shown if text not in out]
    assert (tmp_path / "picture.png").stat().st_size > 1000
    assert (tmp_path / "empty/bin/advprompt").is_file()


def test_an_editable_install_works(source, tmp_path):
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install")
    target = tmp_path / "site"
    run(*pip, "-e", ".", "--no-deps", "--no-build-isolation", "--target", target, cwd=source)
    assert not {path.name for path in target.iterdir()} & set(FOLDERS)
    check_imports(source, target, tmp_path)


def test_the_source_archive_holds_the_configs(source):
    run(sys.executable, "setup.py", "-q", "sdist", "--formats=zip", cwd=source)
    (archive,) = (source / "dist").glob("*.zip")
    with zipfile.ZipFile(archive) as packed:
        names = {name.partition("/")[2] for name in packed.namelist()}
    assert any(name.startswith("configs/") and name.endswith(".yaml") for name in names)
    assert {"setup.py", "pyproject.toml", "LICENSE", "constraints-cpu.txt"} <= names
    assert "trainers/utils/version.py" in names


PYTHON = """#!/bin/bash
case "$*" in
  *importlib.metadata*) echo "$HAS_TORCH" ;;
  *urllib.request*) exit $NO_INDEX ;;
  *find_spec*) exit 1 ;;
  *sys.prefix*) echo "$VIRTUAL_ENV" ;;
  "-m pip install "*) echo "pip: $*" ;;
  *) exec {python} "$@" ;;
esac
"""
INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu"
PINS = "-c constraints-cpu.txt"
# PyTorch there, a GPU, PyTorch's own index out of reach -> what is said, what pip is asked for
MACHINES = {
    "has PyTorch": ("2.6.0", 0, 1, "PyTorch 2.6.0 is installed and stays", "torch==2.6.0 -e ."),
    "has it and a GPU": (
        "2.6.0",
        1,
        0,
        "PyTorch 2.6.0 is installed and stays",
        "torch==2.6.0 -e .",
    ),
    "GPU": ("", 1, 0, "PyTorch for a GPU, from the configured", "-e ."),
    "own index": ("", 0, 0, "for the CPU, from PyTorch's own index", f"{PINS} {INDEX} -e ."),
    "no index": ("", 0, 1, "for the CPU, from the configured", f"{PINS} -e ."),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_setup_installs_the_pytorch_that_fits_the_machine(machine, tmp_path):
    """The script itself, with a Python that only says what pip was asked for."""
    torch, gpu, no_index, said, asked = MACHINES[machine]
    (tmp_path / "bin").mkdir()
    driver = f"#!/bin/bash\n[ {gpu} = 0 ] || echo 'GPU 0: NVIDIA H100'\n"
    for name, text in {"python": PYTHON, "nvidia-smi": driver}.items():
        (tmp_path / "bin" / name).write_text(text.replace("{python}", sys.executable))
        (tmp_path / "bin" / name).chmod(0o755)
    for name in ("scripts", "setup.py", "pyproject.toml", "constraints-cpu.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    own = {"VIRTUAL_ENV": str(tmp_path), "HAS_TORCH": torch, "NO_INDEX": str(no_index)}
    own["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    script = shutil.copy(ROOT / "scripts/setup.sh", tmp_path / "bin/setup.sh")
    done = subprocess.run(["bash", script], env=os.environ | own, capture_output=True, text=True)
    pip = [line for line in done.stdout.splitlines() if line.startswith("pip: ")]
    assert done.returncode == 0 and said in done.stdout, done.stderr
    words = f"pip: -m pip install {asked}", "pip: -m pip install --no-deps torchattacks"
    assert pip == [*words]
