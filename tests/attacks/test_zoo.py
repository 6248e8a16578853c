"""No mask passes the shipped kinds of test, and no honest model is suspected; see zoo.py."""

import re

import pytest

from tests.attacks.zoo import TESTS, Toy, controls, examine, masks
from tests.conftest import REPO

MASKS, CONTROLS = masks(Toy()), controls(Toy())


def test_the_zoo_is_large():
    assert len(MASKS) >= 25 and len(CONTROLS) >= 12


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_caught_by_every_test_and_as_the_docs_say(name, tmp_path):
    rows = (REPO / "docs/attacks.md").read_text(encoding="utf-8").splitlines()
    (row,) = [row for row in rows if row.startswith(f"| {name} |")]
    always, *others = [set(re.findall(r"\w+", cell)) for cell in row.split("|")[2:-1]]
    for test, own in zip(TESTS, others, strict=True):
        found, _ = examine(name, MASKS[name], test, tmp_path)
        assert found and len(found ^ (always | own)) <= 1, test  # rounding may move one


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("seed", [0, 1])
def test_an_honest_model_is_not_suspected(name, seed, tmp_path):
    for test in TESTS:
        assert examine(name, CONTROLS[name], test, tmp_path, seed)[0] == set(), test


def test_masks_look_more_robust_than_the_model_behind_them(tmp_path):
    """What the checks are for: these report many times the accuracy that the toy keeps."""
    _, kept = examine("undefended", Toy(), "PGD", tmp_path)
    for name in ("quantised", "gradient of few pixels", "random gradient", "temperature 1e4"):
        _, reported = examine(name, MASKS[name], "PGD", tmp_path)
        assert reported >= 3 * kept, name
