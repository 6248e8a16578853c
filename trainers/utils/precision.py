"""True float32, whatever the surroundings have switched on."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Multiply and convolve float32 values in float32: TF32 has errors of about 1e-3."""
    matmul, other, cudnn = torch.backends.cuda.matmul, torch.backends.mkldnn, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # since 2.9: then the old ones are unreadable
        switches = [(s, "fp32_precision", "ieee") for s in (matmul, other.matmul, cudnn.conv)]
    else:
        switches = [(matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]
    with contextlib.ExitStack() as restore:
        for switch, name, exact in switches:
            if (before := getattr(switch, name)) in (True, "tf32", "bf16"):
                restore.callback(setattr, switch, name, before)
                setattr(switch, name, exact)
        yield
