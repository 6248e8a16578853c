"""What was measured survives whatever fails after it, and only what is still the same counts."""

import errno
import shutil

import pytest
from dassl.evaluation.evaluator import Classification
from PIL import Image

from advprompt import records
from advprompt.engine import testing, trainer
from advprompt.evaluation import pictures
from advprompt.evaluation.evaluator import Evaluation
from tests.attacks.test_save_adv import kept, same

FOUR = str([{"EPS": eps, "STEPS": 1} for eps in (1, 2, 3, 4)])
ATTACK = Evaluation.run_attack


def full(*args, **keys):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def attacked(monkeypatch):
    """The images that attacks were run on, as (eps, position); ``fail``: number -> an error."""
    done, fail = [], {}

    def watched(self, spec, where, pixels, **keys):
        if error := fail.pop(len(done), None):
            raise error
        result = ATTACK(self, spec, where, pixels, **keys)
        done.extend((round(spec.eps * 255), i) for i in where)
        return result

    monkeypatch.setattr(Evaluation, "run_attack", watched)
    return done, fail


@pytest.fixture
def arguments_of(white_box):
    keys = {"ATTACK__TEST__LIST": FOUR, "DATALOADER__TEST__BATCH_SIZE": 1, "TEST__PROBES": 0}
    return lambda **more: white_box("ZeroshotCLIP", **keys | more)


@pytest.mark.parametrize(
    "where, name, error",
    [
        (testing, "_picture", full),
        (pictures, "save_tensors", full),
        (trainer.SavingTrainer, "write_scalar", full),
        (Classification, "evaluate", full),
        (testing, "compare", full),
        (Evaluation, "clean_up", full),
    ],
    ids=["picture", "its pixels", "scalars", "evaluator", "comparison", "clearing"],
)
def test_nothing_that_follows_loses_the_record(
    run, arguments_of, tmp_path, monkeypatch, where, name, error
):
    monkeypatch.setattr(where, name, error)
    code, out, err = run(arguments_of(TEST__PICTURE=2))
    record = records.read_record(tmp_path / "run" / "record.json")
    assert record["status"] == "completed" and len(record["attacks"]) == 4
    assert code == 0, err
    assert "No space left" in out
    assert ("could not be compared" in str(record)) == (name == "compare")


def test_an_interrupted_picture_loses_nothing(run, arguments_of, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(testing, "_picture", interrupted)
    assert run(arguments_of())[0] == 130
    assert records.completed_record(tmp_path / "run")


def test_a_record_that_cannot_be_written_is_written_later(
    run, arguments_of, tmp_path, monkeypatch, attacked
):
    done, _ = attacked
    write = records.write_record
    monkeypatch.setattr(records, "write_record", full)
    assert run(arguments_of())[0] != 0
    count = len(done)
    assert count >= 4 and (tmp_path / "run" / "unfinished").is_dir()
    monkeypatch.setattr(records, "write_record", write)
    assert run(arguments_of())[0] == 0 and len(done) == count
    assert not (tmp_path / "run" / "unfinished").exists()


def test_an_attack_that_fails_leaves_what_was_attacked(run, arguments_of, tmp_path, attacked):
    done, fail = attacked
    run(arguments_of(out="whole"))
    whole = list(done)
    done.clear()
    cut = next(i for i, (eps, _) in enumerate(whole) if eps == 3) + 2  # the third, third image
    fail[cut] = RuntimeError("out of luck")
    with pytest.raises(RuntimeError, match="out of luck"):
        run(arguments_of())
    assert not (tmp_path / "run" / "record.json").exists() and len(done) == cut
    assert run(arguments_of())[0] == 0
    assert done == whole  # every image once, in all
    first, second = (records.read_record(tmp_path / n / "record.json") for n in ("whole", "run"))
    assert [a["correct"] for a in first["attacks"]] == [a["correct"] for a in second["attacks"]]


def test_a_record_that_is_refused_is_refused_before_the_attacks(
    run, arguments_of, monkeypatch, attacked
):
    monkeypatch.setattr(records, "flat_config", lambda cfg: {"OPTIM.LR": float("nan")})
    assert run(arguments_of())[0] == 2
    assert not attacked[0]


def test_an_image_that_changed_meanwhile_is_attacked_again(
    run, arguments_of, pets, tmp_path, attacked
):
    done, fail = attacked
    root = tmp_path / "root"
    shutil.copytree(pets, root)
    keys = {"root": root, "TEST__SAVE_ADV": True}
    fail[6] = KeyboardInterrupt()
    assert run(arguments_of(**keys, out="cut"))[0] == 130
    names = sorted(p.name for p in (tmp_path / "cut" / "adversarial").iterdir())
    for path in (root / "oxford_pets" / "images").iterdir():  # the same files, other pictures
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(path)
    for name in ("cut", "whole"):
        assert run(arguments_of(**keys, out=name))[0] == 0
    first, second = (records.read_record(tmp_path / n / "record.json") for n in ("cut", "whole"))
    assert first["clean"] == second["clean"]
    assert [a["correct"] for a in first["attacks"]] == [a["correct"] for a in second["attacks"]]
    same(kept(tmp_path / "cut"), kept(tmp_path / "whole"))
    assert not set(names) & {p.name for p in (tmp_path / "cut" / "adversarial").iterdir()}
