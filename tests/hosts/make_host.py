"""Public CoOp-type repositories as hosts: clean copies, data and weights for them, and their runs.

``ADVPROMPT_HOSTS`` names a folder of checkouts, each under its repository's name. Nothing in it is
changed: a test works in a clone of its own. A run is the host's own ``train.py`` in a process of
its own, forked by ``runner.py``; ``shims/sitecustomize.py`` says what is put in its way.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tests.toy import toy_state_dict

REPO = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CLASSES = ("blue_circle", "green_heart", "red_star", "yellow_square")
IMAGES = {"train": 5, "val": 2, "test": 2}  # per class
SIDE = 80  # pixels of the images


@dataclass(frozen=True)
class Own:
    """A run of a host's own trainer, with its own file in ``configs/trainers``."""

    trainer: str
    config: str
    weights: str = "random"
    words: tuple[str, ...] = ()  # overrides
    arguments: tuple[str, ...] = ()  # of its train.py


@dataclass(frozen=True)
class Host:
    """One public repository.

    Attributes:
        name: its name, and that of its checkout's folder.
        own: runs of its own trainers.
        code: folder of ``train.py`` below the checkout.
        dassl: its Dassl's folder below ``ADVPROMPT_HOSTS``.
        needs: packages that it imports besides Dassl's and ours.
        lacks: packages that it imports and that a current installation cannot have.
    """

    name: str
    own: tuple[Own, ...]
    code: str = "."
    dassl: str = "Dassl.pytorch"
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


FP32 = ("TRAINER.COOP.PREC", "fp32")
COOP = Own("CoOp", "CoOp/vit_b32.yaml", words=FP32)
MAPLE = Own(
    "MaPLe", "MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml", words=("TRAINER.MAPLE.PROMPT_DEPTH", "2")
)
PROMPTSRC = Own(
    "PromptSRC",
    "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx.yaml",
    words=tuple(
        "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION 2 TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 2".split()
    ),
)
FAP = Own(
    "FAP",
    "FAP/vit_b32_ep5_batch4_2ctx_notransform.yaml",
    "random-224",
    tuple("TRAINER.FAP.PROMPT_DEPTH 2 ATTACK.PGD.TEST_ITER 2 ATTACK.PGD.ADV_TERM cos".split()),
)
APT = Own(
    "APT",
    "APT/vit_b32.yaml",
    words=(*FP32, "MODEL.BACKBONE.ROBUST", "False"),
    arguments=("--prompt-alpha", "0.1"),
)
KGCOOP = (
    Own("CoOp", "CoOp/rn50.yaml", words=(*FP32, "TRAINER.COOP.CTX_INIT", "False")),
    Own("KgCoOp", "KgCoOp/rn50_ep100.yaml", words=FP32),
)
HOSTS = (
    Host("CoOp", own=(COOP, replace(COOP, weights="tiny"))),
    Host("multimodal-prompt-learning", own=(MAPLE, COOP)),
    Host("PromptSRC", own=(MAPLE, COOP, PROMPTSRC)),
    Host("KgCoOp", KGCOOP, code="KgCoOp", dassl="KgCoOp/Dassl.ProGrad.pytorch"),
    Host("FAP", own=(FAP,), needs=("einops",), lacks=("autoattack", "pkg_resources")),
    Host("APT", own=(APT,), code="apt"),
)
BY_NAME = {host.name: host for host in HOSTS}


def git(folder, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def clone(host: Host, hosts: Path, folder: Path) -> Path:
    """Clone a checkout's commit to ``folder`` and return the folder of its ``train.py``."""
    source, target = hosts / host.name, folder / host.name
    git(folder, "clone", "--quiet", "--no-hardlinks", str(source), str(target))
    return target / host.code


def commit(host: Host, hosts: Path) -> str:
    """Return the checkout's commit and its date."""
    return git(hosts / host.name, "log", "-1", "--format=%h of %cs")


def make_data(root: Path) -> Path:
    """Draw a small data set into oxford_pets's folders with CoOp's split file; return the root.

    Four classes of a colour and a shape, which the built-in CLIP knows.
    """
    from PIL import Image

    from advprompt.datasets import drawing

    images = root / "oxford_pets" / "images"
    images.mkdir(parents=True)
    split, index = {part: [] for part in IMAGES}, 0
    for part, count in IMAGES.items():
        for label, name in enumerate(CLASSES):
            for _ in range(count):
                pixels = drawing.sample("check", index, name.replace("_", " "))
                file = f"{name}_{index}.jpg"
                Image.fromarray(pixels).resize((SIDE, SIDE)).save(images / file, quality=95)
                split[part].append([file, label, name])
                index += 1
    text = json.dumps(split)
    (root / "oxford_pets" / "split_zhou_OxfordPets.json").write_text(text, encoding="utf-8")
    return root


@dataclass(frozen=True)
class Weights:
    """A state dict on disk and the side of the images it takes, in pixels."""

    file: Path
    size: int


def make_weights(folder: Path) -> dict[str, Weights]:
    """Write the built-in CLIP and random ones as state dicts; FAP's code takes 224 pixels only.

    Their widths are ViT-B's, because MaPLe and FAP write 512 and 768 in their code.
    """
    from advprompt.backbone import load_tiny_state

    folder.mkdir(parents=True, exist_ok=True)
    widths = {"vision_width": 768, "text_width": 512, "embed_dim": 512, "patch": 32}
    states = {
        "random": (toy_state_dict(image=64, **widths), 64),
        "random-224": (toy_state_dict(image=224, **widths), 224),
        "tiny": (load_tiny_state("tiny"), 64),
    }
    made = {}
    for name, (state, size) in states.items():
        torch.save(state, folder / f"{name}.pt")
        made[name] = Weights(folder / f"{name}.pt", size)
    return made


def make_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources and install it below ``folder``."""
    source, target = folder / "source", folder / "site"
    for name in ("trainers", "datasets", "configs", "scripts"):
        ignore = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(REPO / name, source / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "MANIFEST.in"):
        shutil.copy(REPO / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    words = [*pip, "--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def add_two_lines(train: Path) -> None:
    """Add the pip road's two lines to a host's ``train.py``."""
    lines = train.read_text(encoding="utf-8").splitlines(keepends=True)
    call = next(i for i, line in enumerate(lines) if line.strip() == "extend_cfg(cfg)")
    indent = lines[call][: -len(lines[call].lstrip())]
    lines.insert(call + 1, f"{indent}advprompt.extend_cfg(cfg)\n")
    train.write_text("".join(["import advprompt\n", *lines]), encoding="utf-8")


def environment(host: Host, hosts: Path, weights: dict[str, Weights], site=None) -> dict:
    """Return a host's environment: its Dassl, our wheel in ``site``, and nothing of this clone."""
    path = [HERE / "shims", hosts / host.dassl, *([site] if site else [])]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ADVPROMPT"))}
    return kept | {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PYTHONDONTWRITEBYTECODE": "1",  # FAP keeps compiled files in git
        "OMP_NUM_THREADS": "1",
        "HOST_LACKS": " ".join(host.lacks),
        "HOST_SOURCES": str(hosts),
        "HOST_MODELS": json.dumps({name: str(made.file) for name, made in weights.items()}),
    }


@dataclass
class Done:
    """A finished run; ``folder`` is its output folder."""

    folder: Path
    code: int
    seconds: float
    output: str


@dataclass(frozen=True)
class Job:
    """One run of a host's ``train.py``: its arguments, without the output folder."""

    name: str
    words: tuple[str, ...]
    env: dict


def run(code: Path, env: dict, jobs: list[Job], out: Path, *, limit=3600) -> dict:
    """Run a host's ``train.py`` in folder ``code`` once per job, into folders below ``out``.

    Returns:
        ``runs``, a :class:`Done` per job's name, and what ``runner.origins`` found.
    """
    out.mkdir(parents=True, exist_ok=True)
    logs = {job.name: out / f"{job.name}.log" for job in jobs}
    runs = []
    for job in jobs:
        words = ["--output-dir", str(out / job.name), *map(str, job.words)]
        runs.append({"words": words, "log": str(logs[job.name]), "env": job.env})
    file, results = out / "job.json", out / "results.json"
    file.write_text(json.dumps({"runs": runs, "out": str(results)}), encoding="utf-8")
    words = [sys.executable, str(HERE / "runner.py"), str(file)]
    done = subprocess.run(words, cwd=code, env=env, capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, f"train.py cannot be imported: {done.stdout}{done.stderr}"
    found = json.loads(results.read_text(encoding="utf-8"))
    runs = {
        job.name: Done(out / job.name, one["code"], one["seconds"], logs[job.name].read_text())
        for job, one in zip(jobs, found["runs"], strict=True)
    }
    return found | {"runs": runs}


def train(code: Path, env: dict, words, folder: Path, **job) -> dict:
    """Train with nothing of ours, see ``released_run.py``; return what its last clean test gave."""
    out = folder / "theirs.json"
    job |= {"words": list(map(str, words)), "out": str(out)}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    call = [sys.executable, HERE / "released_run.py", folder / "job.json"]
    env = env | {"HOST_FULL_PRECISION": "1"}
    done = subprocess.run(call, cwd=code, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text(encoding="utf-8"))


def repaired(env: dict) -> list[str]:
    """Return what of a host's Dassl is repaired when our package is imported."""
    code = (
        "import compat, json; compat.guard_torchvision(); compat.ensure_dassl(); "
        "print(json.dumps(compat.modernize_dassl()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO / "trainers", env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class World:
    """What all hosts share; ``site`` is where our wheel is installed."""

    hosts: Path
    weights: dict[str, Weights]
    site: Path
