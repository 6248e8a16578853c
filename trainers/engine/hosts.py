"""A fork's own trainer, built and loaded by the fork's own train.py."""

import ast
import contextlib
import io
import sys
from pathlib import Path
from typing import Any

from dassl.engine import TRAINER_REGISTRY

from ..utils.errors import UserError

SHOWN = 200  # characters of a host's own message


class _Ready(BaseException):  # which no host catches
    pass


def load(script, name: str, words: list[str]) -> tuple[Any, dict[Path, int | None]]:
    """Return a trainer as the fork's ``train.py --eval-only`` has it when it would start to test.

    ``script`` is the imported train.py, ``name`` the trainer's, ``words`` are its arguments. Also
    returns the checkpoint files that were loaded, with their epoch, if known. UserError if train.py
    stops before, or nothing of a checkpoint fits the model.
    """
    cls, built = TRAINER_REGISTRY.get(name), []
    files: dict[Path, int | None] = {}

    def ready(self, *args, **kwargs):
        built.append(self)
        raise _Ready

    def load_model(self, directory, epoch=None):
        with _watched(self, directory, epoch, files):
            return cls.load_model(self, directory, epoch=epoch)

    own = {"test": ready, "train": ready, "load_model": load_model, "__module__": cls.__module__}
    names, argv, said = TRAINER_REGISTRY._obj_map, sys.argv, io.StringIO()
    kept = names[name]
    names[name] = type(cls.__name__, (cls,), own)
    sys.argv = ["train.py", *words]
    try:
        with contextlib.redirect_stdout(said):
            exec(_main_block(script), vars(script))
    except _Ready:
        pass
    except ModuleNotFoundError as error:
        raise UserError(
            f"the fork needs the package {error.name!r}, which is not installed; install it as "
            "the fork's README says"
        ) from error
    except Exception as error:
        text = " ".join(str(error).split())[-SHOWN:]  # its end says what does not fit
        raise UserError(
            f"the fork's train.py stopped before the test ({type(error).__name__}: {text}); give "
            "the arguments that its own --eval-only takes for this run, such as --root, the "
            "backbone, --config-file and --dataset-config-file it was trained with"
        ) from error
    finally:
        names[name], sys.argv = kept, argv
    if not built:
        raise UserError(
            "the fork's train.py --eval-only ended without trainer.test(); call it there"
        )
    built[0].__class__ = cls
    return built[0], files


@contextlib.contextmanager
def _watched(trainer, directory, epoch, files: dict):
    """Note which files a trainer loads; refuse a checkpoint of which nothing fits."""
    models, fitted = trainer._models, {}
    for name, model in models.items():

        def watch(state, *args, name=name, own=model.load_state_dict, **kwargs):
            result = own(state, *args, **kwargs)
            fitted[name] = set(state) - set(result.unexpected_keys), len(state)
            return result

        model.load_state_dict = watch
    try:
        yield
    finally:
        for model in models.values():
            del model.load_state_dict
    last = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
    for name, (keys, count) in fitted.items():
        path = Path(directory, name, last)
        if count and not keys:
            raise UserError(
                f"none of the {count} tensors in '{path}' is one of {name} of "
                f"{type(trainer).__name__}; give the --trainer that it was trained with"
            )
        if path.is_file():
            files[path] = epoch


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
