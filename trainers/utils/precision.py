"""True float32, whatever the surroundings have switched on."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Multiply and convolve float32 values in float32: TF32 has errors of about 1e-3."""
    backends = torch.backends
    switches = [backends.cuda.matmul, backends.mkldnn.matmul]
    with contextlib.ExitStack() as restore:
        if hasattr(switches[0], "fp32_precision"):  # since 2.9: then the old one is unreadable
            switches += [backends.cudnn.conv]
            for switch in (s for s in switches if s.fp32_precision in ("tf32", "bf16")):
                restore.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
                switch.fp32_precision = "ieee"
        else:
            before = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
            restore.callback(torch.set_float32_matmul_precision, before[0])
            restore.callback(setattr, backends.cudnn, "allow_tf32", before[1])
            torch.set_float32_matmul_precision("highest")
            backends.cudnn.allow_tf32 = False
        yield
