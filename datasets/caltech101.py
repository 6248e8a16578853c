"""Caltech101: objects of 100 classes, without the background (Fei-Fei et al., 2004)."""

from .base import register
from .folder import ClassFolders


@register
class Caltech101(ClassFolders):
    """50 % training, 20 % validation, 30 % test."""

    dataset_dir = "caltech-101"
    image_folder = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    n_classes = 100
    ignored = ("BACKGROUND_Google", "Faces_easy")
    class_names = {
        "airplanes": "airplane",
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    }
