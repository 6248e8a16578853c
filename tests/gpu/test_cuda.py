"""Everything on CUDA against the CPU: ``pytest -m gpu`` where there is a GPU."""

import pytest
import torch

from benchmarks import gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("part", gpu.PARTS)
def test_a_gpu_gives_what_the_cpu_gives(part):
    wrong = [row for row in gpu.PARTS[part]("cuda", True) if not row["holds"]]
    assert not wrong
