"""EuroSAT: satellite images of 10 kinds of land use, 64x64 (Helber et al., 2019)."""

from .base import register
from .folder import ClassFolders


@register
class EuroSAT(ClassFolders):
    """The RGB images; 50 % training, 20 % validation, 30 % test."""

    dataset_dir = "eurosat"
    image_folder = "2750"
    split_file = "split_zhou_EuroSAT.json"
    n_classes = 10
    class_names = {
        "AnnualCrop": "Annual Crop Land",
        "Forest": "Forest",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "River": "River",
        "SeaLake": "Sea or Lake",
    }
