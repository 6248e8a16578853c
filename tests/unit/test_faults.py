"""Full disks and odd files end in one sentence, and what kills leave behind is swept."""

import errno
import math
import os
import resource
import socket
import subprocess
import sys

import pytest
import torch

from advprompt.compat.dassl.utils.logger import Logger
from advprompt.datasets.shapes import Shapes
from advprompt.engine import run_folder, trainer
from advprompt.engine.checkpoints import check_facts, load_checkpoint, save_checkpoint
from advprompt.utils.entry import run_tool
from advprompt.utils.errors import UserError
from advprompt.utils.io import atomic_write, save_tensors, write_json
from tests.conftest import ok


def full(*args, **keys):
    raise OSError(errno.ENOSPC, "No space left on device")


CUDA = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has less.")
CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("error", [MemoryError(), CUDA, CPU])
def test_a_lack_of_memory_names_what_to_lower(capsys, error):
    def main(argv):
        raise error

    assert run_tool(main, []) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: memory ran out") and said.count("\n") == 1, said
    assert all(key in said for key in ("TEST.BATCH_SIZE", "TESTTIME.VIEWS", "DEFENCE.EOT"))


@pytest.fixture
def small_disk():
    """Files of more than 4096 bytes cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_json(path, {"a": "x" * 9000}),
        lambda path: save_tensors(path, {"a": torch.ones(9000)}),
        lambda path: save_checkpoint(path, {"a": torch.ones(9000)}),
    ],
    ids=["json", "tensors", "checkpoint"],
)
def test_a_full_disk_is_said_in_the_systems_words(tmp_path, small_disk, write):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(UserError) as error:
        write(path)
    assert f"cannot write '{path}' (File too large); the previous" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and path.read_text() == "old"


def test_a_leftover_that_cannot_be_removed_hides_no_reason(tmp_path, monkeypatch):
    def readonly(path, *args, **keys):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "replace", readonly)
    monkeypatch.setattr(os, "unlink", readonly)
    words = rf"cannot write '{tmp_path}/a' \(Read-only file system\)"
    with pytest.raises(UserError, match=words), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("x")
    run_folder._claimed.add(tmp_path)
    run_folder._release()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EFBIG])
def test_every_command_says_what_the_system_says(number, capsys):
    def main(argv):
        raise OSError(number, os.strerror(number), "out/log.txt")

    assert run_tool(main, []) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: cannot read or write 'out/log.txt': {os.strerror(number)}; ")
    assert err.count("\n") == 1
    assert run_tool(full, []) == 2  # such as print into a file
    assert "cannot read or write the output: No space left" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):  # which is a fault of the program
        run_tool(lambda argv: open("/nowhere/at/all"), [])


def test_a_log_that_cannot_be_written_ends_alone(capsys):
    log = Logger("/dev/full")
    log.write("one\n")
    log.flush()
    log.write("two\n")
    log.close()
    out = capsys.readouterr().out
    assert (
        out.startswith("one\nnote: nothing more is written to the log (No space") and "two" in out
    )


@pytest.mark.parametrize("name", ["init_writer", "write_scalar", "close_writer"])
def test_tensorboard_on_a_full_disk_ends_alone(arguments, run, tmp_path, monkeypatch, name):
    monkeypatch.setattr(trainer.SavingTrainer, name, full)
    said = ok(run(arguments("AdvPT", OPTIM__MAX_EPOCH=1)))
    assert "TensorBoard's file cannot be written" in said
    assert (tmp_path / "run" / "record.json").is_file()


def test_what_a_kill_after_the_record_leaves_is_swept(arguments, run, tmp_path):
    words = arguments("ZeroshotCLIP")
    assert run(words)[0] == 0
    (tmp_path / "run" / "unfinished").mkdir()
    (tmp_path / "run" / "unfinished" / "a.json").touch()
    code, out, _ = run(words)
    assert code == 0 and "skipped: " in out and not (tmp_path / "run" / "unfinished").exists()


def test_half_drawn_images_of_a_killed_process_are_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(Shapes, "class_names", classmethod(lambda cls: ["red circle"]))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = socket.gethostname().replace(".", "-")
    (tmp_path / f".v.{ended.pid}@{here}.00.tmp" / "train").mkdir(parents=True)
    Shapes.draw_into(tmp_path / "v")
    assert [p.name for p in tmp_path.iterdir()] == ["v"]


@pytest.mark.parametrize(
    "facts",
    [
        {"advprompt": {"classnames": 5}},
        {"advprompt": {"classnames": None}},
        {"training": {"data": "x"}},
    ],
)
def test_a_checkpoint_with_odd_facts_is_named(tmp_path, facts):
    torch.save({"state_dict": {}, **facts}, tmp_path / "a")
    ((holder, inner),) = facts.items()
    words = f"'{tmp_path}/a' has .* as '{holder}.{next(iter(inner))}'; delete it"
    with pytest.raises(UserError, match=words):
        load_checkpoint(tmp_path / "a")
    with pytest.raises(UserError, match=r"other classes \(a, 0.5, ...\) than"):
        check_facts({"classnames": ["a", 0.5]}, {"classnames": ["b"]}, "x", resuming=True)


THREAT = {"name": "pgd", "objective": "ce", "target": "end_to_end", "eps": "4/255", "steps": 2}
THREAT |= {"alpha": "1/255", "restarts": 1, "start": "uniform", "norm": "linf", "drop": False}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            {"advprompt": {"weights_sha256": torch.zeros(2)}},
            "more than plain values in 'advprompt'",
        ),
        ({"advprompt": {"prompts": {"csc": (1, 2)}}}, "more than plain values in 'advprompt'"),
        ({"training": {"seconds": math.nan}}, "more than plain values in 'training'"),
        ({"training": {"train_threat": [1]}}, "'training.train_threat' is .1., expected an object"),
        ({"training": {"train_threat": THREAT | {"start": 0.5}}}, "'training.train_threat.start'"),
        (
            {"training": {"train_threat": {"name": "pgd"}}},
            "'training.train_threat.objective' is mis",
        ),
        ({"training": {"seed": 0.5}}, "'training.seed' is 0.5, expected an integer of at least -1"),
        ({"training": {"shots": "16"}}, "'training.shots' is '16'"),
        ({"training": {"data": {"classes": 0}}}, "'training.data.classes' is 0"),
        ({"training": {"train_threat": THREAT, "shots": None, "seed": -1}}, None),
    ],
)
def test_facts_that_no_training_has_are_refused(tmp_path, facts, words):
    torch.save({"state_dict": {}, "advprompt": {}, **facts}, tmp_path / "a")
    if words is None:
        assert load_checkpoint(tmp_path / "a")["training"] == facts["training"]
        return
    with pytest.raises(UserError, match=f"{tmp_path}/a'.*{words}.*; delete it"):
        load_checkpoint(tmp_path / "a")
