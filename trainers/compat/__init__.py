"""Makes torchvision and Dassl importable in the installed environment.

``install()`` must run before anything imports torchvision or dassl.
"""

import importlib
import importlib.util
import sys
import types
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
UNUSED_IMPORTS = {  # by Dassl: for its WILDS data sets, and for downloads
    "wilds": "get_dataset",
    "pandas": "read_csv",
    "gdown": "download",
}
_libraries = []  # an operator lives as long as the library that defines it


def install() -> None:
    """Make ``import torchvision`` and ``import dassl`` work. Later calls change nothing."""
    guard_torchvision()
    ensure_dassl()
    modernize_dassl()


def guard_torchvision() -> None:
    """Let torchvision's CUDA wheel be imported next to a CPU build of torch.

    That wheel's compiled operators cannot be loaded there, and the import stops at the first use
    of their schemas. In that case the two schemas are declared; transforms, models
    and data sets then work, and calling ``torchvision.ops.nms`` says that it is not available.
    """
    if torch.version.cuda is not None or "torchvision" in sys.modules:
        return
    torchvision = importlib.util.find_spec("torchvision")
    if torchvision is None or hasattr(torch.ops.torchvision, "nms"):
        return
    extension = PathFinder.find_spec("_C", torchvision.submodule_search_locations)
    try:
        if extension is not None:
            torch.ops.load_library(extension.origin)
            return
    except OSError:
        pass
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def ensure_dassl() -> None:
    """Make ``import dassl`` work: Dassl itself if it can be imported, otherwise the stand-in.

    A Dassl that is found but cannot be imported is reported in a warning with the reason.
    """
    spec = _find_dassl()
    if spec is None:
        _forget_dassl()  # a folder that only happens to be called dassl
        if str(HERE) not in sys.path:
            sys.path.append(str(HERE))
    elif not _is_stand_in(spec):
        try:
            _import_dassl()
        except Exception as error:
            warnings.warn(
                f"Dassl at '{Path(spec.origin).parent}' cannot be imported ({error}); the stand-in "
                "that comes with this project is used, install what is missing to use Dassl itself",
                stacklevel=2,
            )
            _forget_dassl()
            sys.path.insert(0, str(HERE))
            importlib.import_module("dassl")


def modernize_dassl() -> list[str]:
    """Repair what keeps Dassl 0.6.3 from running on current PyTorch and NumPy; return its parts.

    Only broken parts are repaired; the stand-in is not changed.
    """
    spec = _find_dassl()
    if spec is None or _is_stand_in(spec):
        return []
    _import_dassl()
    from ._modernize import repair

    return repair()


def _find_dassl() -> ModuleSpec | None:
    spec = importlib.util.find_spec("dassl")
    return spec if spec is not None and spec.origin else None


def _is_stand_in(spec) -> bool:
    return Path(spec.origin).resolve().parent == HERE / "dassl"


def _forget_dassl() -> None:
    for name in [n for n in sys.modules if n == "dassl" or n.startswith("dassl.")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def _import_dassl() -> None:
    """Import ``dassl.engine``, with stubs for missing packages that it hardly uses.

    The stubs exist only while Dassl is imported.
    """
    missing = [name for name in UNUSED_IMPORTS if importlib.util.find_spec(name) is None]
    sys.modules.update({name: _stub(name) for name in missing})
    try:
        importlib.import_module("dassl.engine")
    finally:
        for name in missing:
            del sys.modules[name]


def _stub(package) -> types.ModuleType:
    def missing(*args, **kwargs):
        raise ImportError(
            f"this part of Dassl needs the package '{package}': pip install {package}"
        )

    module = types.ModuleType(package)
    module.__spec__ = ModuleSpec(package, None)
    setattr(module, UNUSED_IMPORTS[package], missing)
    return module
