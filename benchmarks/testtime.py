"""R-TPT and TTC next to their authors' unedited code: the same weights, views and draws.

    OMP_NUM_THREADS=1 python -m benchmarks.testtime --code FOLDER --small
    OMP_NUM_THREADS=1 python -m benchmarks.testtime --code FOLDER --pairs 2

FOLDER holds checkouts R-TPT (TomSheng21/R-TPT) and TTC (Sxing2/CLIP-Test-time-Counterattacks). The
weights are random, of ViT-B/32's size or, with --small, of two blocks each. Either how far logits
and images are apart, or the time for one image, in turns: R-TPT's, each side making its own views,
and that of TTC's counterattack.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from PIL import Image

from advprompt.backbone import cosine_logits, make_adapter
from advprompt.evaluation.victim import Victim
from advprompt.prompting import templates
from advprompt.testtime import METHODS
from tests.hosts.testtime_code import TheirRTPT, code_of, their_ttc
from tests.toy import toy_state_dict

from .timing import clock_for, paired, ratio

SMALL = {"layers": 2, "text_layers": 2}
BASE = {"vision_width": 768, "layers": 12, "text_width": 512, "text_layers": 12, "embed_dim": 512}
VIEWS = {"views": 64, "scale": 0.08, "augmix": True}
TEMPLATE = "a photo of a {}."


class ZeroShot(Victim):
    """CLIP with a hand-made prompt, in ``Victim``'s terms."""

    def __init__(self, state: dict, names: list[str]):
        self.clip = make_adapter(state, name="random", provider="open_clip")
        self.classnames, self.template, self.device = names, TEMPLATE, self.clip.device
        self.sentences = templates.fill(TEMPLATE, names)

    def features(self, pixels):
        return self.clip.encode_image(pixels)

    def score(self, features):
        return cosine_logits(features, self.handmade_texts, self.clip.logit_scale)


def ours(name: str, victim: Victim, **values):
    cls = METHODS[name]
    own = {key.lower(): key_of.default for key, key_of in cls.keys.items()}
    return cls(victim, **own | values)


def times(folder: Path, state: dict, victim: Victim, picture, pairs: int) -> dict:
    """Return the median seconds for one image, and how many times ours is faster."""
    mine, counter = ours("rtpt", victim, **VIEWS), ours("ttc", victim, tau=9.0)
    taken, how = {}, {"pairs": pairs, "clock": clock_for("cpu")[0]}
    with code_of(folder / "R-TPT"):
        rtpt = TheirRTPT(state, victim.classnames)
        image = rtpt.transform(picture)[0][None]
        own = {"ours": lambda: answered(mine, victim, image)}
        taken["rtpt"] = paired({"theirs": lambda: rtpt(rtpt.transform(picture))} | own, **how)
    with code_of(folder / "TTC" / "code"):
        ttc, own = their_ttc(state), {"ours": lambda: counter.counterattacked(image, [7])}
        taken["ttc"] = paired({"theirs": lambda: ttc(image, 9.0)} | own, **how)
    facts = {f"{n}, {w}": statistics.median(t) for n, own in taken.items() for w, t in own.items()}
    return facts | {f"{n}, times faster": ratio(*own.values()) for n, own in taken.items()}


def compare(folder: Path, sizes: dict, classes: int, pairs: int) -> dict:
    """Return differences, or the seconds for one image if ``pairs``."""
    state = toy_state_dict(patch=32, image=224, **sizes)
    names = [f"kind {i} thing" for i in range(classes)]
    victim = ZeroShot(state, names)
    torch.manual_seed(0)
    picture = Image.fromarray((torch.rand(32, 32, 3) * 255).byte().numpy()).resize((224, 224))
    if pairs:
        return times(folder, state, victim, picture, pairs)
    mine, itself = (ours("rtpt", victim, **VIEWS, count_itself=c) for c in (False, True))
    with code_of(folder / "R-TPT"):
        theirs = TheirRTPT(state, names)
        views = torch.stack(theirs.transform(picture))
        for method in (mine, itself):
            method.views = lambda pixels, seeds: views
        found, counted = (answered(m, victim, views[:1])[0] for m in (mine, itself))
        whole, hidden = theirs(views), theirs(views, masked=True)
    apart = {"rtpt": hidden - found, "rtpt as it is": whole - found}
    apart["rtpt as it is, COUNT_ITSELF"] = whole - counted
    facts = {name: gap.abs().max().item() for name, gap in apart.items()}
    facts["spread of the logits"] = found.std().item()
    with code_of(folder / "TTC" / "code"):
        theirs = their_ttc(state)
        for tau in (0.0, 9.0):  # noise alone, and the counterattack
            moved = theirs(views[:1], tau)
            own = ours("ttc", victim, tau=tau).counterattacked(views[:1], [7])
            facts[f"ttc, tau {tau:g}, share of pixels"] = (
                ((moved - own).abs() > 1e-6).float().mean()
            )
            gap = victim.logits(moved) - victim.logits(own)
            facts[f"ttc, tau {tau:g}, logits"] = gap.abs().max().item()
    return {name: float(value) for name, value in facts.items()}


def answered(method, victim, pixels):
    with torch.no_grad():
        return method.answer(victim.logits, pixels, [0])


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.testtime", description=__doc__.split("\n")[0])
    parser.add_argument("--code", type=Path, required=True, help="folder of the checkouts")
    parser.add_argument("--small", action="store_true", help="two blocks each")
    parser.add_argument("--classes", type=int, default=37)
    parser.add_argument("--pairs", type=int, default=0, help="rounds of timing; 0: compare")
    args = parser.parse_args()
    facts = compare(args.code.resolve(), SMALL if args.small else BASE, args.classes, args.pairs)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
