"""FGVC-Aircraft: 100 variants of aircraft (Maji et al., 2013)."""

from .annotations import read_rows
from .base import CoOpDataset, register
from .sampling import Item, Split


@register
class FGVCAircraft(CoOpDataset):
    """The official lists of variants; CoOp has no split file of its own."""

    dataset_dir = "fgvc_aircraft"
    image_folder = "images"
    n_classes = 100

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
