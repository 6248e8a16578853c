"""``cfg.OPTIM`` -> optimizer."""

import warnings

import torch
import torch.nn as nn

from ..utils import tolist_if_not
from ..utils.tools import nearest

AVAI_OPTIMS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]


def _staged(model, cfg) -> list:
    """Two groups: the children outside NEW_LAYERS learn at LR * BASE_LR_MULT."""
    if not isinstance(model, nn.Module):
        raise TypeError("OPTIM.STAGED_LR needs a model, not a list of parameters")
    model = model.module if isinstance(model, nn.DataParallel) else model
    layers = cfg.NEW_LAYERS
    new_layers = tolist_if_not(layers) if isinstance(layers, str) else layers
    base, new = [], []
    for name, module in model.named_children():
        (new if name in new_layers else base).extend(module.parameters())
    return [{"params": base, "lr": cfg.LR * cfg.BASE_LR_MULT}, {"params": new}]


def build_optimizer(model, optim_cfg, param_groups=None) -> torch.optim.Optimizer:
    """Build the optimizer named ``optim_cfg.NAME``.

    Args:
        model: module or iterable of parameters.
        optim_cfg: the node ``cfg.OPTIM``.
        param_groups: optimise these instead of the model's parameters.

    Raises:
        ValueError: the name is unknown.
        TypeError: STAGED_LR without a module.
    """
    cfg = optim_cfg
    if cfg.NAME not in AVAI_OPTIMS:
        raise ValueError(f"optimizer '{cfg.NAME}' is unknown.{nearest(cfg.NAME, AVAI_OPTIMS)}")
    if param_groups is not None:
        if cfg.STAGED_LR:
            warnings.warn("OPTIM.STAGED_LR is ignored where param_groups are given", stacklevel=2)
    elif cfg.STAGED_LR:
        param_groups = _staged(model, cfg)
    else:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model

    common = {"lr": cfg.LR, "weight_decay": cfg.WEIGHT_DECAY}
    if cfg.NAME == "sgd":
        return torch.optim.SGD(
            param_groups,
            momentum=cfg.MOMENTUM,
            dampening=cfg.SGD_DAMPNING,
            nesterov=cfg.SGD_NESTEROV,
            **common,
        )
    if cfg.NAME == "rmsprop":
        return torch.optim.RMSprop(
            param_groups, momentum=cfg.MOMENTUM, alpha=cfg.RMSPROP_ALPHA, **common
        )
    common["betas"] = (cfg.ADAM_BETA1, cfg.ADAM_BETA2)
    if cfg.NAME == "radam":  # Dassl's own RAdam decays the weights decoupled from the gradient
        return torch.optim.RAdam(param_groups, decoupled_weight_decay=True, **common)
    if cfg.NAME == "adamw":
        return torch.optim.AdamW(param_groups, **common)
    return torch.optim.Adam(param_groups, amsgrad=cfg.NAME == "amsgrad", **common)
