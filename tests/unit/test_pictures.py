"""The picture grid: right pixels in the right column, honest colours, clear refusals."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from advprompt.attacks import AttackSpec
from advprompt.cli import picture
from advprompt.evaluation import pictures
from advprompt.records.examples import load_examples, perturbation
from advprompt.utils.entry import run_tool
from advprompt.utils.errors import UserError

NAMES = ["red_circle", "blue_square", "a_$class$_with_a_name_far_too_long_for_its_place"]
SPEC = AttackSpec("pgd", 8 / 255, 2 / 255, 20, 1, "uniform", "ce", "end_to_end")


def arguments(n=2, size=8):
    clean = torch.full((n, 3, size, size), 0.2)
    return {
        "clean": clean,
        "adversarial": clean + 8 / 255,
        "labels": ["red_circle"] * n,
        "before": [("red_circle", 0.9)] * n,
        "after": [("blue_square", 0.8)] * n,
        "eps": 8 / 255,
    }


def colours(path):
    """The set of RGB triples that cover at least 1 % of the picture."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    values, counts = np.unique(pixels, axis=0, return_counts=True)
    return {
        tuple(map(int, v)) for v, c in zip(values, counts, strict=True) if c > len(pixels) / 100
    }


def has_colour(path, colour):
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.asarray(Image.open(path).convert("RGB")) == rgb).all(-1).sum() > 200)


def test_columns_are_clean_perturbation_adversarial(tmp_path):
    path = pictures.save_grid(tmp_path / "grid.png", **arguments())
    shown = colours(path) - {(255, 255, 255)}
    noise = round(255 * (0.5 + 10 * 8 / 255))
    close = [51, noise, 59]
    for value in close:
        assert any(max(abs(c - value) for c in rgb) <= 1 for rgb in shown), (value, shown)
    columns = np.asarray(Image.open(path).convert("L"))
    middle = columns[columns.shape[0] // 3]
    order = [int(middle[int(middle.size * x)]) for x in (1 / 6, 1 / 2, 5 / 6)]
    assert np.allclose(order, close, atol=1)


def test_no_perturbation_is_grey(tmp_path):
    same = arguments()
    same["adversarial"] = same["clean"]
    shown = colours(pictures.save_grid(tmp_path / "grid.png", **same))
    assert any(max(abs(c - 127.5) for c in rgb) <= 1 for rgb in shown)
    changes = torch.tensor([0.0, 0.06, -0.06, 0.01])
    assert perturbation(torch.zeros(4), changes).tolist() == pytest.approx([0.5, 1, 0, 0.6])


@pytest.mark.parametrize("name, right", [("red_circle", True), ("blue_square", False)])
def test_colour_tells_right_from_wrong(tmp_path, name, right):
    given = arguments() | {"before": [(name, 0.5)] * 2, "after": [(name, 0.5)] * 2}
    path = pictures.save_grid(tmp_path / "grid.png", **given)
    assert has_colour(path, "#1a7f37") == right
    assert has_colour(path, "#c62828") == (not right)


def test_small_images_keep_hard_edges(tmp_path):
    board = torch.zeros(1, 3, 2, 2)
    board[..., 0, 0] = board[..., 1, 1] = 1.0
    given = arguments(1) | {"clean": board, "adversarial": board}
    path = pictures.save_grid(tmp_path / "grid.png", **given)
    grey = np.asarray(Image.open(path).convert("L"))
    first = grey[grey.shape[0] // 3 : grey.shape[0] // 2, : grey.shape[1] // 3]
    between = ((first > 40) & (first < 60)) | ((first > 180) & (first < 200))
    assert between.mean() < 0.01


@pytest.mark.parametrize(("eps", "radius"), [(8 / 255, ", eps 8/255"), (None, "")])
def test_words_of_a_picture(tmp_path, monkeypatch, eps, radius):
    seen, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (seen.append(f), save(f, *a, **k)))
    names = ["w" * 26, "w_" * 13 + "w"]  # as long as fits, and one longer
    given = arguments() | {"labels": names, "eps": eps, "title": "an attack"}
    given |= {side: [(name, 0.504) for name in names[::-1]] for side in ("before", "after")}
    pictures.save_grid(tmp_path / "grid.png", **given)
    (figure,) = seen
    heads = [axes.get_title() for axes in figure.axes]
    assert heads[:3] == ["clean", f"perturbation x10{radius}", "adversarial"]
    short = ("w " * 13).rstrip() + "…"
    words = [axes.get_xlabel().replace("\n", " ") for axes in figure.axes]
    assert words[:2] == [f"predicted {short}, 50 %", f"true class {'w' * 26}"]
    assert words[3:5] == [f"predicted {'w' * 26}, 50 %", f"true class {short}"]
    assert figure.get_suptitle() == "an attack"


@pytest.mark.parametrize("value", [-9e-5, 1 + 9e-5])
def test_pixels_may_leave_the_range_by_rounding(tmp_path, value):
    one = torch.full((2, 3, 8, 8), value)
    assert pictures.save_grid(tmp_path / "grid.png", **arguments() | {"clean": one})


WRONG = {
    "below 0": ({"clean": torch.full((2, 3, 8, 8), -1.1e-4)}, "lie in"),
    "above 1": ({"clean": torch.full((2, 3, 8, 8), 1 + 1.1e-4)}, "lie in"),
    "normalised": ({"clean": torch.full((2, 3, 8, 8), -1.5)}, "before normalisation"),
    "one channel": ({"clean": torch.zeros(2, 1, 8, 8)}, r"expected \(N, 3, H, W\)"),
    "other number": ({"labels": ["red_circle"]}, "1 labels"),
    "other size": ({"adversarial": torch.zeros(2, 3, 9, 9)}, "as many"),
    "not finite": ({"adversarial": torch.full((2, 3, 8, 8), float("nan"))}, "expected"),
}


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_wrong_input_is_refused_and_nothing_written(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        pictures.save_grid(tmp_path / "grid.png", **arguments() | changes)
    assert not list(tmp_path.iterdir())


def examples(folder):
    clean = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return pictures.save_examples(
        folder,
        clean=clean,
        adversarial=(clean + 8 / 255).clamp(0, 1),
        classnames=NAMES,
        labels=torch.tensor([0, 1, 2]),
        before=torch.eye(3),
        after=torch.eye(3).roll(1, 0),
        spec=SPEC,
        title="AdvPT",
    )


def test_examples_can_be_drawn_again(tmp_path):
    path = examples(tmp_path)
    first = path.read_bytes()
    kept = load_examples(tmp_path)
    assert kept["labels"] == NAMES
    assert [name for name, _ in kept["after"]] == [NAMES[2], NAMES[0], NAMES[1]]
    assert kept["eps"] == 8 / 255 and "end-to-end PGD-20" in kept["title"]
    again = pictures.save_grid(tmp_path / "again.png", **kept)
    assert again.read_bytes() == first


def test_the_tool_draws_fewer_rows(tmp_path, capsys):
    full = Image.open(examples(tmp_path))
    target = tmp_path / "one.png"
    assert run_tool(picture.main, [str(tmp_path), "--rows", "1", "--out", str(target)]) == 0
    assert Image.open(target).height < full.height / 2
    assert str(target) in capsys.readouterr().out
    assert run_tool(picture.main, [str(tmp_path), "--rows", "0", "--out", str(target)]) == 2
    assert "--rows is 0" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"not a tensor file"])
def test_damaged_examples_are_refused(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / pictures.EXAMPLES).write_bytes(content)
    target = tmp_path / "out.png"
    assert run_tool(picture.main, [str(tmp_path), "--out", str(target)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not target.exists()
