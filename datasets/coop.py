"""CoOp's ten data sets next to ImageNet: how each is split where CoOp's split file is absent.

Their folders, class names that differ from folders, and addresses are in ``sources.yaml``.
"""

import re

from ..utils import io
from ..utils.errors import UserError
from .annotations import find, read_mat, read_rows
from .base import CoOpDataset, register
from .folder import ClassFolders
from .sampling import Item, Split, split_all, split_trainval


@register
class Caltech101(ClassFolders):
    """Objects of 100 classes, without the background (Fei-Fei et al., 2004)."""


@register
class OxfordPets(CoOpDataset):
    """37 breeds of cats and dogs (Parkhi et al., 2012)."""

    def make_split(self) -> Split:
        return split_trainval(self.read_list("trainval.txt"), self.read_list("test.txt"))

    def read_list(self, name: str) -> list[Item]:
        def to_item(line: str) -> Item:
            image, label, _, _ = line.split()  # Abyssinian_100 1 1 1: image, class, species, breed
            return Item(f"{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower())

        expected = "an image name and three numbers"
        return read_rows(self, f"annotations/{name}", to_item, expected)


@register
class StanfordCars(CoOpDataset):
    """196 models of cars with their years (Krause et al., 2013)."""

    numbered_at_random = True

    def make_split(self) -> Split:
        def to_names(mat) -> dict[int, str]:
            models = (str(name[0]).rpartition(" ") for name in mat["class_names"][0])
            named = (f"{year} {model}" for model, _, year in models)  # the year comes first
            return dict(enumerate(named, start=1))

        names = read_mat(self, "devkit/cars_meta.mat", to_names)

        def read_list(folder: str, file: str) -> list[Item]:
            def parse(mat) -> list[Item]:
                rows = [(row["fname"][0], int(row["class"][0, 0])) for row in mat["annotations"][0]]
                return [Item(f"{folder}/{name}", label - 1, names[label]) for name, label in rows]

            return read_mat(self, file, parse)

        trainval = read_list("cars_train", "devkit/cars_train_annos.mat")
        return split_trainval(trainval, read_list("cars_test", "cars_test_annos_withlabels.mat"))


@register
class OxfordFlowers(CoOpDataset):
    """102 flowers common in the United Kingdom (Nilsback and Zisserman, 2008)."""

    def make_split(self) -> Split:
        labels = read_mat(self, "imagelabels.mat", lambda mat: list(map(int, mat["labels"][0])))
        path = find(self, "cat_to_name.json")
        names = io.read_json(path)  # keys are labels, counted from 1
        for label in sorted(set(labels)):
            if str(label) not in names:
                raise UserError(f"'{path}' has no name of class {label}; {self.advice()}")
        return split_all(
            Item(f"image_{n:05d}.jpg", label - 1, names[str(label)])
            for n, label in enumerate(labels, start=1)
        )


@register
class Food101(ClassFolders):
    """101 dishes (Bossard et al., 2014); the official lists in ``meta`` are not used."""


@register
class FGVCAircraft(CoOpDataset):
    """100 variants of aircraft (Maji et al., 2013); CoOp has no split file of its own."""

    def load_split(self) -> Split:
        variants = read_rows(self, "variants.txt", str, "the name of a variant")
        labels = {name: label for label, name in enumerate(variants)}

        def to_item(line: str) -> Item:
            image, _, name = line.partition(" ")
            return Item(f"{image}.jpg", labels[name], name)

        expected = "an image's number and its variant, one of variants.txt"
        return Split(
            *(read_rows(self, f"images_variant_{p}.txt", to_item, expected) for p in Split._fields)
        )


@register
class SUN397(CoOpDataset):
    """397 kinds of scenes (Xiao et al., 2010), in the first of the official partitions."""

    def make_split(self) -> Split:
        def without_slash(line: str) -> str:
            if not line.startswith("/"):
                raise ValueError(line)
            return line[1:]

        folders = read_rows(self, "ClassName.txt", without_slash, "a class such as /a/abbey")
        labels = {folder: label for label, folder in enumerate(folders)}

        def to_item(line: str) -> Item:
            path = without_slash(line)
            folder = path.rpartition("/")[0]
            # a/apartment_building/outdoor is 'outdoor apartment_building'
            return Item(path, labels[folder], " ".join(reversed(folder.split("/")[1:])))

        expected = "an image of a class of ClassName.txt, such as /a/abbey/sun_aaa.jpg"
        trainval, test = (
            read_rows(self, f"{part}_01.txt", to_item, expected) for part in ("Training", "Testing")
        )
        return split_trainval(trainval, test)


@register
class DescribableTextures(ClassFolders):
    """47 textures named by adjectives (Cimpoi et al., 2014)."""


@register
class EuroSAT(ClassFolders):
    """Satellite images of 10 kinds of land use, 64x64, in RGB (Helber et al., 2019)."""


@register
class UCF101(CoOpDataset):
    """101 actions (Soomro et al., 2012), each video as its middle frame; the first partition."""

    def make_split(self) -> Split:
        def to_class(line: str) -> tuple[str, int]:
            number, action = line.split()
            return action, int(number) - 1

        lists = "ucfTrainTestlist"
        labels = dict(read_rows(self, f"{lists}/classInd.txt", to_class, "a number and an action"))

        def to_item(line: str) -> Item:
            action, video = line.split()[0].split("/")  # the label after it is not needed
            name = self.class_name(action)
            return Item(f"{name}/{video.replace('.avi', '.jpg')}", labels[action], name)

        expected = "a video of an action of classInd.txt, such as Archery/v_Archery_g01_c01.avi"
        trainval, test = (
            read_rows(self, f"{lists}/{part}list01.txt", to_item, expected)
            for part in ("train", "test")
        )
        return split_trainval(trainval, test)

    @staticmethod
    def class_name(action: str) -> str:
        """Turn ``ApplyEyeMakeup`` into ``Apply_Eye_Makeup``."""
        return "_".join(re.findall("[A-Z][^A-Z]*", action))
