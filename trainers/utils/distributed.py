"""One run on many processes: ``torchrun --nproc_per_node N train.py ...``.

Every process holds the whole model, draws the same batches and takes its rows of each; the
gradients of what is trained are summed before the optimizer's step. Nothing is wrapped in
``DistributedDataParallel``: the few trained values need one sum per step and no overlap, a method's
loss keeps calling the module it knows, and a batch that leaves a process without rows, gradient
accumulation and several backward passes need no special treatment. Losses are means over samples,
so each process's part counts by its rows.

In one process every function here returns at once and changes nothing.
"""

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import UserError
from .io import json_digest

TIMEOUT = 7200  # s without an answer before a process gives up; ADVPROMPT_TIMEOUT
START = "'torchrun --nproc_per_node N train.py ...'"
ADVICE = f"set CUDA_VISIBLE_DEVICES=0 to train on one, or start {START} to train on N"
_group: dict = {}  # rank, world, local and store, once joined


class Share(NamedTuple):
    """This process's part of a batch."""

    rows: slice  # every N-th; where there are fewer rows than processes, the first stands in
    weight: float  # its part of the batch, 0 for a stand-in; those of all processes sum to 1


def rank() -> int:
    """Return this process's number, from 0."""
    return _group.get("rank", 0)


def world() -> int:
    """Return the number of processes."""
    return _group.get("world", 1)


def is_main() -> bool:
    """Return True in the process that writes: files, log and progress."""
    return rank() == 0


def join() -> None:
    """Join the processes that torchrun has started, of which only the first prints.

    Nothing happens without torchrun, or at a second call.

    Raises:
        UserError: the environment is not torchrun's, or the others did not come.
    """
    if _group or "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "") in ("", "0", "1"):
        return
    text = os.environ.get("ADVPROMPT_TIMEOUT", TIMEOUT)
    try:
        timeout = timedelta(seconds=float(text))
    except ValueError:
        raise UserError(f"ADVPROMPT_TIMEOUT is '{text}', expected a number of seconds") from None
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=timeout))
        of_this = {"rank": number, "world_size": count, "timeout": timeout}
        dist.init_process_group(backend, store=store, **of_this)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the {os.environ['WORLD_SIZE']} processes did not find each other ({error}); start "
            f"them with {START}"
        ) from error
    local = int(os.environ.get("LOCAL_RANK", number))
    _group.update(rank=number, world=count, local=local, store=store, seconds=float(text))
    if number:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        warnings.simplefilter("ignore")


@contextlib.contextmanager
def processes():
    """Join around an entry point; a mistake that all processes find is reported once."""
    join()
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        if not _group:
            raise
        stopped, first = isinstance(error, KeyboardInterrupt), True
        with contextlib.suppress(RuntimeError):  # the store has gone with the process that kept it
            first = _group["store"].add("advprompt/reported", 1) == 1
        if first:
            print("interrupted" if stopped else f"error: {error}", file=sys.stderr, flush=True)
        time.sleep(1)  # those who find the same mistake must still see that it was reported
        raise SystemExit(130 if stopped else 2) from None
    if _group:
        _group.clear()
        dist.destroy_process_group()


def device(chosen: torch.device) -> torch.device:
    """Return this process's device, where Dassl chose ``chosen``; UserError with too few GPUs."""
    visible = torch.cuda.device_count()
    if chosen.type == "cuda" and world() == 1 and visible > 1:
        print(f"note: {visible} GPUs are visible and one is used; {ADVICE}")
    if chosen.type != "cuda" or world() == 1:
        return chosen
    local = _group["local"]
    if local >= visible:
        raise UserError(
            f"process {local + 1} on this machine has no GPU of its own, {visible} are visible; "
            f"give --nproc_per_node {visible}, or USE_CUDA False to train on the CPU"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def refuse_data_parallel(objects: Iterable) -> None:
    """Refuse (UserError) models in DataParallel, which copies prompts to every GPU at each step."""
    if any(isinstance(thing, nn.DataParallel) for thing in objects):
        raise UserError(
            "this trainer has put its model into nn.DataParallel, which attacks and prompts do "
            f"not work with; remove it and {ADVICE}"
        )


def _exchange(call: Callable, *args, **options) -> None:
    if world() == 1:
        return
    try:
        call(*args, **options)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:  # each backend has its own
        raise UserError(
            f"another of the {world()} processes has ended or did not answer for "
            f"{_group['seconds']:g} s; whatever was finished is kept: start the same command "
            "again, with any number of processes"
        ) from error


def total(tensor: Tensor) -> Tensor:
    """Add up ``tensor`` (any shape, the same everywhere) over the processes, in place."""
    _exchange(dist.all_reduce, tensor)
    return tensor


def same(tensor: Tensor) -> Tensor:
    """Return the first process's ``tensor``, of one shape everywhere."""
    tensor = tensor.contiguous()
    _exchange(dist.broadcast, tensor, 0)
    return tensor


def align(module: nn.Module) -> None:
    """Give ``module`` the first process's parameters and buffers."""
    for tensor in module.state_dict().values() if world() > 1 else ():
        tensor.copy_(same(tensor.clone()))


def wait() -> None:
    """Wait until all processes are here."""
    total(torch.zeros(1))


def agree(make: Callable[[], object]):
    """Return what ``make()`` gives in the first process; only there it is called."""
    found = [make() if is_main() else None]
    _exchange(dist.broadcast_object_list, found, 0, device=torch.device("cpu"))
    return found[0]


def gather(value) -> list:
    """Return the values of all processes, in their order."""
    found = [value] * world()
    _exchange(dist.all_gather_object, found, value)
    return found


def check_same(what: str, make: Callable[[], object]) -> None:
    """Refuse processes that would share the work of different runs.

    Raises:
        UserError: ``what`` (a plural) ``make()`` gives, JSON-able, differs between the processes.
    """
    if world() == 1:
        return
    if len(set(gather(json_digest(make())))) > 1:
        raise UserError(
            f"the {world()} processes of this run have different {what}; start all of them with "
            "the same arguments, a --seed among them, and on the same data"
        )


@contextlib.contextmanager
def main_first():
    """Run the block in the first process, then in the others, which find its files made."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def share(count: int) -> Share:
    """Return this process's part of a batch of ``count`` >= 1 samples."""
    own = len(range(rank(), count, world()))
    return Share(slice(rank(), None, world()), own / count) if own else Share(slice(0, 1), 0.0)


def deal(items: Sequence, size: int) -> list:
    """Return this process's items: groups of ``size`` neighbours are dealt out in turns."""
    groups = [items[i : i + size] for i in range(0, len(items), size)]
    return [item for group in groups[rank() :: world()] for item in group]


def spread(work: Callable, items: Sequence) -> list:
    """Return ``work(item)`` of every item, each done by one process."""
    results = [None] * len(items)
    for number, part in enumerate(gather([work(item) for item in items[rank() :: world()]])):
        results[number :: world()] = part
    return results


def mean(values: Tensor, weight: float) -> Tensor:
    """Return the weighted mean of ``values`` over the processes; see :class:`Share`."""
    return total(values * weight) if world() > 1 else values


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients over the processes.

    A parameter without a gradient keeps none if that is so everywhere. A value that is not finite
    anywhere is not finite everywhere, so that all processes judge a step alike.
    """
    if world() == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    if not parameters:
        return
    there = torch.tensor([float(p.grad is not None) for p in parameters])
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([p.flatten().float() for p in parts] + [there.to(parts[0].device)])
    *sums, there = total(flat).split([p.numel() for p in parts] + [len(parts)])
    for parameter, value, seen in zip(parameters, sums, there.tolist(), strict=True):
        if seen:
            parameter.grad = value.view_as(parameter).to(parameter.dtype)  # (numel,) -> shape
