"""One run on many processes: ``torchrun --nproc_per_node N train.py ...``.

Every process holds the whole model, draws the same batches and takes its rows of each; the
gradients of what is trained are summed before the optimizer's step. Nothing is wrapped in
``DistributedDataParallel``: the few trained values need one sum per step and no overlap, a method's
loss keeps calling the module it knows, and a batch that leaves a process without rows, gradient
accumulation and several backward passes need no special treatment. Losses are means over samples,
so each process's part counts by its rows.

In one process every function here returns at once and changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
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

TIMEOUT = 7200  # s without an answer before a process gives up; ADVPROMPT_TIMEOUT
REPORTED = "advprompt/reported"  # a counter: only the first process to fail says why
_group: dict = {}  # rank, world, local and store, once joined


class LostProcess(UserError):
    """Another process of this run has ended, or does not answer."""


class Share(NamedTuple):
    """This process's part of a batch.

    Attributes:
        rows: every N-th row; where there are fewer rows than processes, the first row stands in.
        weight: its part of the batch, 0 for a stand-in; the weights of all processes sum to 1.
    """

    rows: slice
    weight: float


# --- who is there -----------------------------------------------------------------------------


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
    """Join the processes that torchrun has started; nothing happens without it, or twice.

    Only the first prints.

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
        dist.init_process_group(
            backend, store=store, rank=number, world_size=count, timeout=timeout
        )
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the {os.environ['WORLD_SIZE']} processes did not find each other ({error}); start "
            "them with 'torchrun --nproc_per_node N train.py ...'"
        ) from error
    local = int(os.environ.get("LOCAL_RANK", number))
    _group.update(rank=number, world=count, local=local, store=store, seconds=float(text))
    if number:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        warnings.simplefilter("ignore")


def leave() -> None:
    """Leave the others, at the end of a run."""
    if _group:
        _group.clear()
        dist.destroy_process_group()


@contextlib.contextmanager
def processes():
    """Join around an entry point; a mistake that all processes find is reported once."""
    join()
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        if not _group:
            raise
        stopped = isinstance(error, KeyboardInterrupt)
        if _first_to_report():
            print("interrupted" if stopped else f"error: {error}", file=sys.stderr, flush=True)
        time.sleep(1)  # those who find the same mistake must still see that it was reported
        raise SystemExit(130 if stopped else 2) from None
    leave()


def _first_to_report() -> bool:
    try:
        return _group["store"].add(REPORTED, 1) == 1
    except RuntimeError:  # it has gone with the process that kept it
        return True


def device(chosen: torch.device) -> torch.device:
    """Return the device of this process where Dassl has chosen ``chosen``: one GPU for each.

    Raises:
        UserError: there are fewer GPUs than processes on this machine.
    """
    if chosen.type != "cuda":
        return chosen
    visible = torch.cuda.device_count()
    if world() == 1:
        if visible > 1:
            print(f"note: {visible} GPUs are visible and one is used; {ADVICE}")
        return chosen
    local = _group["local"]
    if local >= visible:
        raise UserError(
            f"process {local + 1} on this machine has no GPU of its own, {visible} are visible; "
            f"give --nproc_per_node {visible}, or USE_CUDA False to train on the CPU"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


ADVICE = (
    "set CUDA_VISIBLE_DEVICES=0 to train on one, or start "
    "'torchrun --nproc_per_node N train.py ...' to train on N"
)


def refuse_data_parallel(objects: Iterable) -> None:
    """Refuse models in torch's DataParallel, which copies prompts to every GPU at each step.

    Raises:
        UserError: one of ``objects`` is one.
    """
    if any(isinstance(thing, nn.DataParallel) for thing in objects):
        raise UserError(
            "this trainer has put its model into nn.DataParallel, which attacks and prompts do "
            f"not work with; remove it and {ADVICE}"
        )


# --- what they exchange -----------------------------------------------------------------------


@contextlib.contextmanager
def _exchange():
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:  # each backend has its own
        raise LostProcess(
            f"another of the {world()} processes has ended or did not answer for "
            f"{_group['seconds']:g} s; whatever was finished is kept: start the same command "
            "again, with any number of processes"
        ) from error


def total(tensor: Tensor) -> Tensor:
    """Add up ``tensor`` (any shape, the same everywhere) over the processes, in place."""
    if world() > 1:
        with _exchange():
            dist.all_reduce(tensor)
    return tensor


def same(tensor: Tensor) -> Tensor:
    """Return the first process's ``tensor``, of one shape everywhere."""
    if world() > 1:
        tensor = tensor.contiguous()
        with _exchange():
            dist.broadcast(tensor, 0)
    return tensor


def align(module: nn.Module) -> None:
    """Give ``module`` the first process's parameters and buffers."""
    if world() > 1:
        for tensor in module.state_dict().values():
            tensor.copy_(same(tensor.clone()))


def wait() -> None:
    """Wait until all processes are here."""
    if world() > 1:
        total(torch.zeros(1))


def agree(make: Callable[[], object]):
    """Return what ``make()`` gives in the first process; only there it is called.

    Between processes the value travels as JSON.
    """
    if world() == 1:
        return make()
    data = _encode(make()) if is_main() else torch.empty(0, dtype=torch.uint8)
    size = same(torch.tensor([len(data)]))
    return _decode(same(data if is_main() else torch.empty(int(size), dtype=torch.uint8)))


def gather(value) -> list:
    """Return the values (JSON-able) of all processes, in their order."""
    if world() == 1:
        return [value]
    data = _encode(value)
    sizes = torch.zeros(world(), dtype=torch.int64)
    sizes[rank()] = len(data)
    sizes = total(sizes).tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(data)] = data
    found = [torch.empty_like(padded) for _ in sizes]
    with _exchange():
        dist.all_gather(found, padded)
    return [_decode(data[:size]) for data, size in zip(found, sizes, strict=True)]


def check_same(what: str, make: Callable[[], object]) -> None:
    """Refuse processes that would share the work of different runs.

    Args:
        what: the name of what ``make()`` gives (JSON-able), in the plural.

    Raises:
        UserError: it differs between the processes.
    """
    if world() == 1:
        return
    digest = hashlib.sha256(json.dumps(make(), sort_keys=True).encode()).hexdigest()
    if len(set(gather(digest))) > 1:
        raise UserError(
            f"the {world()} processes of this run have different {what}; start all of them with "
            "the same arguments, a --seed among them, and on the same data"
        )


def _encode(value) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decode(data: Tensor):
    return json.loads(data.numpy().tobytes())


@contextlib.contextmanager
def main_first():
    """Run the block in the first process, then in the others, which find its files made."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


# --- how they divide the work -----------------------------------------------------------------


def share(count: int) -> Share:
    """Return this process's part of a batch of ``count`` >= 1 samples."""
    own = len(range(rank(), count, world()))
    return Share(slice(rank(), None, world()), own / count) if own else Share(slice(0, 1), 0.0)


def deal(items: Sequence, size: int) -> list:
    """Return this process's items: groups of ``size`` neighbours are dealt out in turns."""
    if world() == 1:
        return list(items)
    groups = [items[i : i + size] for i in range(0, len(items), size)]
    return [item for group in groups[rank() :: world()] for item in group]


def spread(work: Callable, items: Sequence) -> list:
    """Return ``work(item)`` (JSON-able) of every item, each done by one process."""
    if world() == 1:
        return [work(item) for item in items]
    found = gather([work(item) for item in items[rank() :: world()]])
    results = [None] * len(items)
    for number, part in enumerate(found):
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
