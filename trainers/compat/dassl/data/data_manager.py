"""From ``cfg`` to the data set and its loaders."""

import torch
from torch.utils.data import DataLoader, Dataset

from ..utils import read_image
from .datasets import build_dataset
from .samplers import build_sampler
from .transforms import INTERPOLATION_MODES, build_transform
from .transforms.transforms import Compose, Normalize, Resize, ToTensor


def build_data_loader(
    cfg,
    sampler_type="SequentialSampler",
    data_source=None,
    batch_size=64,
    n_domain=0,
    n_ins=2,
    tfm=None,
    is_train=True,
    dataset_wrapper=None,
) -> DataLoader:
    """Build a loader over ``data_source``, a list of Datum.

    In training an incomplete last batch is dropped, unless it is the only one.
    """
    if not data_source:
        raise ValueError(f"the {'training' if is_train else 'test'} split has no image")
    sampler = build_sampler(
        sampler_type,
        cfg=cfg,
        data_source=data_source,
        batch_size=batch_size,
        n_domain=n_domain,
        n_ins=n_ins,
    )
    wrapper = dataset_wrapper or DatasetWrapper
    loader = DataLoader(
        wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )
    if not len(loader):
        raise ValueError(f"{sampler_type} fills no batch of {batch_size}; lower the batch size")
    return loader


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
        if custom_tfm_train is not None:
            print("* Using custom transform for training")
        if custom_tfm_test is not None:
            print("* Using custom transform for testing")
        tfm_train = custom_tfm_train or build_transform(cfg, is_train=True)
        tfm_test = custom_tfm_test or build_transform(cfg, is_train=False)

        def loader(data_source, node, tfm, is_train=False):
            sizes = {"n_domain": node.N_DOMAIN, "n_ins": node.N_INS} if is_train else {}
            return build_data_loader(
                cfg,
                sampler_type=node.SAMPLER,
                data_source=data_source,
                batch_size=node.BATCH_SIZE,
                tfm=tfm,
                is_train=is_train,
                dataset_wrapper=dataset_wrapper,
                **sizes,
            )

        node_x, node_u, node_test = (cfg.DATALOADER[key] for key in ("TRAIN_X", "TRAIN_U", "TEST"))
        node_u = node_x if node_u.SAME_AS_X else node_u
        self.dataset = dataset
        self.train_loader_x = loader(dataset.train_x, node_x, tfm_train, True)
        self.train_loader_u = (
            loader(dataset.train_u, node_u, tfm_train, True) if dataset.train_u else None
        )
        self.val_loader = loader(dataset.val, node_test, tfm_test) if dataset.val else None
        self.test_loader = loader(dataset.test, node_test, tfm_test)

        self.num_classes = dataset.num_classes
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self.lab2cname = dataset.lab2cname
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    def show_dataset_summary(self, cfg) -> None:
        """Print a table with the numbers of classes and images."""
        table = [["Dataset", cfg.DATASET.NAME]]
        if cfg.DATASET.SOURCE_DOMAINS:
            table.append(["Source", cfg.DATASET.SOURCE_DOMAINS])
        if cfg.DATASET.TARGET_DOMAINS:
            table.append(["Target", cfg.DATASET.TARGET_DOMAINS])
        table.append(["# classes", f"{self.num_classes:,}"])
        for split in ("train_x", "train_u", "val", "test"):
            items = getattr(self.dataset, split)
            if items or split in ("train_x", "test"):
                table.append([f"# {split}", f"{len(items):,}"])
        rows = [(name, str(value)) for name, value in table]
        left, right = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [f"{name:<{left}}  {value}" for name, value in rows]
        print("\n".join([rule := f"{'-' * left}  {'-' * right}", *lines, rule]))


class DatasetWrapper(Dataset):
    """A list of Datum as a PyTorch data set of dicts.

    Each item has ``img``, ``label``, ``domain``, ``impath`` and ``index``. ``img`` is a tensor
    (3, H, W), a list of them where DATALOADER.K_TRANSFORMS is above 1, or a PIL image without a
    transform. A list of transforms gives ``img``, ``img2``, ...; DATALOADER.RETURN_IMG0 adds
    ``img0``, the resized image without augmentation.
    """

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise ValueError(
                f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but there is no transform to repeat"
            )
        mode = INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
        plain = [Resize(cfg.INPUT.SIZE, mode), ToTensor()]
        if "normalize" in cfg.INPUT.TRANSFORMS:
            plain.append(Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
        self.to_tensor = Compose(plain)

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx):
        item = self.data_source[idx]
        img0 = read_image(item.impath)
        output = {key: getattr(item, key) for key in ("label", "domain", "impath")}
        output["index"] = idx
        if self.transform is None:
            output["img"] = img0
        else:
            listed = isinstance(self.transform, (list, tuple))
            for i, tfm in enumerate(self.transform if listed else [self.transform]):
                output["img" if i == 0 else f"img{i + 1}"] = self._transform_image(tfm, img0)
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def _transform_image(self, tfm, img0):
        images = [tfm(img0) for _ in range(self.k_tfm)]
        return images[0] if len(images) == 1 else images
