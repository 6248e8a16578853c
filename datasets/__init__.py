"""Data sets in CoOp's layout, registered under CoOp's names in Dassl's registry.

A name that is registered already, by a fork or another plug-in, is left as it is.
"""

from . import (
    caltech101,
    dtd,
    eurosat,
    fgvc_aircraft,
    folder,
    food101,
    imagenet,
    imagenet_a,
    imagenet_r,
    imagenet_sketch,
    imagenetv2,
    oxford_flowers,
    oxford_pets,
    shapes,
    shifts,
    stanford_cars,
    sun397,
    ucf101,
)

__all__ = [
    "caltech101",
    "dtd",
    "eurosat",
    "fgvc_aircraft",
    "folder",
    "food101",
    "imagenet",
    "imagenet_a",
    "imagenet_r",
    "imagenet_sketch",
    "imagenetv2",
    "oxford_flowers",
    "oxford_pets",
    "shapes",
    "shifts",
    "stanford_cars",
    "sun397",
    "ucf101",
]
