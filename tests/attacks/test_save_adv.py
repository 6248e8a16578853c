"""TEST.SAVE_ADV: adversarial images on disk, exact enough to be scored again, resumable."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from advprompt import records
from advprompt.evaluation import evaluator as evaluation
from advprompt.evaluation import shards
from advprompt.utils.errors import UserError
from tests.conftest import only_error

LIST = (
    "[{'EPS': '4', 'STEPS': 2}, {'EPS': '0.5', 'STEPS': 2, 'DROP': True}, "
    "{'NAME': 'apgd', 'EPS': '0.25', 'STEPS': 3}, "
    "{'EPS': '8', 'STEPS': 2, 'OBJECTIVE': 'embedding_kl', 'TARGET': 'embedding'}]"
)


@given(
    eps=st.sampled_from([0.25, 0.5, 1, 4, 16, 255]),
    seed=st.integers(0, 999),
    off_grid=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_coding_stays_in_the_ball_and_in_range(eps, seed, off_grid):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, 256, (2, 3, 5, 5), generator=generator).float() / 255
    if off_grid:
        clean = torch.rand(clean.shape, generator=generator)
    change = (2 * torch.rand(clean.shape, generator=generator) - 1) * eps / 255
    images = (clean + change).clamp(0, 1)
    values = shards.encode(images, clean)
    read = shards.decode(values)
    assert values.dtype == torch.int16
    assert read.min() >= 0 and read.max() <= 1
    assert (read - clean).abs().max() <= eps / 255 + 1e-6
    assert (read - images).abs().max() <= 1.02 / shards.LEVELS
    if not off_grid:  # towards the clean pixel, so in every norm
        assert ((read - clean).abs() <= (images - clean).abs() + 1e-6).all()


def test_pixels_on_the_levels_come_back_exactly():
    clean = torch.arange(256).float().reshape(1, 1, 16, 16) / 255
    for eps in (1 / 255, 4 / 255, 0.25 / 255):
        images = (clean + eps).clamp(0, 1)
        read = shards.decode(shards.encode(images, clean))
        assert (read - images).abs().max() <= 1.2e-7
        assert torch.equal(shards.decode(shards.encode(clean, clean)), clean)


def test_a_shard_whose_answers_rounding_would_change_is_kept_in_float32(tmp_path):
    clean = torch.full((2, 3, 4, 4), 100 / 255)
    images = clean + 0.3 / shards.LEVELS  # rounded away

    def logits(x):
        moved = (x - clean[: len(x)]).abs().amax((1, 2, 3)) > 0.1 / shards.LEVELS
        return torch.stack([~moved, moved], 1).float()

    kept = shards.Shards(tmp_path / "a", "key", {"name": "pgd"})
    kept.add(images, clean, torch.tensor([0, 0]), torch.tensor([False, False]), ["x", "y"], logits)
    kept.add(clean, clean, torch.tensor([0, 0]), torch.tensor([True, True]), ["x", "y"], logits)
    first, second = shards.read_shards(tmp_path / "a")
    assert torch.equal(first.images, images) and torch.equal(second.images, clean)
    stored = load_file(tmp_path / "a" / "00000.safetensors")["images"]
    assert stored.dtype == torch.float32
    assert load_file(tmp_path / "a" / "00001.safetensors")["images"].dtype == torch.int16


def kept(folder):
    """Everything on disk, by attack: labels, answers, paths and images in order."""
    found = {}
    for path in sorted((folder / "adversarial").iterdir()):
        parts = list(shards.read_shards(path))
        found[path.name] = (
            torch.cat([p.labels for p in parts]),
            torch.cat([p.right for p in parts]),
            sum((p.paths for p in parts), []),
            torch.cat([p.images for p in parts]),
        )
    return found


def same(one, other):
    assert one.keys() == other.keys()
    for name, (labels, right, paths, images) in one.items():
        others = other[name]
        assert torch.equal(labels, others[0]) and torch.equal(right, others[1]), name
        assert paths == others[2] and (images - others[3]).abs().max() < 1e-4, name


def test_an_evaluation_keeps_what_it_scored(run, white_box, tmp_path, monkeypatch):
    scored, real = {}, evaluation.Evaluation.run_attack

    def watched(self, spec, where, pixels, **keys):
        result = real(self, spec, where, pixels, **keys)
        for i, image, clean in zip(where, result.images, pixels, strict=True):
            scored[spec.name, spec.eps, self.items[i].impath] = image, clean
        return result

    monkeypatch.setattr(evaluation.Evaluation, "run_attack", watched)
    plain = white_box("AdvCoOp", ATTACK__TEST__LIST=LIST)
    assert run(plain)[0] == 0
    assert not (tmp_path / "run" / "adversarial").exists()
    scored.clear()
    argv = white_box("AdvCoOp", ATTACK__TEST__LIST=LIST, TEST__SAVE_ADV=True, out="kept")
    code, _, err = run(argv)
    assert code == 0, err
    record = records.read_record(tmp_path / "kept" / records.FILE_NAME)
    before = records.read_record(tmp_path / "run" / records.FILE_NAME)
    assert [a["correct"] for a in record["attacks"]] == [a["correct"] for a in before["attacks"]]
    found = kept(tmp_path / "kept")
    assert len(found) == 5  # the two parts of apgd have a folder each
    for path in (tmp_path / "kept" / "adversarial").iterdir():
        for shard in shards.read_shards(path):
            eps = float(shard.attack["eps"].removesuffix("/255")) / 255
            assert len(shard.images) == len(shard.paths) == len(shard.right) > 0
            for name, image in zip(shard.paths, shard.images, strict=True):
                image_scored, clean = scored[shard.attack["name"], eps, name]
                assert (image - image_scored).abs().max() < 1.1 / shards.LEVELS
                assert (image - clean).abs().max() <= eps + 1e-6
                assert image.min() >= 0 and image.max() <= 1
    pgd = next(v for k, v in found.items() if k.startswith("end_to_end_pgd_4_"))
    assert len(pgd[0]) == record["clean"]["correct"]
    assert int(pgd[1].sum()) == record["attacks"][0]["correct"]


def test_a_killed_evaluation_neither_loses_nor_doubles_images(
    run, white_box, tmp_path, monkeypatch
):
    keys = {"ATTACK__TEST__LIST": LIST, "TEST__SAVE_ADV": True}
    keys |= {"DATALOADER__TEST__BATCH_SIZE": 2}
    assert run(white_box("AdvCoOp", **keys, out="whole"))[0] == 0
    whole = kept(tmp_path / "whole")
    attack, write, writes = evaluation.Evaluation.run_attack, evaluation.write_json, []

    def killed(limit):
        calls = []

        def once(self, *args, **more):
            calls.append(args)
            if len(calls) == limit:
                raise KeyboardInterrupt
            return attack(self, *args, **more)

        return once

    def lost(path, value):  # killed between a shard and the state that counts it
        writes.append(path)
        if len(writes) == 2:
            raise KeyboardInterrupt
        write(path, value)

    argv = white_box("AdvCoOp", **keys, out="cut")
    for limit in (2, 4):
        monkeypatch.setattr(evaluation.Evaluation, "run_attack", killed(limit))
        assert run(argv)[0] == 130
    monkeypatch.setattr(evaluation.Evaluation, "run_attack", attack)
    monkeypatch.setattr(evaluation, "write_json", lost)
    assert run(argv)[0] == 130
    monkeypatch.setattr(evaluation, "write_json", write)
    keys["DATALOADER__TEST__BATCH_SIZE"] = 3  # it may go on in other batches
    assert run(white_box("AdvCoOp", **keys, out="cut"))[0] == 0
    by_attack = {name.rpartition("_")[0]: v for name, v in whole.items()}
    same({n.rpartition("_")[0]: v for n, v in kept(tmp_path / "cut").items()}, by_attack)
    first, second = (
        records.read_record(tmp_path / name / records.FILE_NAME) for name in ("whole", "cut")
    )
    assert [a["correct"] for a in first["attacks"]] == [a["correct"] for a in second["attacks"]]


def test_shards_that_do_not_fit_the_state_are_made_anew(tmp_path):
    clean = torch.full((2, 3, 4, 4), 100 / 255)
    rows = (clean, clean, torch.tensor([0, 0]), torch.tensor([True, True]), ["x", "y"])

    def filled(count, key="key"):
        kept = shards.Shards(tmp_path / "a", key, {})
        assert kept.resume(0)
        for _ in range(count):
            kept.add(*rows, lambda x: x.flatten(1))
        return kept

    def files():
        return sorted(p.stem for p in (tmp_path / "a").glob("*.safetensors"))

    filled(3)
    again = shards.Shards(tmp_path / "a", "key", {})
    assert again.resume(4) and again.written == 2 and files() == ["00000", "00001"]
    assert not shards.Shards(tmp_path / "a", "key", {}).resume(6) and files() == []
    filled(2)
    assert not shards.Shards(tmp_path / "a", "other", {}).resume(4) and files() == []
    filled(2)
    (tmp_path / "a" / "00000.safetensors").unlink()
    try:
        list(shards.read_shards(tmp_path / "a"))
    except UserError as error:
        assert "not all of them" in str(error)
    else:
        raise AssertionError("a missing shard went unnoticed")


def test_a_damaged_shard_is_refused(run, white_box, tmp_path):
    argv = white_box("ZeroshotCLIP", TEST__SAVE_ADV=True)
    assert run(argv)[0] == 0
    (folder,) = (tmp_path / "run" / "adversarial").iterdir()
    shard = folder / "00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    try:
        list(shards.read_shards(folder))
    except UserError as error:
        assert "checksum" in str(error)
    else:
        raise AssertionError("damage went unnoticed")
    assert "TEST.SAVE_ADV" in only_error(
        *run(white_box("ZeroshotCLIP", TEST__SAVE_ADV="maybe"))[::2]
    )
