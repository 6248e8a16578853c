"""Python 3.10 to 3.13, PyTorch 2.0 to 2.13: features that are missing are stood in for."""

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advprompt.utils import versions

REPO = Path(__file__).resolve().parents[2]
FOLDERS = ("trainers", "datasets", "tools", "compat", "benchmarks", "tests")
SOURCES = sorted(
    [*REPO.glob("*.py"), *(path for folder in FOLDERS for path in (REPO / folder).rglob("*.py"))]
)
# younger than PyTorch 2.0, by the release that brought them
YOUNGER = {
    "torch.amp.GradScaler": "2.3",
    "torch.amp.custom_fwd": "2.4",
    "torch.amp.custom_bwd": "2.4",
    "torch.amp.is_autocast_available": "2.4",
    "torch.nn.attention": "2.3",
    "torch.library.custom_op": "2.4",
    "torch.library.register_fake": "2.4",
    "torch.library.impl_abstract": "2.2",
    "torch.compiler": "2.1",
    "torch.export": "2.1",
    "torch.accelerator": "2.6",
    "torch.get_default_device": "2.3",
    "torch.uint16": "2.3",
    "torch.uint32": "2.3",
    "torch.uint64": "2.3",
    "torch.float8_e4m3fn": "2.1",
    "torch.cuda.get_device_properties.uuid": "2.4",
    "torch.distributed.device_mesh": "2.2",
    "torch.distributed.init_device_mesh": "2.2",
    "torch.serialization.add_safe_globals": "2.4",
    "torch.serialization.safe_globals": "2.5",
    "torch.utils.flop_counter": "2.1",
    "torch.utils.swap_tensors": "2.3",
    "torch.autograd.graph.increment_version": "2.3",
    "torch.autograd.graph.get_gradient_edge": "2.1",
    "torch.nn.RMSNorm": "2.4",
    "torch.nn.Buffer": "2.5",
}
YOUNGER_METHODS = {"itemsize": "2.1", "fp32_precision": "2.9"}
YOUNGER_ARGUMENTS = {  # call: argument: release
    "torch.load": {"mmap": "2.1"},
    "load_state_dict": {"assign": "2.1"},
    "scaled_dot_product_attention": {"scale": "2.1", "enable_gqa": "2.5"},
    "checkpoint": {"early_stop": "2.9"},
}
GUARDED = {  # where an old PyTorch never comes to it
    "trainers/versions.py",
    "compat/dassl/utils/plain.py",
    "benchmarks/run.py",
    "benchmarks/budget.py",
}


def name_of(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


@pytest.mark.parametrize("folder", ["", *FOLDERS])
def test_no_syntax_younger_than_python_310(folder):
    for path in SOURCES:
        if (name_of(path).rpartition("/")[0].split("/")[0]) == folder:
            ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def test_the_check_of_the_syntax_can_fail():
    with pytest.raises(SyntaxError):
        ast.parse("try:\n    pass\nexcept* ValueError:\n    pass\n", feature_version=(3, 10))


@pytest.mark.slow
@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_other_pythons_compile_it(minor, tmp_path):
    """By the interpreters themselves, as far as they are here; nothing is imported."""
    python = next(filter(None, map(partial(_works, minor), _pythons(minor))), None)
    if python is None:
        pytest.skip(f"no Python 3.{minor} here")
    copies = tmp_path / "all"
    for path in SOURCES:
        (copies / name_of(path)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copies / name_of(path))
    done = subprocess.run(
        [python, "-W", "error::SyntaxWarning", "-m", "compileall", "-q", str(copies)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _pythons(minor: int) -> list[str]:
    root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    return [*map(str, root.glob(f"3.{minor}.*/bin/python")), f"python3.{minor}"]


def _works(minor: int, python: str) -> str | None:
    """Return ``python`` if it is that Python and not a name that leads nowhere."""
    code = "import sys; print(sys.version_info[1])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    return python if done.stdout.strip() == str(minor) else None


def test_the_package_says_which_pythons_and_which_torch():
    text = (REPO / "setup.py").read_text(encoding="utf-8")
    assert 'python_requires=">=3.10"' in text and '"torch>=2.0"' in text
    stated = re.findall(r'Python :: (3\.\d+)"', text)
    assert stated == ["3.10", "3.11", "3.12", "3.13"]


def dotted(node) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def younger_uses(source: str) -> list[str]:
    """What a source uses that PyTorch 2.0 does not have."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Attribute):
            names = [dotted(node)]
            if node.attr in YOUNGER_METHODS:
                found.append(f".{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call):
            called = dotted(node.func) or getattr(node.func, "attr", "")
            for name, arguments in YOUNGER_ARGUMENTS.items():
                if called == name or getattr(node.func, "attr", called) == name:
                    given = {keyword.arg for keyword in node.keywords}
                    found += [f"{name}({a}=)" for a in arguments if a in given]
        found += [n for n in names for y in YOUNGER if n == y or n.startswith(y + ".")]
    return found


def test_what_pytorch_20_lacks_is_used_in_one_place():
    uses = {
        name_of(path): younger_uses(path.read_text(encoding="utf-8"))
        for path in SOURCES
        if not name_of(path).startswith("tests/") and name_of(path) not in GUARDED
    }
    assert {path: found for path, found in uses.items() if found} == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.amp.GradScaler()",
        "from torch.nn.attention import sdpa_kernel",
        "import torch.compiler",
        "torch.float32.itemsize",
        "m.load_state_dict(s, assign=True)",
        "torch.load(p, mmap=True)",
        "from torch import accelerator",
        "torch.backends.cuda.matmul.fp32_precision",
    ],
)
def test_the_check_of_the_names_can_fail(source):
    assert younger_uses(source)


# -- stand-ins ------------------------------------------------------------------------------------


def test_this_torch_is_taken():
    versions.check_torch()


@pytest.mark.parametrize(
    ("module", "name"),
    [(F, "scaled_dot_product_attention"), (torch.optim.lr_scheduler, "LRScheduler")],
)
def test_an_old_torch_gets_one_clear_message(monkeypatch, module, name):
    monkeypatch.delattr(module, name)
    monkeypatch.setattr(torch, "__version__", "1.13.1")
    with pytest.raises(ImportError, match=f"PyTorch 1.13.1 has no {module.__name__}.{name}, .*2.0"):
        versions.check_torch()


@pytest.mark.slow
def test_the_message_comes_before_anything_else():
    """``import trainers`` on an old PyTorch ends in that message, whatever else is missing."""
    code = (
        "import torch, torch.nn.functional as F, torch.optim.lr_scheduler as s;"
        "del F.scaled_dot_product_attention, s.LRScheduler; import trainers"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs PyTorch 2.0 or later; run 'pip install --upgrade" in done.stderr.splitlines()[-1]


def test_a_torch_built_for_another_numpy(monkeypatch):
    def numpy(self):
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch.Tensor, "numpy", numpy)
    with pytest.raises(ImportError, match="does not work with the NumPy .*numpy<2"):
        versions.check_torch()


@pytest.mark.filterwarnings("ignore:`torch.cuda.amp.GradScaler")
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_gradient_scaler_by_its_old_name(monkeypatch):
    assert type(versions.grad_scaler(False)) is torch.amp.GradScaler
    monkeypatch.delattr(torch.amp, "GradScaler")
    old = versions.grad_scaler(False)
    assert type(old) is torch.cuda.amp.GradScaler and not old.is_enabled()
    loss = torch.tensor(3.0)
    assert old.scale(loss) is loss and old.state_dict() == {}


NEW_SWITCHES = """
import torch
from versions import exact_products

products = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
products[0].fp32_precision, products[1].fp32_precision = "tf32", "bf16"
with exact_products():
    assert [p.fp32_precision for p in products] == ["ieee", "ieee"]
assert [p.fp32_precision for p in products] == ["tf32", "bf16"]
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="there is one switch only"
)
def test_products_are_exact_where_the_new_switches_were_used():
    """In a process of its own: from then on PyTorch refuses to read the old switch."""
    done = subprocess.run(
        [sys.executable, "-c", NEW_SWITCHES], cwd=REPO / "trainers", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_products_are_exact_where_there_is_one_switch(monkeypatch):
    monkeypatch.setattr(versions, "hasattr", lambda *_: False, raising=False)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with versions.exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32, torch.bool])
def test_bytes_of_a_value_without_the_attribute(dtype):
    expected = dtype.itemsize
    assert versions.itemsize(dtype) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(versions, "hasattr", lambda *_: False, raising=False)
        assert versions.itemsize(dtype) == expected


@pytest.mark.parametrize("old", [False, True])
def test_values_are_taken_over_by_a_module_without_any(monkeypatch, old):
    if old:

        def load_state_dict(self, state_dict, strict=True):
            return original(self, state_dict, strict=strict)

        original = nn.Module.load_state_dict
        monkeypatch.setattr(nn.Module, "load_state_dict", load_state_dict)
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()
    for wrong in (
        state | {"0.bias": torch.zeros(4)},
        {k: v for k, v in state.items() if k != "0.bias"},
        state | {"0.bias.x": torch.zeros(1)},
    ):
        with pytest.raises(RuntimeError, match="0.bias"):
            versions.take_over(module, wrong)
    versions.take_over(module, state)
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert not any(p.is_meta for p in module.parameters())
