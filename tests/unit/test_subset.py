"""TEST.SUBSET and TEST.FIRST with data sets that do not know these keys, as a fork's."""

from types import SimpleNamespace

import pytest

from advprompt.datasets.sampling import Item
from advprompt.utils.errors import UserError
from advprompt.utils.subset import images_to_test, stratified_subset

IMAGES = [Item(f"{n}.jpg", n % 3, f"class {n % 3}") for n in range(30)]


def keys(subset=0, first=0):
    return SimpleNamespace(
        TEST=SimpleNamespace(SUBSET=subset, FIRST=first), DATASET=SimpleNamespace(NAME="Theirs")
    )


def test_the_draw_is_that_of_our_data_sets_and_a_second_changes_nothing(capsys):
    drawn = images_to_test(IMAGES, keys(subset=6))
    assert drawn == stratified_subset(IMAGES, 6)
    assert [sum(item.label == y for item in drawn) for y in range(3)] == [2, 2, 2]
    assert "TEST.SUBSET takes 6 of the 30 test images" in capsys.readouterr().out
    assert images_to_test(drawn, keys(subset=6)) == drawn
    assert images_to_test(IMAGES, keys()) == IMAGES
    assert not capsys.readouterr().out


def test_first_images_are_not_taken_from_a_fork():
    assert images_to_test(IMAGES, keys(first=30)) == IMAGES  # ours has taken them already
    with pytest.raises(UserError, match="TEST.FIRST is 5, which the fork's own data set Theirs"):
        images_to_test(IMAGES, keys(first=5))
