"""Data sets in CoOp's layout, registered under CoOp's names in Dassl's registry.

A name that a fork or another plug-in has already registered is not replaced.
"""

from . import coop, imagenet  # noqa: F401  they fill COOP
from .base import COOP as COOP
from .folder import Folder
from .shapes import Shapes
from .shifts import DrawnTest

DRAWN = {cls.dataset_dir: cls for cls in (Shapes, *DrawnTest.__subclasses__())}
OWN = {"folder": Folder}  # the user's images
