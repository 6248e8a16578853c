"""open_clip's own architectures with every switch left as it is and only the sizes made small."""

from __future__ import annotations

import json
from pathlib import Path

import advprompt  # noqa: F401  its torchvision guard comes before open_clip

# isort: split

import open_clip
import torch

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2}
TRUNKS = {  # what timm is asked for beside the name
    "vit_base_patch16_siglip_224": VIT,
    "vit_base_mci_224": {"img_size": 64, "depth": 3},  # its stem fixes the width
    "eva02_base_patch16_clip_224": {**VIT, "ref_feat_shape": (4, 4)},
    "vit_pe_core_base_patch16_224": {**VIT, "ref_feat_shape": (4, 4), "attn_pool_num_heads": 2},
    "vit_relpos_medium_patch16_cls_224": VIT,
    "convnext_base": {"depths": [1, 1, 1, 1], "dims": [16, 16, 32, 64]},
    "fastvit_mci1": {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 64)},
}
IMAGE = {"vit_base_mci_224": 64, "convnext_base": 64, "fastvit_mci1": 64}


def shrink(monkeypatch, folder: Path, arch: str, **text) -> str:
    """Register a small version of open_clip's ``arch`` and return its name.

    Tokenizers that would have to be fetched give way to CLIP's.
    """
    config = open_clip.get_model_config(arch)
    vision, words = config["vision_cfg"], config["text_cfg"]
    # no projection: the width
    config["embed_dim"] = 64 if vision.get("timm_proj") == "none" else 32
    trunk = vision.get("timm_model_name")
    if trunk:
        vision["image_size"] = IMAGE.get(trunk, 32)
    else:
        vision |= {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 32}
        if vision.get("attentional_pool"):
            vision |= {"attn_pooler_heads": 2, "attn_pooler_queries": 4}
    words |= {"width": 32, "heads": 2, "layers": 3, "vocab_size": 49408, **text}
    for key in ("hf_tokenizer_name", "tokenizer_kwargs"):
        words.pop(key, None)
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"width": 32, "heads": 2, "layers": 1, "attn_pooler_heads": 2}
    name = f"Small-{arch.replace('SigLIP', 'Slip')}"  # by that word a tokenizer would be fetched
    (folder / f"{name}.json").write_text(json.dumps(config))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [folder])
    open_clip.factory._rescan_model_configs()
    create = open_clip.timm_model.timm.create_model
    if getattr(create, "small", False):
        return name

    def small(model_name, **options):
        return create(model_name, **TRUNKS.get(model_name, {}), **options)

    small.small = True
    monkeypatch.setattr(open_clip.timm_model.timm, "create_model", small)
    return name


def lively(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move every value off its initial one, so that no zero hides a part of the model."""
    noise = torch.Generator().manual_seed(1)
    return {
        key: value + 0.1 * torch.randn(value.shape, generator=noise)
        if value.is_floating_point() and not key.startswith("logit_") and "running" not in key
        else value
        for key, value in state.items()
    }
