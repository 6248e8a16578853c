"""The embedding bank: content-addressed, resumable, aligned. Run as a script it builds one slowly,
which is how the test that kills it gets a process to kill.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from advprompt.attacks import AttackSpec, GradientAttack
from advprompt.evaluation import bank as bank_module
from advprompt.evaluation.bank import bank_key, build_bank, load_bank
from advprompt.utils.errors import UserError
from advprompt.utils.io import save_tensors, sha256_file
from advprompt.utils.seeds import hash_seed

SPEC = AttackSpec("pgd", 8 / 255, 2 / 255, 3, 1, "uniform", "embedding_kl", "embedding")
COUNT, VIEWS, CHUNK = 11, 2, 4


class ToyEncoder(nn.Module):
    """A frozen image tower; double precision inside, so that batch size moves no sign."""

    def __init__(self, delay: float = 0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, stride=2).double()
        self.head = nn.Linear(8 * 9, 6).double()
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
        self.requires_grad_(False).eval()
        self.sha256, self.resolution, self.delay, self.sizes = "ab" * 32, 8, delay, []

    def encode_image(self, pixels):
        time.sleep(self.delay)
        self.sizes.append(len(pixels))
        hidden = torch.tanh(self.conv(pixels.double()))
        return 5 * self.head(hidden.flatten(1)).float()  # (B, 6)


def preprocess(image: Image.Image) -> torch.Tensor:
    pixels = np.asarray(image.resize((8, 8)), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)


preprocess.key = "resize8"


def draw(folder: Path, count: int = COUNT) -> list[tuple[str, int]]:
    rng = np.random.default_rng(0)
    items = []
    for i in range(count):
        path = folder / f"{i:02d}.png"
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)
        items.append((str(path), i % 3))
    return items


def build(items, cache, clip=None, **changes):
    options = {"spec": SPEC, "views": VIEWS, "chunk": CHUNK, "batch_size": 3, **changes}
    clip = ToyEncoder() if clip is None else clip
    return build_bank(clip, items, preprocess=preprocess, cache_dir=cache, **options)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(items, tmp_path_factory):
    """The bank of an uninterrupted run."""
    return build(items, tmp_path_factory.mktemp("whole"))


def same(one, other) -> bool:
    return (
        torch.equal(one.features, other.features)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.index, other.index)
        and (one.key, one.checks, one.warnings) == (other.key, other.checks, other.warnings)
    )


# --- what is in it ----------------------------------------------------------------------------


def test_rows_are_the_attacked_features_item_by_item(items, whole):
    clip = ToyEncoder()
    assert whole.features.shape == (COUNT * VIEWS, 6) and whole.features.dtype == torch.float32
    assert whole.index.tolist() == [i for i in range(COUNT) for _ in range(VIEWS)]
    assert whole.labels.tolist() == [items[i][1] for i in whole.index.tolist()]
    assert len(whole) == COUNT * VIEWS and whole.seconds > 0
    for row in (0, 1, 9, COUNT * VIEWS - 1):
        path = items[row // VIEWS][0]
        pixels = preprocess(Image.open(path).convert("RGB"))[None]
        clean = clip.encode_image(pixels)
        seed = hash_seed(0, sha256_file(path), row % VIEWS)
        loss = lambda x, clean=clean: bank_module.objective_for(  # noqa: E731
            SPEC, clip.encode_image, reference=clean
        )(x)
        adv = GradientAttack(loss, SPEC).run(pixels, [seed]).images
        torch.testing.assert_close(whole.features[row], clip.encode_image(adv)[0])
        assert (whole.features[row] - clean[0]).abs().max() > 1e-3
    assert not torch.equal(whole.features[0], whole.features[1])  # two views, two starts


def test_checks_are_stored(whole):
    assert 0 < whole.checks["max_linf"] <= 8 / 255 + 1e-6
    assert whole.checks["in_range"] and whole.checks["loss_rises"]
    assert whole.checks["zero_grad_share"] == 0 and whole.warnings == []


def test_checks_count_every_chunk(items, tmp_path):
    class DeadInTheDark(ToyEncoder):
        def encode_image(self, pixels):
            alive = pixels.detach().flatten(1).mean(dim=1) > 0.1
            return super().encode_image(pixels) * alive[:, None]

    dark = tmp_path / "dark.png"
    Image.new("RGB", (9, 9)).save(dark)
    bank = build([(dark, 0), *items[:4]], tmp_path / "cache", DeadInTheDark(), chunk=2)
    assert bank.checks["zero_grad_share"] == pytest.approx(1 / 5)
    assert [w.split(":")[0] for w in bank.warnings] == ["zero_grad_share"]


def test_a_second_build_reads_the_cache(items, whole):
    clip = ToyEncoder()
    again = build(items, whole.path.parent, clip)
    assert same(again, whole) and again.seconds == whole.seconds and clip.sizes == []
    assert sorted(p.name for p in whole.path.parent.iterdir()) == [whole.path.name]


def test_clean_features(items, tmp_path):
    clip = ToyEncoder()
    bank = build(items, tmp_path, clip, spec=None, views=1)
    pixels = torch.stack([preprocess(Image.open(p).convert("RGB")) for p, _ in items])
    torch.testing.assert_close(bank.features, clip.encode_image(pixels))
    assert bank.checks == {} and bank.labels.tolist() == [label for _, label in items]


def test_datum_like_items(items, whole, tmp_path):
    data = [SimpleNamespace(impath=p, label=label) for p, label in items]
    assert same(build(data, tmp_path), whole)


def test_grey_and_palette_images_become_rgb(tmp_path):
    Image.new("L", (9, 9), 70).save(tmp_path / "grey.png")
    Image.new("P", (9, 9), 3).save(tmp_path / "palette.png")
    pairs = [(tmp_path / "grey.png", 0), (tmp_path / "palette.png", 1)]
    assert build(pairs, tmp_path / "c").features.isfinite().all()


def test_works_in_any_ambient_mode(items, whole, tmp_path):
    clip = ToyEncoder()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        bank = build(items, tmp_path, clip)
    assert same(bank, whole)
    assert not bank.features.is_inference()  # prompt tuning differentiates with them


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 13), chunk=st.integers(1, 13), order=st.permutations(range(COUNT)))
def test_batch_chunk_and_order_do_not_matter(items, whole, tmp_path_factory, batch, chunk, order):
    shuffled = [items[i] for i in order]
    clip = ToyEncoder()
    cache = tmp_path_factory.mktemp("cache")
    bank = build(shuffled, cache, clip, batch_size=batch, chunk=chunk)
    assert max(clip.sizes) <= batch
    rows = torch.tensor([i * VIEWS + v for i in order for v in range(VIEWS)])
    torch.testing.assert_close(bank.features, whole.features[rows], rtol=1e-6, atol=1e-6)
    assert torch.equal(bank.labels, whole.labels[rows])


@settings(max_examples=20, deadline=None)
@given(chosen=st.sets(st.integers(0, COUNT - 1), min_size=1), views=st.integers(1, 3))
def test_an_image_has_the_same_rows_in_any_set(items, whole, tmp_path_factory, chosen, views):
    chosen = sorted(chosen)
    bank = build([items[i] for i in chosen], tmp_path_factory.mktemp("cache"), views=views)
    for row, item in enumerate(bank.index.tolist()):
        if row % views < VIEWS:
            expected = whole.features[chosen[item] * VIEWS + row % views]
            torch.testing.assert_close(bank.features[row], expected, rtol=1e-6, atol=1e-6)


# --- the key ----------------------------------------------------------------------------------

BASE = {
    "weights": "aa",
    "images": ["11", "22"],
    "labels": [0, 1],
    "preprocess": "resize8",
    "spec": SPEC,
    "views": 1,
    "precision": "fp32",
    "seed": 0,
}
OTHERS = [
    {"weights": "ab"},
    {"images": ["11", "23"]},
    {"images": ["22", "11"]},
    {"images": ["11"], "labels": [0]},
    {"labels": [1, 0]},
    {"preprocess": "resize9"},
    {"spec": None},
    {"views": 2},
    {"precision": "bf16"},
    {"seed": 1},
    *(
        {"spec": dataclasses.replace(SPEC, **change)}
        for change in (
            {"eps": 8.0001 / 255},
            {"alpha": 1 / 255},
            {"steps": 4},
            {"restarts": 2},
            {"start": "one_sided"},
            {"objective": "kl"},
            {"target": "frozen_prompt"},
            {"name": "mi"},
            {"name": "mi", "kwargs": {"momentum": 0.5}},
            {"norm": "l2"},
            {"prec": "bf16"},
            {"objective": "ce", "target": "end_to_end"},
            {"objective": "ce", "target": "end_to_end", "drop": True},
        )
    ),
]


def test_the_key_changes_with_every_ingredient():
    keys = [bank_key(**BASE)] + [bank_key(**{**BASE, **change}) for change in OTHERS]
    assert len(set(keys)) == len(keys)
    assert bank_key(**BASE) == keys[0] and len(keys[0]) == 64
    touched = {name for change in OTHERS for name in change}
    assert touched == set(BASE)
    moved = {
        f.name
        for change in OTHERS
        if isinstance(change.get("spec"), AttackSpec)
        for f in dataclasses.fields(SPEC)
        if getattr(change["spec"], f.name) != getattr(SPEC, f.name)
    }
    assert moved == {f.name for f in dataclasses.fields(SPEC)}


def test_build_feeds_every_ingredient_to_the_key(items, whole, tmp_path):
    few = items[:2]
    reference = build(few, tmp_path).key
    other_clip = ToyEncoder()
    other_clip.sha256 = "cd" * 32
    changed = tmp_path / "changed.png"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(changed)
    keys = [
        build(few, tmp_path, other_clip).key,
        build([few[0], (changed, few[1][1])], tmp_path).key,
        build([few[0], (few[1][0], 2)], tmp_path).key,
        build(few, tmp_path, views=1).key,
        build(few, tmp_path, seed=1).key,
        build(few, tmp_path, spec=dataclasses.replace(SPEC, steps=1)).key,
        build(few, tmp_path, spec=None, views=1).key,
    ]
    assert len({reference, *keys}) == len(keys) + 1
    # where a file lies does not matter, what it holds does
    moved = shutil.copy(few[0][0], tmp_path / "moved.png")
    assert build([(moved, few[0][1]), few[1]], tmp_path).key == reference


# --- interruptions ----------------------------------------------------------------------------


class Interrupted(ToyEncoder):
    """Dies at the n-th forward."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def encode_image(self, pixels):
        if len(self.sizes) == self.after:
            raise KeyboardInterrupt
        return super().encode_image(pixels)


def parts(cache) -> list[Path]:
    return sorted(Path(cache).glob("*.parts/*.safetensors"))


def forwards(items, cache) -> int:
    clip = ToyEncoder()
    build(items, cache, clip)
    return len(clip.sizes)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_a_killed_build_resumes_bit_identically(items, whole, tmp_path, share):
    total = forwards(items, tmp_path / "count")
    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        build(items, cache, Interrupted(int(share * total)))
    done = len(parts(cache))
    assert not list(cache.glob("*.safetensors"))
    clip = ToyEncoder()
    assert same(build(items, cache, clip), whole)
    assert parts(cache) == [] and len(clip.sizes) <= total * (1 - done * CHUNK / COUNT) + 1
    assert [p.name for p in cache.iterdir()] == [whole.path.name]


def kill_after_two_chunks(items, cache):
    total = forwards(items, Path(cache).with_name("count"))
    with pytest.raises(KeyboardInterrupt):
        build(items, cache, Interrupted(int(0.9 * total)))
    assert len(parts(cache)) == 2
    return parts(cache)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "garbage", "swap", "foreign"])
def test_a_damaged_part_is_made_again(items, whole, tmp_path, damage):
    cache = tmp_path / "cache"
    first, second = kill_after_two_chunks(items, cache)
    content = first.read_bytes()
    if damage == "swap":
        shutil.copy(second, first)
    elif damage == "foreign":
        save_tensors(first, {"features": torch.zeros(CHUNK * VIEWS, 6)}, {"kind": "something"})
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        new = {"truncate": content[:-40], "flip": flipped, "empty": b"", "garbage": b"\xff" * 99}
        first.write_bytes(new[damage])
    assert same(build(items, cache), whole)


@pytest.mark.parametrize("at", [0, 5])
def test_a_run_that_is_overtaken_takes_the_other_ones_bank(items, whole, tmp_path, at):
    class Overtaken(ToyEncoder):
        def encode_image(self, pixels):
            if len(self.sizes) == at:  # before a part is written, or between parts
                build(items, tmp_path)
            return super().encode_image(pixels)

    clip = Overtaken()
    assert same(build(items, tmp_path, clip), whole)
    assert sum(clip.sizes) < COUNT * VIEWS * 5  # it stops where it is overtaken
    assert (tmp_path / f"{whole.key}.safetensors").is_file()


def test_a_full_disk_leaves_whole_parts_to_go_on_from(items, whole, tmp_path, monkeypatch):
    write, calls = Path.write_bytes, []

    def full(self, data):
        calls.append(self)
        if len(calls) == 2:
            write(self, data[:10])
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        build(items, tmp_path)
    (folder,) = tmp_path.iterdir()
    assert [p.name for p in folder.iterdir()] == ["00000.safetensors"]
    monkeypatch.undo()
    assert same(build(items, tmp_path), whole)
    assert [p.name for p in tmp_path.iterdir()] == [f"{whole.key}.safetensors"]


def test_another_chunk_size_does_not_reuse_wrong_parts(items, whole, tmp_path):
    cache = tmp_path / "cache"
    kill_after_two_chunks(items, cache)
    bank = build(items, cache, chunk=5)
    torch.testing.assert_close(bank.features, whole.features, rtol=1e-6, atol=1e-6)
    assert parts(cache) == []


@pytest.mark.slow
def test_a_process_killed_outright_resumes_bit_identically(items, whole, tmp_path):
    cache = tmp_path / "cache"
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, __file__, str(cache), *(f"{p}:{label}" for p, label in items)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not parts(cache):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 1 <= len(parts(cache)) < 3 and not list(cache.glob("*.safetensors"))
    assert same(build(items, cache), whole)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_bank_is_refused(items, whole, tmp_path, keep):
    path = tmp_path / whole.path.name
    path.write_bytes(whole.path.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged|checksum") as error:
        build(items, tmp_path)
    assert str(path) in str(error.value) and "run again" in str(error.value)


def test_altered_and_foreign_banks_are_refused(items, whole, tmp_path):
    path = tmp_path / whole.path.name
    content = bytearray(whole.path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        build(items, tmp_path)
    save_tensors(path, {"features": torch.zeros(COUNT * VIEWS, 6)}, {"kind": "something else"})
    with pytest.raises(UserError, match="no embedding bank"):
        build(items, tmp_path)
    other = build(items, tmp_path / "other", seed=5)
    shutil.copy(other.path, path)
    with pytest.raises(UserError, match="another bank"):
        build(items, tmp_path)
    assert same(load_bank(other.path), other)
    with pytest.raises(UserError, match="does not exist"):
        load_bank(tmp_path / "none.safetensors")


def test_a_pickle_in_the_place_of_a_bank_is_not_run(items, whole, tmp_path):
    witness = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {witness}",)

    torch.save(Payload(), tmp_path / whole.path.name)
    with pytest.raises(UserError, match="damaged or no safetensors"):
        build(items, tmp_path)
    assert not witness.exists()


@pytest.mark.parametrize("content", [b"", b"no image at all", "half"])
def test_a_corrupt_image_is_named(items, tmp_path, content):
    broken = tmp_path / "broken.png"
    whole_file = Path(items[5][0]).read_bytes()
    broken.write_bytes(whole_file[: len(whole_file) // 2] if content == "half" else content)
    with pytest.raises(UserError, match="corrupt") as error:
        build([*items[:5], (broken, 0)], tmp_path / "cache")
    assert str(broken) in str(error.value)
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_a_missing_image_is_named(items, tmp_path):
    with pytest.raises(UserError, match="not_there.png"):
        build([*items, ("not_there.png", 0)], tmp_path)


class Refused(ToyEncoder):
    """Fails the test when it is asked for features."""

    def encode_image(self, pixels):
        raise AssertionError("nothing may be computed")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"spec": dataclasses.replace(SPEC, objective="ce")}, "no text.*'ce'"),
        ({"spec": dataclasses.replace(SPEC, objective="kl")}, "no text.*'kl'"),
        ({"views": 0}, "views is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"spec": None, "views": 2}, "all be the same"),
        ({"precision": "fp16"}, "loaded in 'fp32'"),
    ],
)
def test_unusable_arguments_are_refused(items, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        build(items, tmp_path / "cache", Refused(), **changes)
    assert not (tmp_path / "cache").exists()


def test_an_unfrozen_or_training_model_is_refused(items, tmp_path):
    clip = Refused()
    clip.head.bias.requires_grad_(True)
    with pytest.raises(UserError, match="'head.bias' requires gradients"):
        build(items, tmp_path, clip)
    clip.requires_grad_(False).conv.train()
    with pytest.raises(UserError, match="'conv' is in train mode"):
        build(items, tmp_path, clip)
    with pytest.raises(UserError, match="at least one image"):
        build([], tmp_path)


def test_rows_that_are_not_finite_are_refused_with_the_image(items, tmp_path):
    class Overflow(ToyEncoder):
        def encode_image(self, pixels):
            features = super().encode_image(pixels)
            if len(self.sizes) == 2:
                features[1, 0] = torch.inf
            return features

    with pytest.raises(UserError, match="not finite") as error:
        build(items, tmp_path, Overflow(), spec=None, views=1, chunk=256)
    assert items[4][0] in str(error.value)  # second batch of three, second image


def test_normalised_pixels_are_refused(items, tmp_path):
    def normalised(image):
        return preprocess(image) * 4 - 2

    normalised.key = "normalised"
    with pytest.raises(UserError, match="INPUT.TRANSFORMS"):
        build_bank(
            ToyEncoder(), items, spec=None, preprocess=normalised, cache_dir=tmp_path, chunk=4
        )


def test_an_unwritable_cache_is_refused(items, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write into folder"):
        build(items, tmp_path / "file" / "cache", Refused())


def test_the_model_is_left_as_it_was(items, tmp_path):
    clip = ToyEncoder()
    before = [p.clone() for p in clip.parameters()]
    build(items, tmp_path, clip)
    assert all(map(torch.equal, before, clip.parameters()))
    assert all(p.grad is None and not p.requires_grad for p in clip.parameters())
    assert not any(m.training for m in clip.modules())


if __name__ == "__main__":
    cache_dir, *arguments = sys.argv[1:]
    pairs = [(path, int(label)) for path, label in (a.rsplit(":", 1) for a in arguments)]
    build(pairs, cache_dir, ToyEncoder(delay=0.05))
