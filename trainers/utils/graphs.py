"""CUDA graphs: a GPU repeats a computation without being given its kernels one by one.

Not measured on a GPU yet, so that every key that uses this is off by default.
"""

from collections.abc import Callable

import torch
from torch import Tensor

ON = False  # ATTACK.CUDA_GRAPH of the run
WORTH = 8  # steps of an attack from which on recording pays
SAME = 1e-3  # of a replayed loss, relative
NOTE = "note: no CUDA graph: {}"
Step = Callable[[Tensor], tuple[Tensor, ...]]  # its second result is a loss


def replayed(step: Step, images: Tensor) -> Step:
    """Return ``step`` recorded for images of this shape, or as it is, said in one line.

    The results are written to again by the next call. What is recorded must neither wait for the
    GPU nor draw random numbers on the CPU: a replay is compared with the step itself.
    """
    given, graph, side = images.detach().clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    try:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose their kernels before they are recorded
            for _ in range(3):
                expected = step(given)[1].clone()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            found = step(given)
        graph.replay()
        if not torch.allclose(found[1], expected, rtol=SAME, atol=SAME):
            raise RuntimeError("a replay gives another loss")
    except RuntimeError as error:
        print(NOTE.format(str(error).splitlines()[0]))
        return step

    def run(images: Tensor) -> tuple[Tensor, ...]:
        given.copy_(images)
        graph.replay()
        return found

    return run


class _Texts(torch.nn.Module):
    def __init__(self, model, chunk: int):
        super().__init__()
        self.model, self.chunk = model, chunk

    def forward(self) -> Tensor:
        return self.model.text_features(self.chunk)


def texts_of(model, chunk: int) -> Callable[[], Tensor]:
    """Return ``model.text_features``, forward and backward replayed, or as it is, said in one line.

    The backward pass must come before the next call, which writes to the same tensors.
    """
    try:
        return torch.cuda.make_graphed_callables(_Texts(model, chunk), (), allow_unused_input=True)
    except RuntimeError as error:
        print(NOTE.format(str(error).splitlines()[0]))
        return _Texts(model, chunk)
