"""Pre-training of the built-in CLIP: batches, resuming, what it writes; and the shipped pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from advprompt.backbone import load_clip, load_tiny_state
from advprompt.backbone.tiny import ASSETS
from advprompt.datasets import drawing
from advprompt.experiments.tiny import corpus as tiny_data
from advprompt.experiments.tiny import figures as tiny_figures
from advprompt.experiments.tiny import pretrain as pretrain_tiny
from advprompt.utils.entry import run_tool

COUNTS = {"shapes": 24, "eurosat": 6, "caltech": 4}


def real_set():
    images = np.random.default_rng(0).integers(0, 256, (9, 70, 70, 3), np.uint8)
    return tiny_data.RealSet("eurosat", images, np.arange(9) % 3, ["forest", "river", "sea"])


def test_a_batch_depends_on_seed_and_step_alone():
    data = tiny_data.CaptionedImages([real_set()], COUNTS, seed=1)
    again = tiny_data.CaptionedImages([real_set()], COUNTS, seed=1)
    again.batch(4)
    (images, captions, fits), (same, words, fit) = data.batch(5), again.batch(5)
    assert torch.equal(images, same) and captions == words and torch.equal(fits, fit)
    assert not torch.equal(images, data.batch(6)[0])
    assert images.shape == (30, 3, 64, 64) and images.min() >= 0 and images.max() <= 1
    assert fits.shape == (30, len(captions))


def test_captions_fit_exactly_the_images_they_describe():
    data = tiny_data.CaptionedImages([real_set()], COUNTS, seed=2)
    seen = set()
    for step in range(12):
        _, captions, fits = data.batch(step)
        _, facts = data.shapes(step)
        for caption, column in zip(captions, fits.T, strict=True):
            words = caption.strip(".").split()
            for image, fit in zip(facts, column[: len(facts)], strict=True):
                vocabularies = tiny_data._VOCABULARY
                shown = {v[i] for v, i in zip(vocabularies, image, strict=True)}
                named = {w for v in vocabularies for w in v if w in words}
                assert bool(fit) == (named <= shown and "satellite" not in words and bool(named))
            assert column.any()
            seen.add(len(named))
        assert fits.any(1).all()  # every image has a caption
    assert {1, 2, 3, 4} <= seen


def test_held_out_combinations_are_never_shown():
    shown = [drawing.sample("pretrain", i)[0] for i in range(2000)]
    assert not {(d.colour, d.shape) for d in shown} & drawing.HELD_OUT
    assert len({(d.colour, d.shape) for d in shown}) == 56


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(pretrain_tiny, "COUNTS", COUNTS)
    monkeypatch.setattr(pretrain_tiny, "SAVE_EVERY", 2)
    return ["--steps", "4", "--robust-steps", "3", "--no-bf16", "--device", "cpu"]


@pytest.mark.slow
def test_an_interrupted_pretraining_ends_the_same(short, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_tool(pretrain_tiny.main, [*short, "--output", str(whole)]) == 0
    batch = tiny_data.CaptionedImages.batch

    def stop_at_3(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(tiny_data.CaptionedImages, "batch", stop_at_3)
    assert run_tool(pretrain_tiny.main, [*short, "--output", str(cut)]) == 130
    monkeypatch.setattr(tiny_data.CaptionedImages, "batch", batch)
    torch.manual_seed(5)
    assert run_tool(pretrain_tiny.main, [*short, "--output", str(cut)]) == 0
    for name in ("tiny", "tiny-robust"):
        states = [load_tiny_state(name, folder) for folder in (whole, cut)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    plain, robust = (load_tiny_state(name, whole) for name in ("tiny", "tiny-robust"))
    moved = {k for k in plain if not torch.equal(plain[k], robust[k])}
    assert moved and all(k.startswith("visual.") for k in moved)
    other = [*short, "--output", str(cut)]
    other[1] = "5"
    capsys.readouterr()
    assert run_tool(pretrain_tiny.main, other) == 2
    assert "4 steps, not 5" in capsys.readouterr().err


def test_a_data_root_without_the_sets_is_refused(short, tmp_path, capsys):
    code = run_tool(pretrain_tiny.main, [*short, "--output", "x", "--data", str(tmp_path)])
    assert code == 2 and str(tmp_path) in capsys.readouterr().err


def test_the_shipped_pair_is_small_and_knows_shapes():
    files = [ASSETS / f"{name}.safetensors" for name in ("tiny", "tiny-robust")]
    assert sum(f.stat().st_size for f in files) < 12e6
    names = drawing.shape_classes()
    batches = list(tiny_figures.drawn(names, 64))
    for name, least, robust in (("tiny", 75, False), ("tiny-robust", 60, True)):
        clip = load_clip(name)
        logits = tiny_figures.classifier(clip, "a drawing of a {}.", names)
        clean = tiny_figures.clean_accuracy(logits, batches, name)
        assert clean["accuracy"] > least and clean["n"] == 64
        attacked = tiny_figures.robust_accuracy(logits, batches[:1], 4, name)
        assert attacked["accuracy"] > 25 if robust else attacked["accuracy"] < 20
        assert not attacked["warnings"]
