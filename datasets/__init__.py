"""Data sets in CoOp's layout, registered under CoOp's names in Dassl's registry.

A name that is registered already, by a fork or another plug-in, is left as it is.
"""

from .caltech101 import Caltech101
from .dtd import DescribableTextures
from .eurosat import EuroSAT
from .fgvc_aircraft import FGVCAircraft
from .folder import Folder
from .food101 import Food101
from .imagenet import ImageNet
from .imagenet_a import ImageNetA
from .imagenet_r import ImageNetR
from .imagenet_sketch import ImageNetSketch
from .imagenetv2 import ImageNetV2
from .oxford_flowers import OxfordFlowers
from .oxford_pets import OxfordPets
from .shapes import Shapes
from .shifts import DrawnTest
from .stanford_cars import StanfordCars
from .sun397 import SUN397
from .ucf101 import UCF101

COOP = {  # name in configs/datasets -> class
    "caltech101": Caltech101,
    "oxford_pets": OxfordPets,
    "stanford_cars": StanfordCars,
    "oxford_flowers": OxfordFlowers,
    "food101": Food101,
    "fgvc_aircraft": FGVCAircraft,
    "sun397": SUN397,
    "dtd": DescribableTextures,
    "eurosat": EuroSAT,
    "ucf101": UCF101,
    "imagenet": ImageNet,
    "imagenetv2": ImageNetV2,
    "imagenet_sketch": ImageNetSketch,
    "imagenet_a": ImageNetA,
    "imagenet_r": ImageNetR,
}
DRAWN = {cls.dataset_dir: cls for cls in (Shapes, *DrawnTest.__subclasses__())}
OWN = {"folder": Folder}  # the user's images
