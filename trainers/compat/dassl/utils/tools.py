"""Files, images, seeds and names."""

import contextlib
import difflib
import json
import os
import os.path as osp
import platform
import random
import tempfile
import warnings

import numpy as np
import PIL
import torch
from PIL import Image

__all__ = [
    "mkdir_if_missing",
    "check_isfile",
    "read_json",
    "write_json",
    "set_random_seed",
    "read_image",
    "collect_env_info",
    "listdir_nohidden",
    "check_availability",
    "tolist_if_not",
]


def nearest(name, choices) -> str:
    """Return a sentence that offers the choices closest to ``name``, or all if none is close."""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=3)
    if close:
        return f" Did you mean {' or '.join(by_lower[c] for c in close)}?"
    return f" Choose one of: {', '.join(sorted(by_lower.values())) or '(none registered)'}."


def mkdir_if_missing(dirname) -> None:
    """Create the folder and its parents; "" is the current folder and always exists."""
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath) -> bool:
    """Return True if ``fpath`` is a file; warn if it is not."""
    isfile = osp.isfile(fpath)
    if not isfile:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return isfile


@contextlib.contextmanager
def replacing(fpath):
    """Yield a binary file that replaces ``fpath`` once it is complete and on disk."""
    folder = osp.dirname(osp.abspath(fpath))
    mkdir_if_missing(folder)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{osp.basename(fpath)}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)  # mkstemp makes private files; results should be readable by others
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, fpath)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_json(fpath):
    with open(fpath, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"'{fpath}' is not valid JSON ({error}); replace it") from error


def write_json(obj, fpath) -> None:
    """Write ``obj`` as indented JSON; an existing file is replaced as a whole."""
    text = json.dumps(obj, indent=4, separators=(",", ": "))
    with replacing(fpath) as file:
        file.write(text.encode())


def set_random_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def read_image(path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders raise all sorts of errors on damaged files
        raise OSError(f"image '{path}' cannot be read ({error}); replace or remove it") from error


def collect_env_info() -> str:
    """Describe machine and libraries, one per line, without starting other programs."""
    facts = {
        "PyTorch version": torch.__version__,
        "CUDA used to build PyTorch": torch.version.cuda or "none",
        "OS": platform.platform(),
        "Python version": platform.python_version(),
        "GPUs": torch.cuda.device_count(),
        "NumPy": np.__version__,
        "Pillow": PIL.__version__,
    }
    return "\n".join(f"{name}: {value}" for name, value in facts.items())


def listdir_nohidden(path, sort=False) -> list:
    """Return the names in a folder that do not start with a dot."""
    items = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(items) if sort else items


def check_choice(what, name, choices) -> None:
    """Raise ValueError, offering the nearest names, unless ``name`` is one of the stand-in's."""
    if name not in choices:
        hint = nearest(name, choices)
        raise ValueError(f"{what} '{name}' is not available without Dassl itself.{hint}")


def check_availability(requested, available) -> None:
    """Raise ValueError, offering the nearest names, unless ``requested`` is in ``available``."""
    if requested not in available:
        raise ValueError(f"'{requested}' is not available.{nearest(requested, available)}")


def tolist_if_not(x) -> list:
    return x if isinstance(x, list) else [x]
