"""What differs between releases of PyTorch, 2.0 to 2.13, each difference found by its feature.

Nothing here compares version numbers: a feature is there or it is not. Every line says since when
it is there and what stands in before. The rest of the project uses what PyTorch 2.0 has, or what
it finds by itself.
"""

from __future__ import annotations

import contextlib
import inspect

import torch
import torch.nn.functional as F
from torch import nn

# what cannot be replaced: attention in one piece, and loading that never executes code
NEEDED = (
    (F, "scaled_dot_product_attention", "2.0"),
    (torch.optim.lr_scheduler, "LRScheduler", "2.0"),
)


def check_torch() -> None:
    """Refuse a PyTorch that is too old, or that cannot work with the NumPy beside it.

    Raises:
        ImportError: one sentence with the release found and what to do.
    """
    for module, name, since in NEEDED:
        if not hasattr(module, name):
            raise ImportError(
                f"PyTorch {torch.__version__} has no {module.__name__}.{name}, but this project "
                f"needs PyTorch {since} or later; run 'pip install --upgrade torch torchvision'"
            )
    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:  # up to 2.2 PyTorch is built for NumPy 1
        raise ImportError(
            f"PyTorch {torch.__version__} does not work with the NumPy beside it ({error}); run "
            "'pip install \"numpy<2\"' or upgrade torch"
        ) from error


def grad_scaler(enabled: bool):
    """Return a gradient scaler for float16 on a GPU, which does nothing unless ``enabled``."""
    if hasattr(torch.amp, "GradScaler"):  # since 2.3
        return torch.amp.GradScaler(enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)  # its old name, deprecated since 2.4


@contextlib.contextmanager
def exact_products():
    """Multiply float32 matrices in float32 for a while, whatever the caller has switched on."""
    switches = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    if all(hasattr(switch, "fp32_precision") for switch in switches):
        # since 2.9; where they were used the old switch can no longer be read
        saving = {s: s.fp32_precision for s in switches if s.fp32_precision in ("tf32", "bf16")}
        for switch in saving:
            switch.fp32_precision = "ieee"
        try:
            yield
        finally:
            for switch, before in saving.items():
                switch.fp32_precision = before
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def itemsize(dtype: torch.dtype) -> int:
    """Return the bytes of one value."""
    if hasattr(dtype, "itemsize"):  # since 2.1
        return dtype.itemsize
    return torch.empty((), dtype=dtype).element_size()


def take_over(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Make ``state`` the values of a module built on the meta device, which has none of its own.

    Raises:
        RuntimeError: the names or the shapes differ.
    """
    if "assign" in inspect.signature(nn.Module.load_state_dict).parameters:  # since 2.1
        module.load_state_dict(state, assign=True)
        return
    own = {name: value.shape for name, value in module.state_dict().items()}
    given = {name: value.shape for name, value in state.items()}
    if own != given:  # before memory is taken
        odd = sorted(set(own.items()) ^ set(given.items()))[0][0]
        raise RuntimeError(f"tensor '{odd}' is missing, unknown or of another shape")
    module.to_empty(device="cpu").load_state_dict(state)
