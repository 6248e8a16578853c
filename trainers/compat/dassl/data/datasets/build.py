"""The registry of data sets."""

from ...utils import Registry

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg):
    """Build the data set named ``cfg.DATASET.NAME``."""
    return DATASET_REGISTRY.build(cfg.DATASET.NAME, cfg.VERBOSE, cfg)
