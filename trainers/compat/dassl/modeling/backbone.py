"""Image backbones by name. None is built in: register one, or let the trainer build its model."""

import torch.nn as nn

from ..utils import Registry, check_availability

BACKBONE_REGISTRY = Registry("BACKBONE")


class Backbone(nn.Module):
    """Base class; subclasses set ``_out_features``."""

    @property
    def out_features(self):
        """Width of the features, or None if it is not set."""
        return self.__dict__.get("_out_features")


def build_backbone(name, verbose=True, **kwargs):
    """Build the backbone called ``name``."""
    check_availability(name, BACKBONE_REGISTRY.registered_names())
    if verbose:
        print(f"Backbone: {name}")
    return BACKBONE_REGISTRY.get(name)(**kwargs)
