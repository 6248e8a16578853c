"""Data sets in CoOp's layout, registered under CoOp's names in Dassl's registry.

A name that is registered already, by a fork or another plug-in, is left as it is. ``core`` is
the package with the trainers under whatever name it was imported.
"""

import importlib

core = importlib.import_module(__name__.rpartition(".")[0] or "trainers")

from . import caltech101, eurosat, folder, oxford_pets, shapes  # noqa: E402

__all__ = ["caltech101", "eurosat", "folder", "oxford_pets", "shapes"]
