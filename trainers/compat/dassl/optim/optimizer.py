"""``cfg.OPTIM`` -> optimizer."""

import torch
import torch.nn as nn

from ..utils.tools import check_choice

AVAI_OPTIMS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]


def build_optimizer(model, optim_cfg, param_groups=None) -> torch.optim.Optimizer:
    """Build the optimizer that ``cfg.OPTIM`` names, of a module, parameters or ``param_groups``."""
    cfg = optim_cfg
    check_choice("optimizer", cfg.NAME, AVAI_OPTIMS)
    if cfg.STAGED_LR:
        raise ValueError("OPTIM.STAGED_LR needs Dassl itself, which is not installed")
    if param_groups is None:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model

    common = {"lr": cfg.LR, "weight_decay": cfg.WEIGHT_DECAY}
    if cfg.NAME == "sgd":
        common |= {"dampening": cfg.SGD_DAMPNING, "nesterov": cfg.SGD_NESTEROV}
        return torch.optim.SGD(param_groups, momentum=cfg.MOMENTUM, **common)
    if cfg.NAME == "rmsprop":
        common |= {"alpha": cfg.RMSPROP_ALPHA}
        return torch.optim.RMSprop(param_groups, momentum=cfg.MOMENTUM, **common)
    common["betas"] = (cfg.ADAM_BETA1, cfg.ADAM_BETA2)
    if cfg.NAME == "radam":  # Dassl's own RAdam decays the weights decoupled from the gradient
        return torch.optim.RAdam(param_groups, decoupled_weight_decay=True, **common)
    if cfg.NAME == "adamw":
        return torch.optim.AdamW(param_groups, **common)
    return torch.optim.Adam(param_groups, amsgrad=cfg.NAME == "amsgrad", **common)
