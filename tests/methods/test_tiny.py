"""The built-in pair of small CLIPs."""

import pytest
import torch

import advprompt
from advprompt.backbone import cosine_logits, load_clip, text_features
from advprompt.backbone.tiny import ASSETS
from advprompt.datasets import drawing
from advprompt.prompting import templates


def test_the_pair_is_small():
    files = [ASSETS / f"{name}.safetensors" for name in ("tiny", "tiny-robust")]
    assert sum(f.stat().st_size for f in files) < 12e6


@pytest.mark.parametrize(
    "name, least, robust", [("tiny", 75, (0, 19)), ("tiny-robust", 60, (26, 90))]
)
def test_it_knows_shapes_and_is_as_robust_as_its_name_says(name, least, robust):
    names, clip = drawing.shape_classes(), load_clip(name)
    with torch.no_grad():
        texts = text_features(clip, templates.fill(templates.template_for("Shapes"), names))
    drawings = [drawing.sample("check", i, names[i % len(names)]) for i in range(64)]
    images = torch.stack([torch.from_numpy(d).permute(2, 0, 1).float() / 255 for d in drawings])
    settings = {"ATTACK.TEST.EPS": 4, "ATTACK.TEST.ALPHA": 1, "ATTACK.TEST.STEPS": 20}
    record = advprompt.evaluate(
        lambda pixels: cosine_logits(clip.encode_image(pixels), texts, clip.logit_scale),
        images,
        [i % len(names) for i in range(64)],
        classnames=names,
        threat="linf4",
        settings=settings,
    )
    (attack,) = record["attacks"]
    assert record["clean"]["correct"] > least / 100 * 64
    assert robust[0] <= attack["correct"] / 0.64 <= robust[1] and not attack["warnings"]
