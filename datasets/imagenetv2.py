"""ImageNetV2, matched frequency: new images of ImageNet's classes (Recht et al., 2019)."""

from ..utils.errors import UserError
from .base import register
from .imagenet_variants import ImageNetVariant


@register
class ImageNetV2(ImageNetVariant):
    """Ten images of each class; a test set only."""

    dataset_dir = "imagenetv2"
    image_folder = "imagenetv2-matched-frequency-format-val"

    def classes(self, present: list[str], names: dict[str, str]) -> list[tuple[str, str]]:
        """Return the folders, which are numbered by the order of ``classnames.txt``, from 0."""
        numbers = [str(label) for label in range(len(names))]
        if set(present) != set(numbers):
            odd = sorted(set(present) ^ set(numbers))[0]
            raise UserError(
                f"data set {self.name} has {len(present)} class folders and {len(names)} lines in "
                f"classnames.txt, and '{odd}' is in one of them only; {self.advice()}"
            )
        return list(zip(numbers, names.values(), strict=True))
