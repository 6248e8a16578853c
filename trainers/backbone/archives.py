"""The tensors of a TorchScript archive, read without running the program inside.

OpenAI publishes CLIP as TorchScript. Such an archive is a zip file: ``data.pkl`` describes the
module tree, ``data/<key>`` are the raw storages, ``code/`` is the program. Here ``data.pkl`` goes
through an unpickler that knows tensors and lists and turns every module into an inert container;
any other name in the pickle is refused, and ``code/`` is never opened.
"""

import pickle
import zipfile
from collections import OrderedDict

import torch

KINDS = "Double Float Half BFloat16 Long Int Short Char Byte Bool".split()


class _Module:
    """Stands for a scripted module: attributes, no behaviour."""

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module of the archive has no attribute table")
        self.__dict__.update(state)


def _tensor(storage, offset, size, stride, *options):
    if any(n < 0 for n in (offset, *size, *stride)) or len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor of the archive has an impossible shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if all(size) and last >= storage.numel():
        raise pickle.UnpicklingError("a tensor of the archive exceeds its storage")
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


GLOBALS = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *options: data,
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch", f"{kind}Storage"): getattr(torch, f"{kind}Tensor").dtype for kind in KINDS},
}


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}data.pkl"))
        self._archive, self._root, self._cache = archive, root, {}

    def find_class(self, module: str, name: str):
        if module == "__torch__" or module.startswith("__torch__."):
            return type("ScriptModule", (_Module,), {})  # a fresh class for each name
        if (module, name) in GLOBALS:
            return GLOBALS[module, name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        raise pickle.UnpicklingError(f"forbidden GLOBAL {module}.{name}")

    def persistent_load(self, saved):
        kind, dtype, key, _device, numel = saved
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(numel, int):
            raise pickle.UnpicklingError("the archive refers to something that is no storage")
        if key not in self._cache:
            data = bytearray(self._archive.read(f"{self._root}data/{key}"))
            if numel < 0 or len(data) < numel * dtype.itemsize:
                raise pickle.UnpicklingError(f"storage {key} of the archive is truncated")
            values = torch.empty(0, dtype=dtype)
            self._cache[key] = torch.frombuffer(data, dtype=dtype, count=numel) if numel else values
        return self._cache[key]


def read_script_archive(archive: zipfile.ZipFile) -> dict[str, torch.Tensor]:
    """Return the tensors of a TorchScript module under their dotted attribute names.

    Raises:
        pickle.UnpicklingError: the archive names anything but tensors and scripted modules.
        KeyError, ValueError, EOFError, zipfile.BadZipFile: it is incomplete.
    """
    record = next(n for n in archive.namelist() if n.endswith("/constants.pkl"))
    root = record[: -len("constants.pkl")]
    tensors: dict[str, torch.Tensor] = {}
    _collect(_Reader(archive, root).load(), "", tensors)
    return tensors


def _collect(module, prefix: str, tensors: dict[str, torch.Tensor]) -> None:
    for name, value in vars(module).items() if isinstance(module, _Module) else ():
        if torch.is_tensor(value):
            tensors[prefix + name] = value
        else:
            _collect(value, f"{prefix}{name}.", tensors)
