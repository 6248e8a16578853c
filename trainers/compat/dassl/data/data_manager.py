"""From ``cfg`` to the data set and its loaders."""

import torch
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from ..utils import read_image
from ..utils.tools import check_choice
from .datasets import build_dataset
from .transforms import build_transform

SAMPLERS = {"RandomSampler": RandomSampler, "SequentialSampler": SequentialSampler}


def build_data_loader(
    cfg,
    sampler_type="SequentialSampler",
    data_source=None,
    batch_size=64,
    tfm=None,
    is_train=True,
    dataset_wrapper=None,
) -> DataLoader:
    """Build a loader over ``data_source``, a list of Datum.

    In training an incomplete last batch is dropped, unless it is the only one.
    """
    if not data_source:
        raise ValueError(f"the {'training' if is_train else 'test'} split has no image")
    check_choice("sampler", sampler_type, SAMPLERS)
    wrapper = dataset_wrapper or DatasetWrapper
    return DataLoader(
        wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=SAMPLERS[sampler_type](data_source),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )


class DataManager:
    """The data set of ``cfg`` with its loaders.

    Attributes:
        dataset: the DatasetBase.
        train_loader_x, train_loader_u, val_loader, test_loader: loaders of batch dicts; None
            where the data set has no unlabelled or validation images.
        num_classes, num_source_domains, lab2cname: see DatasetBase.
    """

    def __init__(self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None):
        dataset = build_dataset(cfg)
        for kind, given in (("training", custom_tfm_train), ("testing", custom_tfm_test)):
            if given is not None:
                print(f"* Using custom transform for {kind}")
        tfm_train = custom_tfm_train or build_transform(cfg, is_train=True)
        tfm_test = custom_tfm_test or build_transform(cfg, is_train=False)

        def loader(items, node, tfm, is_train=False):
            common = (node.SAMPLER, items, node.BATCH_SIZE, tfm, is_train, dataset_wrapper)
            return build_data_loader(cfg, *common)

        node_x, node_u, node_test = (cfg.DATALOADER[key] for key in ("TRAIN_X", "TRAIN_U", "TEST"))
        node_u = node_x if node_u.SAME_AS_X else node_u
        self.dataset = dataset
        self.train_loader_x = loader(dataset.train_x, node_x, tfm_train, True)
        train_u, val = dataset.train_u, dataset.val
        self.train_loader_u = loader(train_u, node_u, tfm_train, True) if train_u else None
        self.val_loader = loader(val, node_test, tfm_test) if val else None
        self.test_loader = loader(dataset.test, node_test, tfm_test)

        self.num_classes = dataset.num_classes
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self.lab2cname = dataset.lab2cname
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    def show_dataset_summary(self, cfg) -> None:
        """Print a table with the numbers of classes and images."""
        table = [["Dataset", cfg.DATASET.NAME]]
        for kind in ("Source", "Target"):
            if domains := cfg.DATASET[f"{kind.upper()}_DOMAINS"]:
                table.append([kind, domains])
        table.append(["# classes", f"{self.num_classes:,}"])
        for split in ("train_x", "train_u", "val", "test"):
            items = getattr(self.dataset, split)
            if items or split in ("train_x", "test"):
                table.append([f"# {split}", f"{len(items):,}"])
        print(tabulate(table))


class DatasetWrapper(Dataset):
    """A list of Datum as a PyTorch data set of dicts.

    Each item has ``img``, ``label``, ``domain``, ``impath`` and ``index``; ``img`` is a tensor
    (3, H, W), or a PIL image without a transform. A list of transforms gives ``img``, ``img2``, ...
    """

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        if cfg.DATALOADER.K_TRANSFORMS > 1 or cfg.DATALOADER.RETURN_IMG0:
            raise ValueError(
                "DATALOADER.K_TRANSFORMS and RETURN_IMG0 need Dassl itself, which is not installed"
            )
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx):
        item = self.data_source[idx]
        output = {key: getattr(item, key) for key in ("label", "domain", "impath")}
        image = read_image(item.impath)
        output |= {"index": idx, "img": image}
        listed = isinstance(self.transform, (list, tuple))
        for i, transform in enumerate(self.transform if listed else [self.transform]):
            if transform is not None:
                output["img" if i == 0 else f"img{i + 1}"] = transform(image)
        return output
