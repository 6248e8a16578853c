"""A small world for end-to-end tests: a toy CLIP on disk and a pets folder of drawn images."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

import advprompt  # noqa: F401  makes `import dassl` work
from tests import world
from tests.world import NAMES as NAMES
from tests.world import PER_CLASS as PER_CLASS
from tests.world import REPO as REPO


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory) -> Path:
    """A toy CLIP (32x32 images) as a plain state dict."""
    return world.make_toy(tmp_path_factory.mktemp("weights") / "toy.pt")


@pytest.fixture(scope="session")
def pets(tmp_path_factory) -> Path:
    """A data root with oxford_pets in CoOp's layout: 3 classes of drawn 40x40 images."""
    return world.make_pets(tmp_path_factory.mktemp("data"))


@pytest.fixture
def altered(pets, tmp_path):
    """Copy the pets and change parts of their split: ``altered(test=lambda items: items[1:])``."""

    def make(**changes) -> Path:
        root = shutil.copytree(pets, tmp_path / f"data {len(list(tmp_path.iterdir()))}")
        path = root / "oxford_pets" / "split_zhou_OxfordPets.json"
        split = json.loads(path.read_text())
        path.write_text(json.dumps(split | {k: new(split[k]) for k, new in changes.items()}))
        return root

    return make


@pytest.fixture
def arguments(pets, toy_file, tmp_path):
    """Build train.py's arguments for a short run of TRAINER: ``arguments("AdvPT", KEY=VALUE)``."""

    def build(trainer: str, *extra: str, root=None, **keys) -> list[str]:
        return world.arguments(trainer, toy_file, root or pets, tmp_path, *extra, **keys)

    return build


@pytest.fixture
def white_box(arguments):
    """Like ``arguments``, with small attacks through the whole model and 3 batches an epoch."""

    def build(trainer: str, *extra: str, **keys) -> list[str]:
        return arguments(
            trainer,
            *extra,
            **(
                {
                    "ATTACK__TRAIN__OBJECTIVE": "ce",
                    "ATTACK__TRAIN__TARGET": "end_to_end",
                    "ATTACK__TRAIN__EPS": "4/255",
                    "ATTACK__TRAIN__ALPHA": "2/255",
                    "ATTACK__TEST__LIST": "[{'EPS': '4', 'STEPS': 2}]",
                    "OPTIM__MAX_EPOCH": 1,
                    "DATALOADER__TRAIN_X__BATCH_SIZE": 4,
                }
                | keys
            ),
        )

    return build


@pytest.fixture
def build(white_box, capsys):
    """Build a trainer without training it: ``build("CAPT", KEY=VALUE)``, ready for a step."""
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed

    from advprompt.cli import train

    def make(name: str, **keys):
        cfg = train.setup_cfg(train.parser().parse_args(white_box(name, **keys)))
        set_random_seed(cfg.SEED)
        trainer = build_trainer(cfg)
        trainer.batch_idx, trainer.num_batches = 0, len(trainer.train_loader_x)
        trainer.before_epoch()
        trainer.set_model_mode("train")
        return trainer

    return make


@pytest.fixture
def tool(capsys):
    """Call a command in this process: ``tool(main, "--top", 3) -> (exit code, output, errors)``."""
    from advprompt.utils.entry import run_tool

    def call(main, *words) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_tool(main, [*map(str, words)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def run(capsys):
    """Run train.py in this process: ``run(argv) -> (exit code, output, errors)``."""
    from advprompt.cli import train
    from advprompt.utils.entry import run_tool

    def call(argv: list[str]) -> tuple[int, str, str]:
        stdout = sys.stdout
        try:
            code = run_tool(train.main, argv)
        finally:
            sys.stdout = stdout  # Dassl's logger takes its place
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, or a skip."""
    root = os.environ.get("ADVPROMPT_REAL_DATA")
    if not root:
        pytest.skip("ADVPROMPT_REAL_DATA is not set")
    return Path(root)


def weights(folder: Path, epoch: int = 4) -> dict:
    """The checkpoint of a run's prompts."""
    path = folder / "prompt_learner" / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)


def only_error(code: int, err: str) -> str:
    """The one sentence of a refused run."""
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def ok(result: tuple[int, str, str]) -> str:
    """The output of what ``run`` or ``tool`` did, which went well."""
    code, out, err = result
    assert code == 0, err
    return out


def refusal(result: tuple[int, str, str]) -> str:
    """The one sentence in which what ``run`` or ``tool`` should do was refused."""
    code, _, err = result
    return only_error(code, err)
