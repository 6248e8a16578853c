"""Image files become the same 8-bit RGB whatever they are."""

import numpy as np
import pytest
from PIL import Image

from advprompt.prompting import templates
from advprompt.utils.errors import UserError
from advprompt.utils.images import read_rgb

GREY = np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4)


def test_16_bits_are_the_same_picture_and_an_unknown_range_is_refused(tmp_path):
    for values in (GREY, GREY.astype(np.uint16) * 257, GREY.astype(np.int32) * 257):
        Image.fromarray(values).save(tmp_path / "x.tif")
        found = np.asarray(read_rgb(tmp_path / "x.tif"))
        assert found.shape == (4, 4, 3) and (found == GREY[..., None]).all()
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif' is corrupt or no image .its pixels are floating"):
        read_rgb(tmp_path / "x.tif")


def test_classes_with_one_text_are_found():
    names, text = templates.same_text("a {}.", ["cat", "a_b", "dog", "A  b"])
    assert (names, text) == (["a_b", "A  b"], "a a b.")
    assert templates.same_text("a {}.", ["cat", "cats"]) is None
