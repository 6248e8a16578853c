"""The repairs of Dassl, the choice between Dassl and the stand-in, and the torchvision guard.

Each case runs in its own interpreter, because it is about what an import finds. The same is done
to a checkout of Dassl itself in tests/hosts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from advprompt import compat

PACKAGE = Path(compat.__file__).resolve().parents[1]  # `import compat`, as a fork without us

# A package with Dassl's module names and exactly its breakages.
FAKE = {
    **dict.fromkeys("__init__ config/__init__ data/__init__ optim/__init__".split(), ""),
    "data/transforms/__init__": "",
    "engine/__init__": (
        "import pandas as pd\nfrom wilds import get_dataset\n"
        "import dassl.optim.lr_scheduler, dassl.utils.torchtools\n"
        "import dassl.data.transforms.autoaugment, dassl.data.transforms.randaugment\n"
    ),
    "data/transforms/autoaugment": (
        "import numpy as np\ndef bits():\n    return np.array([8.0, 4.0]).astype(np.int)\n"
    ),
    "data/transforms/randaugment": (
        "import numpy as np\ndef add(img, n):\n    return np.array(img).astype(np.int) + n\n"
    ),
    "optim/lr_scheduler": (
        "from torch.optim.lr_scheduler import _LRScheduler\n"
        "class _BaseWarmupScheduler(_LRScheduler):\n"
        "    def __init__(self, optimizer, successor, warmup_epoch, last_epoch=-1, verbose=0):\n"
        "        self.successor = successor\n"
        "        self.warmup_epoch = warmup_epoch\n"
        "        super().__init__(optimizer, last_epoch, verbose)\n"
        "    def step(self, epoch=None):\n"
        "        if self.last_epoch >= self.warmup_epoch:\n"
        "            self.successor.step(epoch)\n"
        "            self._last_lr = self.successor.get_last_lr()\n"
        "        else:\n"
        "            super().step(epoch)\n"
        "class ConstantWarmupScheduler(_BaseWarmupScheduler):\n"
        "    def __init__(self, optimizer, successor, warmup_epoch, cons_lr, last_epoch=-1,\n"
        "                 verbose=False):\n"
        "        self.cons_lr = cons_lr\n"
        "        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)\n"
        "    def get_lr(self):\n"
        "        if self.last_epoch >= self.warmup_epoch:\n"
        "            return self.successor.get_last_lr()\n"
        "        return [self.cons_lr for _ in self.base_lrs]\n"
    ),
    "utils/__init__": "from .torchtools import load_checkpoint, save_checkpoint\n",
    "utils/torchtools": (
        "import torch\n"
        "def save_checkpoint(state, fpath):\n"
        "    torch.save(state, fpath)\n"
        "def load_checkpoint(fpath):\n"
        "    map_location = None if torch.cuda.is_available() else 'cpu'\n"
        "    return torch.load(fpath, map_location=map_location)\n"
    ),
}
BY_HAND = {  # how somebody repaired it
    "import pandas as pd\nfrom wilds import get_dataset\n": "",
    "np.int)": "int)",
    "(optimizer, last_epoch, verbose)": "(optimizer, last_epoch)",
    "map_location=map_location": "map_location=map_location, weights_only=False",
}


def write_package(folder, changes=()):
    for name, text in FAKE.items():
        for old, new in dict(changes).items():
            text = text.replace(old, new)
        path = folder / "dassl" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def run(code, *paths, cwd=None):
    """Run ``code`` with ``paths`` importable before the package; return what it prints."""
    folders = [*paths, PACKAGE, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(f) for f in folders if f)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


REPAIRED = """
import json, os, sys
import compat
compat.guard_torchvision()
compat.ensure_dassl()
repaired = compat.modernize_dassl()
assert compat.modernize_dassl() == []  # nothing is left to repair
compat.install()
assert not {"wilds", "pandas"} & {k for k, v in sys.modules.items() if v}
import numpy as np, torch
import dassl.engine
assert not hasattr(np, "int") and not hasattr(torch.load, "_module")  # others see the originals
try:
    dassl.engine.get_dataset()
except ImportError as error:
    assert "pip install wilds" in str(error)
assert dassl.data.transforms.autoaugment.bits().tolist() == [8, 4]
assert dassl.data.transforms.randaugment.add([1.5], 1).tolist() == [2]
from dassl.optim.lr_scheduler import ConstantWarmupScheduler
from dassl.utils import load_checkpoint, save_checkpoint

def schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0, momentum=0.9)
    main = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6.0)
    return optimizer, ConstantWarmupScheduler(optimizer, main, 1, 0.01)

def rates(optimizer, scheduler, epochs):
    out = []
    for _ in range(epochs):
        out.append(round(optimizer.param_groups[0]["lr"], 6))
        optimizer.step()
        scheduler.step()
    return out

whole = rates(*schedule(), 6)
optimizer, scheduler = schedule()
assert rates(optimizer, scheduler, 3) == whole[:3]
old = {k: v for k, v in vars(scheduler).items() if k != "optimizer"}  # as Dassl wrote it
torch.save({"scheduler": old, "val_result": np.float64(7)}, "old")
save_checkpoint({"scheduler": scheduler.state_dict(), "val_result": np.float64(7)}, "new")
torch.load("new", weights_only=True)
resumed = {}
for name in ("old", "new"):
    state = load_checkpoint(name)
    assert type(state["val_result"]) is float
    fresh, restored = schedule()
    fresh.load_state_dict(optimizer.state_dict())
    restored.load_state_dict(state["scheduler"])
    resumed[name] = rates(fresh, restored, 3) == whole[3:]

class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)
torch.save({"epoch": Payload()}, "evil")
try:
    load_checkpoint("evil")
    raise SystemExit("the payload was accepted")
except ValueError as error:
    assert "was refused" in str(error), error
assert not os.path.exists("ran")
found = {"repaired": repaired, "whole": whole, "resumed": resumed}
print(json.dumps({"file": dassl.__file__, **found}))
"""


@pytest.mark.skipif(torch.__version__ < (2, 6), reason="such files are refused before 2.6")
def test_every_known_breakage_is_repaired(tmp_path):
    write_package(tmp_path)
    absent = "import sys\nsys.modules.update(wilds=None, pandas=None)\n"  # as if not installed
    out, err = run(absent + REPAIRED, tmp_path, cwd=tmp_path)
    result = json.loads(out.splitlines()[-1])
    assert result["file"] == str(tmp_path / "dassl" / "__init__.py")
    assert result["repaired"] == ["warm-up schedules", "autoaugment", "randaugment", "checkpoints"]
    assert result["whole"] == [0.01, 1.0, 0.933013, 0.75, 0.5, 0.25]
    assert result["resumed"] == {"old": True, "new": True}
    assert "Warning" not in err


def test_a_working_dassl_is_left_alone(tmp_path):
    write_package(tmp_path, BY_HAND)
    code = """
import compat
compat.install()
assert compat.modernize_dassl() == []
import numpy, torch, dassl.utils.torchtools, dassl.optim.lr_scheduler as s
import dassl.data.transforms.autoaugment as a
assert dassl.utils.torchtools.torch is torch and a.np is numpy
assert s._BaseWarmupScheduler.state_dict is torch.optim.lr_scheduler.LRScheduler.state_dict
assert s._BaseWarmupScheduler.__init__.__module__ == "dassl.optim.lr_scheduler"
print(dassl.__file__)
"""
    out, err = run(code, tmp_path)
    assert out.split() == [str(tmp_path / "dassl" / "__init__.py")]
    assert "Warning" not in err


STAND_IN = """
import compat
compat.install()
compat.install()
import dassl.engine, sys
print(dassl.__file__, sum(p.endswith("compat") for p in sys.path), dassl.STAND_IN)
assert compat.modernize_dassl() == []
"""


@pytest.mark.parametrize("folder_only", [False, True], ids=["broken", "only a folder"])
def test_what_is_not_a_working_dassl_gives_way(tmp_path, folder_only):
    if folder_only:
        (tmp_path / "dassl").mkdir()
    else:
        write_package(tmp_path, {"import pandas as pd": "import gdown_"})
    first = "import dassl\n" if folder_only else ""
    out, err = run(first + STAND_IN, tmp_path, cwd=tmp_path)
    assert out.split() == [str(PACKAGE / "compat" / "dassl" / "__init__.py"), "1", "True"]
    warning = f"Dassl at '{tmp_path}/dassl' cannot be imported (No module named 'gdown_')"
    assert "Warning" not in err if folder_only else warning in err


def test_torchvision_imports_behind_the_guard():
    code = """
import compat
compat.guard_torchvision()
compat.guard_torchvision()
import torchvision.transforms.v2, torchvision.models, torch
assert torchvision.transforms.ToTensor() is not None
if not torchvision.extension._has_ops():
    try:
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        raise SystemExit("nms must say that it is missing")
    except RuntimeError as error:
        assert "custom C++ ops" in str(error)
    assert len(compat._libraries) == 1
else:
    assert not compat._libraries
"""
    run(code)


def test_guard_does_nothing_with_a_cuda_build(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: pytest.fail("looked"))
    before = list(compat._libraries)
    compat.guard_torchvision()
    assert compat._libraries == before
