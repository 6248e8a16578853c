"""What stands between a host and this machine; Python imports it first where it is on the path.

- The host's table of OpenAI's addresses names local files, because nothing is fetched here.
- Without a GPU ``.cuda()`` returns what it is called on, because some hosts call it always. With
  HOST_FULL_PRECISION ``.half()`` gives float32 there, as OpenAI's ``clip.load`` does on a CPU,
  which needs minutes for what MaPLe computes in half precision.
- HOST_LACKS: of packages that hosts import and that are missing they get what they import: FAP
  ``AutoAttack``, an empty class, and ``pkg_resources.packaging``, which setuptools before 81 had;
  DePT an empty ``plotnine``; ProMetaR the modules of a checkout of ``learn2learn``.
"""

import importlib.machinery
import importlib.util
import json
import os
import sys
import types


def after_torch(torch):
    if "learn2learn" in os.environ["HOST_LACKS"]:  # second derivatives, which this one has not
        torch.backends.cuda.enable_flash_sdp(False)  # on a CPU too
    if torch.cuda.is_available():
        return
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    for kind in (torch.Tensor, torch.nn.Module):
        kind.half = half_or_full(kind.half, kind.float)


def half_or_full(half, full):
    def cast(self, *args, **kwargs):
        return (full if os.environ.get("HOST_FULL_PRECISION") else half)(self, *args, **kwargs)

    return cast


def after_clip(clip):
    if not hasattr(clip, "_MODELS"):  # a package that has only the name
        return
    clip._MODELS = json.loads(os.environ["HOST_MODELS"])
    clip._download = lambda file, root=None: file


class Afterwards(importlib.machinery.PathFinder):
    """Finds a few modules as usual, and changes them once they are imported."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        last = fullname.rpartition(".")[2]
        change = {"torch": after_torch}.get(fullname, after_clip if last == "clip" else None)
        if change is None:
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            change(module)

        spec.loader.exec_module = exec_module
        return spec


def provide(name, **contents):
    """Make ``from name import ...`` work where there is no such package."""
    if importlib.util.find_spec(name) is None:
        module = sys.modules[name] = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(contents)


if "HOST_MODELS" in os.environ:
    sys.meta_path.insert(0, Afterwards)
    if "plotnine" in os.environ["HOST_LACKS"]:
        provide("plotnine")
    if "learn2learn" in os.environ["HOST_LACKS"]:  # without what needs gym and a compiler
        folder = os.path.join(os.environ["HOST_SOURCES"], "learn2learn", "learn2learn")
        provide("learn2learn", __path__=[folder])
    if "autoattack" in os.environ["HOST_LACKS"]:
        provide("autoattack", AutoAttack=type("AutoAttack", (), {}))
    if "pkg_resources" in os.environ["HOST_LACKS"]:
        import packaging.version

        provide("pkg_resources", packaging=packaging)
