"""The built-in pair of small CLIPs."""

import pytest

import advprompt
from advprompt.backbone.tiny import ASSETS
from advprompt.datasets import drawing
from tests.attacks.toy_problem import shapes


def test_the_pair_is_small():
    files = [ASSETS / f"{name}.safetensors" for name in ("tiny", "tiny-robust")]
    assert sum(f.stat().st_size for f in files) < 12e6


@pytest.mark.parametrize(
    "name, least, robust", [("tiny", 75, (0, 19)), ("tiny-robust", 60, (26, 90))]
)
def test_it_knows_shapes_and_is_as_robust_as_its_name_says(name, least, robust):
    logits, images, labels = shapes(name, 64)
    settings = {"ATTACK.TEST.EPS": 4, "ATTACK.TEST.ALPHA": 1, "ATTACK.TEST.STEPS": 20}
    record = advprompt.evaluate(
        logits,
        images,
        labels,
        classnames=drawing.shape_classes(),
        threat="linf4",
        settings=settings,
    )
    (attack,) = record["attacks"]
    assert record["clean"]["correct"] > least / 100 * 64
    assert robust[0] <= attack["correct"] / 0.64 <= robust[1] and not attack["warnings"]
