"""A fork's own trainer, built and loaded by the fork's own train.py."""

import ast
import contextlib
import io
import sys
from pathlib import Path
from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import nn

from ..utils.errors import UserError

SHOWN = 200  # characters of a host's own message


class _Ready(BaseException):
    """Ends train.py where it would test. A train.py that catches everything has ended too."""


def load(script, words: list[str]) -> tuple[Any, dict[Path, int | None]]:
    """Return a trainer as the fork's ``train.py --eval-only`` has it when it would start to test.

    ``script`` is the imported train.py, ``words`` are its arguments. Also returns the files that
    ``torch.load`` read, with the epoch that they state, if any. UserError if train.py stops
    before, or nothing of a checkpoint fits the model.
    """
    built: list = []
    files: dict[Path, int | None] = {}
    fitted: dict[nn.Module, tuple[int, bool]] = {}  # tensors given, and whether one has a place
    argv, said = sys.argv, io.StringIO()

    def ready(self, *args, **kwargs):
        built.append(self)
        raise _Ready

    def read(f, *args, own=torch.load, **kwargs):  # names as torch's
        found, name = own(f, *args, **kwargs), getattr(f, "name", f)
        if isinstance(name, (str, Path)):
            epoch = found.get("epoch") if isinstance(found, dict) else None
            files[Path(name)] = epoch if isinstance(epoch, int) else None
        return found

    def fill(self, state_dict, *args, own=nn.Module.load_state_dict, **kwargs):
        result = own(self, state_dict, *args, **kwargs)
        fitted[self] = len(state_dict), set(state_dict) > set(result.unexpected_keys)
        return result

    sys.argv = ["train.py", *words]
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(said))
            trainers = TRAINER_REGISTRY._obj_map.values()
            for cls in {c for t in trainers for c in t.__mro__ if c is not nn.Module}:
                for name in {"test", "train"} & vars(cls).keys():
                    _replace(stack, cls, name, ready)
            _replace(stack, torch, "load", read)
            _replace(stack, nn.Module, "load_state_dict", fill)
            exec(_main_block(script), vars(script))
    except (_Ready, Exception, SystemExit) as error:
        if not built:
            raise _stopped(error, said.getvalue()) from error
    finally:
        sys.argv = argv
    if not built:
        raise UserError(
            "the fork's train.py --eval-only ended without trainer.test(); call it there"
        )
    for name, model in built[0]._models.items():
        count, one = fitted.get(model, (0, True))
        if count and not one:
            raise UserError(
                f"none of the {count} tensors in the checkpoint is one of {name} of "
                f"{type(built[0]).__name__}; give the --trainer that it was trained with"
            )
    return built[0], files


def _replace(stack: contextlib.ExitStack, owner, name: str, value) -> None:
    """Replace an attribute until the stack is left."""
    stack.callback(setattr, owner, name, vars(owner)[name])
    setattr(owner, name, value)


def _stopped(error: BaseException, said: str) -> UserError:
    """Return one sentence for what stopped train.py, which may have caught and replaced it."""
    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, ModuleNotFoundError):
            return UserError(
                f"the fork needs the package {cause.name!r}, which is not installed; install it "
                "as the fork's README says"
            )
    # the end of a message says what does not fit
    texts = [f"{type(c).__name__}: {' '.join(str(c).split())[-SHOWN:]}" for c in causes[:2]]
    if isinstance(error, SystemExit):  # of argparse, which prints why
        texts = (said.strip().splitlines() or [f"exit code {error.code}"])[-1:]
    return UserError(
        f"the fork's train.py stopped before the test ({'; after '.join(texts)}); give "
        "the arguments that its own --eval-only takes for this run, such as --root, the "
        "backbone, --config-file and --dataset-config-file it was trained with"
    )


def trained(trainer, name: str) -> list:
    """Return the parameters that the optimizer of a registered model trains."""
    optimizer = trainer._optims.get(name)
    groups = optimizer.param_groups if optimizer else []
    return [p for group in groups for p in group["params"] if p.requires_grad]


def _main_block(script):
    """Compile what train.py does where it is the program."""
    path = Path(script.__file__)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [
        statement
        for node in tree.body
        if isinstance(node, ast.If) and "__name__" in ast.dump(node.test)
        for statement in node.body
    ]
    return compile(ast.Module(blocks, []), str(path), "exec")


def commit_of(folder: Path | None) -> str:
    """Return the commit that a folder's repository is at, as its files say; "" without one.

    No git is run, so that uncommitted changes are not known.
    """
    if folder is None:
        return ""
    with contextlib.suppress(OSError, StopIteration):
        place = next(p for p in (folder, *folder.parents) if (p / ".git").exists()) / ".git"
        if place.is_file():  # of a worktree or submodule
            place = (place.parent / place.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (place / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        common = place / "commondir"
        place = (place / common.read_text().strip()).resolve() if common.is_file() else place
        ref = head.removeprefix("ref: ")
        if (place / ref).is_file():
            return (place / ref).read_text().strip()
        for line in (place / "packed-refs").read_text().splitlines():
            if line.endswith(f" {ref}"):
                return line.split()[0]
    return ""
