"""The embedding bank: content-addressed, resumable, aligned, larger than memory if need be."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError
from torch import nn

from advprompt.attacks import AttackChecks, AttackSpec, GradientAttack, objective_for
from advprompt.evaluation import bank as module
from advprompt.evaluation import samples
from advprompt.evaluation.bank import build_bank, load_bank
from advprompt.evaluation.samples import ImageList
from advprompt.utils import io
from advprompt.utils.errors import UserError
from advprompt.utils.io import save_tensors, sha256_file
from advprompt.utils.seeds import hash_seed

SPEC = AttackSpec("pgd", 8 / 255, 3 / 255, 3, 1, "uniform", "embedding_kl", "embedding")
COUNT, VIEWS, CHUNK = 11, 2, 4


class ToyEncoder(nn.Module):
    """A frozen image tower; double precision inside, so that batch size moves no sign."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, stride=2).double()
        self.head = nn.Linear(8 * 9, 6).double()
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
        self.requires_grad_(False).eval()
        self.sha256, self.sizes = "ab" * 32, []

    def encode_image(self, pixels):
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


def build(items, cache, clip=None, preprocess=preprocess, **changes):
    options = {"spec": SPEC, "views": VIEWS, "chunk": CHUNK, "batch_size": 3, **changes}
    clip = ToyEncoder() if clip is None else clip
    return build_bank(clip, ImageList(items, preprocess), cache_dir=cache, **options)


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
        loss = objective_for(SPEC, clip.encode_image, reference=clean)
        adv = GradientAttack(loss, SPEC).run(pixels, [seed]).images
        torch.testing.assert_close(whole.features[row], clip.encode_image(adv)[0])
        assert (whole.features[row] - clean[0]).abs().max() > 1e-3
    assert not torch.equal(whole.features[0], whole.features[1])  # two views, two starts


def test_checks_are_stored(whole):
    assert io.load_tensors(whole.path)[1]["schema"] == 1  # older ones are still read
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


def test_files_are_hashed_once_whoever_uses_the_list(items, whole, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(samples, "sha256_file", lambda path: read.append(path) or sha256_file(path))
    images = ImageList([SimpleNamespace(impath=p, label=y) for p, y in items], preprocess)
    assert images.digest(3) == sha256_file(items[3][0])
    for views in (VIEWS, 1):
        bank = build_bank(
            ToyEncoder(), images, spec=SPEC, views=views, cache_dir=tmp_path, chunk=CHUNK
        )
        assert torch.allclose(bank.features, whole.features[:: VIEWS // views], atol=1e-6)
    assert sorted(read) == [path for path, _ in items]


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


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 13),
    chunk=st.integers(1, 13),
    views=st.integers(1, 3),
    chosen=st.lists(st.integers(0, COUNT - 1), min_size=1, unique=True),
)
def test_an_image_has_its_rows_in_any_batch_part_order_and_set(
    items, whole, tmp_path_factory, batch, chunk, views, chosen
):
    cache, clip = tmp_path_factory.mktemp("cache"), ToyEncoder()
    few = [items[i] for i in chosen]
    bank = build(few, cache, clip, batch_size=batch, chunk=chunk, views=views)
    assert max(clip.sizes) <= batch and len(bank) == views * len(chosen)
    rows = [n for n in range(len(bank)) if n % views < VIEWS]
    theirs = [chosen[n // views] * VIEWS + n % views for n in rows]
    torch.testing.assert_close(bank.features[rows], whole.features[theirs], rtol=1e-6, atol=1e-6)
    assert torch.equal(bank.labels[rows], whole.labels[theirs])


# --- the key ----------------------------------------------------------------------------------


def test_the_key_changes_with_every_ingredient(items, tmp_path):
    few, other = items[:2], ToyEncoder()
    other.sha256 = "cd" * 32
    half = ToyEncoder()
    half.precision = "bf16"
    changed = tmp_path / "changed.png"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(changed)

    def larger(image):
        return preprocess(image)

    larger.key = "resize9"
    specs = [
        {"eps": 8.0001 / 255},
        {"alpha": 1 / 255},
        {"steps": 1},
        {"restarts": 2},
        {"start": "one_sided"},
        {"name": "mi"},
        {"name": "mi", "kwargs": {"momentum": 0.5}},
        {"norm": "l2"},
        {"prec": "bf16"},
    ]
    banks = [
        build(few, tmp_path),
        build(few, tmp_path, other),
        build(few, tmp_path, half),
        build([few[0], (changed, few[1][1])], tmp_path),
        build([few[0], (few[1][0], 2)], tmp_path),
        build(few[::-1], tmp_path),
        build(few, tmp_path, preprocess=larger),
        build(few, tmp_path, views=1),
        build(few, tmp_path, seed=1),
        build(few, tmp_path, spec=None, views=1),
        *(build(few, tmp_path, spec=dataclasses.replace(SPEC, **change)) for change in specs),
    ]
    assert len({bank.key for bank in banks}) == len(banks)
    # where a file lies does not matter, what it holds does
    moved = shutil.copy(few[0][0], tmp_path / "moved.png")
    assert build([(moved, few[0][1]), few[1]], tmp_path).key == banks[0].key


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
    assert [p.name for p in tmp_path.iterdir()] == [f"{whole.key}.safetensors"]


def test_parts_that_outlive_their_bank_are_removed(items, whole, tmp_path):
    """A run was killed right after it had written the bank."""
    path = tmp_path / whole.path.name
    shutil.copy(whole.path, path)
    (tmp_path / f"{whole.key}.parts").mkdir()
    (tmp_path / f"{whole.key}.parts" / "features").write_bytes(b"half")
    assert same(build(items, tmp_path), whole)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_leaves_whole_parts_to_resume_from(items, whole, tmp_path, monkeypatch):
    write, calls = io.save_file, []

    def full(tensors, path, **keys):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"begun")
            raise SafetensorError("No space left on device")
        return write(tensors, path, **keys)

    monkeypatch.setattr(io, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        build(items, tmp_path)
    (folder,) = tmp_path.iterdir()
    assert [p.name for p in folder.iterdir()] == ["00000.safetensors"]
    monkeypatch.undo()
    assert same(build(items, tmp_path), whole)
    assert [p.name for p in tmp_path.iterdir()] == [f"{whole.key}.safetensors"]


def test_the_time_is_that_of_the_parts(tmp_path):
    parts = module.Parts(tmp_path / "key.parts", "key", 3, 1, 2)
    assert [len(parts.span(n)) for n in range(len(parts))] == [2, 1]
    for number, seconds in enumerate((0.25, 0.5)):
        rows, checks = torch.zeros(len(parts.span(number)), 6), dataclasses.asdict(AttackChecks())
        parts.save(number, rows, checks, seconds, bank=tmp_path / "bank.safetensors")
    module.join(parts, tmp_path / "bank.safetensors", [0, 1, 2], None)
    assert load_bank(tmp_path / "bank.safetensors").seconds == 0.75


def test_parts_that_cannot_be_removed_lose_no_bank(items, whole, tmp_path, monkeypatch):
    def locked(*_, **__):
        raise PermissionError("in use")

    monkeypatch.setattr(module.shutil.os, "rmdir", locked)
    assert same(build(items, tmp_path), whole)


@pytest.mark.parametrize("finished", [True, False])
def test_parts_that_cannot_be_joined_are_an_error_unless_the_bank_is_there(
    items, whole, tmp_path, monkeypatch, finished
):
    def lost(parts, path, *rest):
        if finished:
            shutil.copy(whole.path, path)
        raise UserError("the parts are gone")

    monkeypatch.setattr(module, "join", lost)
    if finished:
        assert same(build(items, tmp_path), whole)
    else:
        with pytest.raises(UserError, match="the parts are gone"):
            build(items, tmp_path)


def test_another_chunk_size_does_not_reuse_wrong_parts(items, whole, tmp_path):
    cache = tmp_path / "cache"
    kill_after_two_chunks(items, cache)
    bank = build(items, cache, chunk=5)
    torch.testing.assert_close(bank.features, whole.features, rtol=1e-6, atol=1e-6)
    assert parts(cache) == []


# --- refusals ---------------------------------------------------------------------------------


def test_altered_and_foreign_banks_are_refused(items, whole, tmp_path):
    path = tmp_path / whole.path.name
    content = bytearray(whole.path.read_bytes())
    for keep in (0, 7, 100, -1):
        path.write_bytes(content[:keep])
        with pytest.raises(UserError, match="damaged|checksum") as error:
            build(items, tmp_path)
        assert str(path) in str(error.value) and "run again" in str(error.value)
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        build(items, tmp_path)
    save_tensors(path, {"features": torch.zeros(COUNT * VIEWS, 6)}, {"kind": "something else"})
    with pytest.raises(UserError, match="not an embedding bank"):
        build(items, tmp_path)
    other = build(items, tmp_path / "other", seed=5)
    shutil.copy(other.path, path)
    with pytest.raises(UserError, match="another bank"):
        build(items, tmp_path)
    assert same(load_bank(other.path), other)
    with pytest.raises(UserError, match="does not exist"):
        load_bank(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [None, b"", b"no image at all", "half"])
def test_a_missing_or_corrupt_image_is_named(items, tmp_path, content):
    broken = tmp_path / "broken.png"
    if content is not None:
        whole = Path(items[5][0]).read_bytes()
        broken.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(UserError, match="corrupt|cannot read") as error:
        build([*items[:5], (broken, 0)], tmp_path / "cache")
    assert str(broken) in str(error.value)
    assert not list((tmp_path / "cache").glob("*.safetensors"))


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
    ],
)
def test_unusable_arguments_are_refused(items, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        build(items, tmp_path / "cache", Refused(), **changes)
    assert not (tmp_path / "cache").exists()


def test_an_unfrozen_model_and_no_images_are_refused(items, tmp_path):
    clip = Refused()
    clip.head.bias.requires_grad_(True)
    with pytest.raises(UserError, match="'head.bias' requires gradients"):
        build(items, tmp_path, clip)
    with pytest.raises(UserError, match="at least one image"):
        build([], tmp_path)


def test_rows_that_are_not_finite_are_refused_with_the_image(items, tmp_path):
    class Overflow(ToyEncoder):
        def encode_image(self, pixels):
            features = super().encode_image(pixels)
            if len(self.sizes) == 2:
                features[1:, 0] = torch.inf
            return features

    with pytest.raises(UserError, match="not finite") as error:
        build(items, tmp_path, Overflow(), spec=None, views=1, chunk=256)
    assert items[4][0] in str(
        error.value
    )  # second batch of three, of whose wrong images the first is named


def test_normalised_pixels_are_refused(items, tmp_path):
    def normalised(image):
        return preprocess(image) * 4 - 2

    normalised.key = "normalised"
    with pytest.raises(UserError, match="INPUT.TRANSFORMS"):
        build(items, tmp_path, preprocess=normalised)


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


# --- banks larger than memory -----------------------------------------------------------------

PROBE = """
import sys, torch
from pathlib import Path
from advprompt.evaluation import bank

def private():  # memory that the system cannot take back; pages of mapped files it can
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10

def work(folder, count):
    parts, most = bank.Parts(folder / "parts", "0" * 64, count, 1, 256), 0
    for number in range(len(parts)):
        rows = torch.full((len(parts.span(number)), 512), float(number))
        parts.save(number, rows, {}, 1.0, bank=folder / "none")
    bank.join(parts, folder / "bank", [0] * count, None)
    features, most = bank.load_bank(folder / "bank").features, private()
    for rows in torch.randperm(count).split(32):
        most = max(most, private(), len(features[rows]))
    return most

few = work(Path(sys.argv[1]) / "few", 1_000)
print(work(Path(sys.argv[1]) / "many", 40_000) - few, 4 * 512 * 40_000)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_does_not_grow_with_the_bank(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROBE, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, size = map(int, done.stdout.split())
    assert grown < size / 4, done.stdout
