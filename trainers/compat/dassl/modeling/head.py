"""Layers between backbone and classifier, by name."""

import torch.nn as nn

from ..utils import Registry, check_availability

HEAD_REGISTRY = Registry("HEAD")
ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class MLP(nn.Module):
    """Linear layers of the widths ``hidden_layers``, each with norm, activation and dropout."""

    def __init__(self, in_features=2048, hidden_layers=(), activation="relu", bn=True, dropout=0.0):
        super().__init__()
        widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        if not widths:
            raise ValueError("MODEL.HEAD.HIDDEN_LAYERS is empty; give at least one width")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"MODEL.HEAD.ACTIVATION '{activation}' is unknown; choose relu or leaky_relu"
            )
        layers = []
        for width in widths:
            layers.append(nn.Linear(in_features, width))
            if bn:
                layers.append(nn.BatchNorm1d(width))
            layers.append(ACTIVATIONS[activation](inplace=True))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            in_features = width
        self.out_features = in_features
        self.mlp = nn.Sequential(*layers)

    def forward(self, x):
        return self.mlp(x)


@HEAD_REGISTRY.register()
def mlp(**kwargs):
    """Build an MLP."""
    return MLP(**kwargs)


def build_head(name, verbose=True, **kwargs):
    """Build the head called ``name``."""
    check_availability(name, HEAD_REGISTRY.registered_names())
    if verbose:
        print(f"Head: {name}")
    return HEAD_REGISTRY.get(name)(**kwargs)
