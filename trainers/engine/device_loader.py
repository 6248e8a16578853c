"""A training set kept decoded on the device, and augmented there.

A few-shot epoch is a few batches: a fast GPU would mostly wait for loader processes to start and
for the same files to be decoded again. Images are decoded once and kept as bytes in their own size;
the device crops, resizes and flips them.
"""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..utils.errors import UserError
from ..utils.images import DECODERS, load_image

KNOWN = ("random_resized_crop", "random_flip", "center_crop")  # of INPUT.TRANSFORMS
RATIO = (3 / 4, 4 / 3)  # torchvision's, which Dassl leaves as it is
FLIPPED = 0.5
LIMIT = 4 * 2**30  # bytes of decoded images that IN_MEMORY auto keeps


def wanted(cfg, items: Sequence, device: torch.device) -> bool:
    """Return True if the training images shall be kept on the device.

    ``auto`` keeps them on a GPU, where every transform is known and the decoded images fit into 4
    GiB; the sizes are read from the files' heads. UserError if DATALOADER.TRAIN_X.IN_MEMORY is
    ``yes`` and a transform is not known here.
    """
    choice, node = cfg.DATALOADER.TRAIN_X.IN_MEMORY, cfg.DATALOADER
    if choice == "no" or (choice == "auto" and device.type != "cuda"):
        return False
    unknown = [name for name in cfg.INPUT.TRANSFORMS if name not in KNOWN]
    if node.K_TRANSFORMS > 1 or node.RETURN_IMG0 or cfg.INPUT.NO_TRANSFORM:
        unknown.append("DATALOADER.K_TRANSFORMS, RETURN_IMG0 or INPUT.NO_TRANSFORM")
    if unknown and choice == "yes":
        raise UserError(
            f"DATALOADER.TRAIN_X.IN_MEMORY is 'yes', but {unknown[0]} is not made on the device; "
            "use 'auto' or 'no'"
        )
    return not unknown and (choice == "yes" or decoded_bytes(items, LIMIT) <= LIMIT)


def decoded_bytes(items: Sequence, limit: int) -> int:
    """Return the bytes of all images once decoded; counting ends above ``limit``."""
    total = 0
    for item in items:
        # a damaged file is named when it is decoded
        with contextlib.suppress(Exception), Image.open(item.impath) as image:
            total += 3 * image.width * image.height
        if total > limit:
            break
    return total


class DeviceLoader:
    """Batches of a Dassl training loader, made on the device.

    Draws the same images in the same order as ``loader``, torch's over :class:`OwnDraws`,
    would with the same random state, and crops and flips them alike. Each batch is a dict like
    Dassl's, with ``img`` (B, 3, H, W) in [0, 1], ``label`` and ``index`` on the device.
    """

    def __init__(self, loader, cfg, device):
        import torchvision.transforms as transforms  # takes seconds: when needed
        from torchvision.transforms import functional

        self.get_crop = transforms.RandomResizedCrop.get_params
        self.resize, self.to_bytes = functional.resize, functional.pil_to_tensor
        self.loader, self.device = loader, torch.device(device)
        self.items = loader.dataset.data_source
        self.size, self.scale = list(cfg.INPUT.SIZE), tuple(cfg.INPUT.RRCROP_SCALE)
        self.mode = transforms.InterpolationMode(cfg.INPUT.INTERPOLATION)
        self.crops = "random_resized_crop" in cfg.INPUT.TRANSFORMS
        self.flips = "random_flip" in cfg.INPUT.TRANSFORMS
        self.labels = torch.tensor([item.label for item in self.items], device=self.device)

    @cached_property
    def images(self) -> list[Tensor]:
        """Decoded images, uint8 (3, h, w) each, read on first use; UserError for a corrupt one."""
        paths = [item.impath for item in self.items]
        with ThreadPoolExecutor(DECODERS) as pool:
            decoded = pool.map(lambda path: load_image(path, self.to_bytes), paths)
            shown = tqdm(decoded, "decoding training images", len(paths), unit="image", delay=1)
            return [image.to(self.device) for image in shown]

    @property
    def dataset(self):
        """The loader's data set, as Dassl's trainers ask for it."""
        return self.loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        torch.empty((), dtype=torch.int64).random_()  # a loader draws its workers' seed first
        for rows in self.loader.batch_sampler:
            chosen = [self.items[i] for i in rows]
            index = torch.tensor(rows, device=self.device)
            yield {
                "img": torch.stack([self.made(i) for i in rows]),  # (B, 3, H, W)
                "label": self.labels[index],
                "domain": torch.tensor([item.domain for item in chosen]),
                "impath": [item.impath for item in chosen],
                "index": index,
            }

    def made(self, index: int) -> Tensor:
        """Return a training image (3, H, W), augmented by its own draws."""
        with self.dataset.drawing(index):
            return self.augment(self.images[index])

    def augment(self, image: Tensor) -> Tensor:
        """Return (3, H, W) in [0, 1] from bytes (3, h, w), by draws of torch's CPU generator."""
        if self.crops:
            top, left, height, width = self.get_crop(image, self.scale, RATIO)
            image = image[:, top : top + height, left : left + width]
        flipped = self.flips and torch.rand(1) < FLIPPED
        image = self.resize(image.float() / 255, self.size, self.mode, antialias=True).clamp(0, 1)
        return image.flip(-1) if flipped else image
