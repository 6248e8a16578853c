"""DiffPure: purification by a diffusion model (Nie et al., 2022, arXiv 2205.07460)."""

import hashlib
import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ..config.keys import Key
from ..utils.errors import UserError
from ..utils.io import read_json, tensors_digest
from ..utils.seeds import generators
from .base import Defence, need, register

ADVICE = (
    "give a folder of an unconditional DDPM in diffusers' layout with safetensors (unet/ and "
    "scheduler/, or both in one folder)"
)

T = Key(150, "diffpure: diffusion steps forth and back (paper)", least=1, most=10**5)


@register
class DiffPure(Defence):
    """Diffuse the image for ``t`` steps, then denoise it step by step (DDPM's reverse process).

    The images are resized to the size that the diffusion model was trained at and back, bilinearly
    as in AdvPT's public code. That code solves the reverse SDE of a guided-diffusion model; here
    it is the ancestral sampling of the same process (our choice).

    Args:
        unet: ``diffusers.UNet2DModel``, predicting for pixels in [-1, 1].
        scheduler: ``diffusers.DDPMScheduler``.
        t: diffusion steps, 1 to the scheduler's number of training steps; 150 of 1000 in AdvPT's
            paper. A call costs ``t`` forwards of ``unet``.

    UserError: ``t`` out of range, or the model is not one of RGB images without a condition.
    """

    name = "diffpure"
    random = True

    def __init__(self, unet, scheduler, *, t: int = 150):
        replace(T, most=scheduler.config.num_train_timesteps).read("DEFENCE.T", t)
        settings = unet.config
        outputs = 6 if "learned" in str(scheduler.config.variance_type) else 3
        if (settings.in_channels, settings.out_channels) != (3, outputs):
            maps = f"{settings.in_channels} channels to {settings.out_channels}"
            raise UserError(f"DEFENCE.MODEL maps {maps}, expected 3 to {outputs}; {ADVICE}")
        if settings.class_embed_type or settings.num_class_embeds:
            raise UserError(f"DEFENCE.MODEL needs a class for each image; {ADVICE}")
        self.unet = unet.requires_grad_(False).eval()
        self.scheduler, self.t = scheduler, int(t)

    @classmethod
    def from_cfg(cls, node):
        return cls(*load_diffusion(node.MODEL), t=node.T)

    def describe(self):
        return {"name": self.name, "t": self.t, "model": self._digest}

    @cached_property
    def _digest(self) -> str:  # of weights and schedule; gigabytes, so once
        schedule = {k: v for k, v in self.scheduler.config.items() if k[0] != "_"}
        facts = tensors_digest(self.unet.state_dict()), schedule
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, images, seeds):
        if not len(images):
            return images
        self.unet.to(images.device)
        draws = generators(seeds)
        x = 2 * _resize(images.detach(), self.unet.config.sample_size) - 1
        noise = torch.stack([torch.randn(x.shape[1:], generator=draw) for draw in draws])
        kept = self.scheduler.alphas_cumprod[self.t - 1].to(x)
        x = kept.sqrt() * x + (1 - kept).sqrt() * noise.to(x)
        for step in tqdm(range(self.t - 1, -1, -1), desc="diffpure", delay=5, leave=False):
            x = self.scheduler.step(self.unet(x, step).sample, step, x, generator=draws).prev_sample
        return _resize((x + 1) / 2, images.shape[2:]).clamp(0, 1)


def _resize(images: Tensor, size) -> Tensor:
    size = (size, size) if isinstance(size, int) else tuple(size or images.shape[2:])
    if size == tuple(images.shape[2:]):
        return images
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False)


def load_diffusion(name: str):
    """Return UNet and scheduler of a DDPM from a local folder.

    Only JSON and safetensors are read: neither pickles nor code of a pipeline.
    UserError if diffusers is missing, nothing is there, or it is damaged or another model.
    """
    if not name:
        raise UserError(f"DEFENCE.NAME is 'diffpure', but DEFENCE.MODEL is empty; {ADVICE}")
    need("DiffPure", "diffusers", packages="diffusers")
    from diffusers import DDPMScheduler, UNet2DModel  # slow to import

    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"DEFENCE.MODEL '{name}' is not a folder; {ADVICE}")
    parts = (folder / part for part in ("unet", "scheduler"))
    unet, scheduler = (part if part.is_dir() else folder for part in parts)
    # low_cpu_mem_usage needs one more package
    options = {"use_safetensors": True, "low_cpu_mem_usage": False, "output_loading_info": True}
    try:
        kind = read_json(unet / "config.json").get("_class_name")
        if kind != "UNet2DModel":
            raise ValueError(f"its model is {kind}, not UNet2DModel")
        model, report = UNet2DModel.from_pretrained(str(unet), local_files_only=True, **options)
        if report["missing_keys"] or report["mismatched_keys"]:
            raise ValueError("weights are missing")  # diffusers would initialise them at random
        if not all(torch.isfinite(value).all() for value in model.state_dict().values()):
            raise ValueError("weights are NaN or infinite")
        return model.float(), DDPMScheduler.from_pretrained(str(scheduler), local_files_only=True)
    except Exception as error:  # diffusers raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"DEFENCE.MODEL '{name}' cannot be loaded ({reason}); {ADVICE}") from error
