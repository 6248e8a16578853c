"""The registry of data sets and their base class."""

from ...utils import Registry
from .base_dataset import DatasetBase, Datum

__all__ = ["DATASET_REGISTRY", "DatasetBase", "Datum", "build_dataset"]
DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg):
    return DATASET_REGISTRY.build(cfg.DATASET.NAME, cfg.VERBOSE, cfg)
