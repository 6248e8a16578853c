"""TEST.SAVE_ADV: adversarial images on disk, exactly as they were scored, resumable."""

import pytest
import torch

from advprompt import records
from advprompt.attacks import AttackResult
from advprompt.evaluation import evaluator as evaluation
from advprompt.evaluation import partial
from advprompt.evaluation.saved_images import SavedImages, read_saved
from advprompt.utils.errors import UserError
from advprompt.utils.io import save_tensors, write_json
from tests.conftest import only_error

LIST = (
    "[{'EPS': '4', 'STEPS': 2}, {'EPS': '0.5', 'STEPS': 2, 'DROP': True}, "
    "{'NAME': 'apgd', 'EPS': '0.25', 'STEPS': 3}, "
    "{'EPS': '8', 'STEPS': 2, 'OBJECTIVE': 'embedding_kl', 'TARGET': 'embedding'}]"
)


def kept(folder):
    """Everything on disk, by attack: labels, answers, paths and images in order."""
    found = {}
    for path in sorted((folder / "adversarial").iterdir()):
        parts = list(read_saved(path))
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
            scored[spec.name, spec.eps, self.images.paths[i]] = image, clean
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
        for batch in read_saved(path):
            eps = float(batch.attack["eps"].removesuffix("/255")) / 255
            assert len(batch.images) == len(batch.paths) == len(batch.right) > 0
            for name, image in zip(batch.paths, batch.images, strict=True):
                image_scored, clean = scored[batch.attack["name"], eps, name]
                assert torch.equal(image, image_scored)
                assert (image - clean).abs().max() <= eps + 1e-6
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
    attack, write, writes = evaluation.Evaluation.run_attack, partial.write_json, []

    def killed(limit):
        calls = []

        def once(self, *args, **more):
            calls.append(args)
            if len(calls) == limit:
                raise KeyboardInterrupt
            return attack(self, *args, **more)

        return once

    def lost(path, value):  # killed between a file and the state that counts it
        writes.append(path)
        if len(writes) == 2:
            raise KeyboardInterrupt
        write(path, value)

    argv = white_box("AdvCoOp", **keys, out="cut")
    for limit in (2, 4):
        monkeypatch.setattr(evaluation.Evaluation, "run_attack", killed(limit))
        assert run(argv)[0] == 130
    monkeypatch.setattr(evaluation.Evaluation, "run_attack", attack)
    monkeypatch.setattr(partial, "write_json", lost)
    assert run(argv)[0] == 130
    monkeypatch.setattr(partial, "write_json", write)
    keys["DATALOADER__TEST__BATCH_SIZE"] = 3  # it may resume in other batches
    assert run(white_box("AdvCoOp", **keys, out="cut"))[0] == 0
    by_attack = {name.rpartition("_")[0]: v for name, v in whole.items()}
    same({n.rpartition("_")[0]: v for n, v in kept(tmp_path / "cut").items()}, by_attack)
    first, second = (
        records.read_record(tmp_path / name / records.FILE_NAME) for name in ("whole", "cut")
    )
    assert [a["correct"] for a in first["attacks"]] == [a["correct"] for a in second["attacks"]]


def test_files_that_do_not_fit_the_state_are_made_again(tmp_path):
    batch = torch.rand(2, 3, 4, 4), torch.tensor([0, 0]), torch.tensor([True, False]), ["x", "y"]

    def filled(count, key="key"):
        saved = SavedImages(tmp_path / "a", key, {})
        assert saved.resume(0)
        for _ in range(count):
            saved.add(*batch)

    def files():
        return sorted(p.stem for p in (tmp_path / "a").glob("*.safetensors"))

    def resume(samples, key="key"):
        return SavedImages(tmp_path / "a", key, {}).resume(samples), files()

    SavedImages(tmp_path / "a", "key", {}).add(*batch)
    assert files() == ["00000"] and resume(2) == (True, ["00000"])
    assert resume(0) == (True, [])
    filled(3)
    assert resume(4) == (True, ["00000", "00001"])
    assert resume(6) == (False, [])
    assert resume(1) == (False, [])  # of a folder that is gone
    filled(1)
    saved = SavedImages(tmp_path / "a", "key", {})
    assert not saved.resume(6)
    saved.add(*batch)
    assert files() == ["00000"]  # from the start
    filled(2)
    assert resume(4, key="other") == (False, [])
    filled(2)
    (tmp_path / "a" / "00000.safetensors").unlink()
    with pytest.raises(UserError, match="not all of them"):
        list(read_saved(tmp_path / "a"))


def test_progress_of_an_attack_and_its_time_add_up(tmp_path):
    def step(*samples):
        progress, clean = (
            partial.Progress(tmp_path, "ab" * 32, 3),
            torch.rand(len(samples), 3, 2, 2),
        )
        known, zeros = progress.known(), torch.zeros(len(samples))
        result = AttackResult.untouched(clean, zeros, zeros == 0)
        progress.add(list(samples), [sample > 0 for sample in samples], result, clean)
        progress.save()
        return known, progress.finish()

    assert step(0)[0] == 0
    known, whole = step(1, 2)
    assert (known, whole.right, whole.checks["n"]) == (1, [False, True, True], 3)
    assert 0 < whole.seconds < 1
    assert [path.name for path in tmp_path.iterdir()] == [f"{'ab' * 8}.json"]
    again = partial.Progress(tmp_path, "ab" * 32, 3)
    assert again.known() == 3 and not again.todo() and again.finish() == whole
    again.forget()
    assert again.known() == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"right": [True]},
        {"right": [True, "no"]},
        {"seconds": -0.1},
        {"key": 3},
        {"checks": {"m": 1}},
    ],
)
def test_progress_that_cannot_be_is_refused(tmp_path, wrong):
    path = tmp_path / f"{'ab' * 8}.json"
    write_json(path, {"key": "ab" * 32, "right": [True, None], "seconds": 0.0} | wrong)
    with pytest.raises(UserError, match="no result of an unfinished attack"):
        partial.Progress(tmp_path, "ab" * 32, 2)


def test_images_of_the_older_integer_form_are_read(tmp_path):
    values = torch.tensor([0, 128, 32640], dtype=torch.int16).reshape(1, 3, 1, 1)
    tensors = {"images": values, "labels": torch.tensor([1]), "right": torch.tensor([True])}
    facts = {"key": "key", "attack": {}, "paths": ["x"], "levels": 32640}
    save_tensors(tmp_path / "00000.safetensors", tensors, facts)
    (batch,) = read_saved(tmp_path)
    assert batch.images.flatten().tolist() == pytest.approx([0, 1 / 255, 1])


def test_damage_and_a_wrong_value_are_refused(run, white_box, tmp_path):
    assert run(white_box("ZeroshotCLIP", TEST__SAVE_ADV=True))[0] == 0
    (folder,) = (tmp_path / "run" / "adversarial").iterdir()
    file = folder / "00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        list(read_saved(folder))
    wrong = run(white_box("ZeroshotCLIP", TEST__SAVE_ADV="maybe"))
    assert "TEST.SAVE_ADV" in only_error(*wrong[::2])
