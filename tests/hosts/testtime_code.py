"""The authors' unedited code of R-TPT and TTC, imported from checkouts and run on the CPU."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import types
from pathlib import Path

import packaging.version
import torch


@contextlib.contextmanager
def code_of(folder: Path):
    """Import from a checkout alone, on the CPU, where the authors' code says ``.cuda()``."""
    before, path = set(sys.modules), list(sys.path)
    cuda = torch.nn.Module.cuda, torch.Tensor.cuda
    torch.nn.Module.cuda = torch.Tensor.cuda = lambda self, *args, **options: self
    sys.path.insert(0, str(folder))
    # attacks and data, not compared; and what setuptools had until version 81
    for name in ("autoattack", "torchattacks", "pycountry", "pkg_resources"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].AutoAttack, sys.modules[name].packaging = None, packaging
    try:
        yield
    finally:
        sys.path[:] = path
        torch.nn.Module.cuda, torch.Tensor.cuda = cuda
        for name in set(sys.modules) - before:
            if str(folder) in str(getattr(sys.modules[name], "__file__", folder)):
                del sys.modules[name]


class TheirRTPT:
    """Their loop over a test set, with what it gives to ``accuracy`` written down."""

    def __init__(self, state: dict, names: list[str]):
        import clip.custom_clip as custom
        import clip.model as model
        import rtpt
        from data.datautils import AugMixAugmenter
        from torchvision import transforms as t

        built = model.build_model({k: v.clone() for k, v in state.items()}).float()
        custom.load = lambda *args, **options: (built, None, None)
        self.code, self.sim = rtpt, rtpt.get_top_sim
        self.model = custom.get_coop("random", names, "cpu", 4, "a_photo_of_a")
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("prompt_learner" in name)
        centre = t.Compose([t.Resize(224), t.CenterCrop(224)])
        self.transform = AugMixAugmenter(centre, t.ToTensor(), n_views=63, augmix=True)
        own = {"eps": 0.0, "gpu": 0, "tta_steps": 1, "selection_p": 0.1, "print_freq": 10**9}
        self.args = argparse.Namespace(**own, out_file=io.StringIO())

    def __call__(self, views: list, *, masked: bool = False) -> torch.Tensor:
        """Return the logits (K,) of one image; ``masked`` hides each view from itself."""
        seen, eye = [], 2 * torch.eye(len(views))
        self.code.get_top_sim = lambda sim: self.sim(sim + eye if masked else sim)
        self.code.accuracy = lambda logits, *a, **o: seen.append(logits) or [torch.zeros(1)] * 2
        optimizer = torch.optim.AdamW(self.model.prompt_learner.parameters(), 5e-3)
        loader = [([view[None] for view in views], torch.zeros(1, dtype=torch.long))]
        common = (self.model, None, optimizer, optimizer.state_dict(), None, self.args)
        with contextlib.redirect_stdout(io.StringIO()):
            self.code.test_time_adapt_eval(loader, *common, self.transform)
        return seen[-1][0].detach()


def their_ttc(state: dict):
    """Return their counterattack, images and tau -> the images after it."""
    import test_time_counterattack as code
    from replace.model import build_model

    built = build_model({k: v.clone() for k, v in state.items()}, 0).float()
    same = {"norm": "l_inf", "epsilon": 4 / 255, "beta": 2.0}
    whole = types.SimpleNamespace(module=built)
    own = code.NullPrompter(), code.TokenPrompter(0), 1 / 255, 2

    def moved(pixels: torch.Tensor, tau: float) -> torch.Tensor:
        torch.manual_seed(7)
        counter = code.tau_thres_weighted_counterattacks
        return pixels + counter(whole, pixels.clone(), *own, tau_thres=tau, **same)

    return moved
