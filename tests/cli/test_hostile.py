"""Hostile inputs: nothing is executed, nothing is written elsewhere, and one sentence says so."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import struct
import zipfile

import pytest

from advprompt import datasets, records
from advprompt.advpt import AdvPT
from advprompt.backbone.weights_files import read_checkpoint
from advprompt.cli import train
from advprompt.cli.main import dispatch
from advprompt.engine import run_folder
from advprompt.engine.checkpoints import load_checkpoint
from advprompt.engine.exports import read_start
from advprompt.report import formats
from advprompt.utils import machine
from advprompt.utils.entry import run_tool
from advprompt.utils.io import load_tensors
from tests import make_records

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp"


@pytest.fixture
def refused(tmp_path, capsys):
    """Run something as a command does: it ends in one sentence, and the canary is not there."""

    def call(door, *arguments) -> str:
        before = {path for path in tmp_path.parent.rglob("*")}
        code = run_tool(lambda argv: door(*arguments), [])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
        assert {path for path in tmp_path.parent.rglob("*")} == before
        return lines[0]

    return call


# --- pickles --------------------------------------------------------------------------------------


def short(text: str) -> bytes:
    """A SHORT_BINUNICODE opcode."""
    return b"\x8c" + bytes([len(text.encode())]) + text.encode()


def pickles(canary) -> dict[str, bytes]:
    """Pickles that make the canary, each by other opcodes or another way to a function."""
    word, code = f"V{canary}\n".encode(), f"Vopen({str(canary)!r}, 'w')\n".encode()
    inner = b"cos\nmkdir\n(" + word + b"tR."
    return {
        "reduce": inner,
        "inst": b"(" + word + b"ios\nmkdir\n.",
        "obj": b"(cos\nmkdir\n" + word + b"o.",
        "stack global": b"\x80\x04" + short("os") + short("mkdir") + b"\x93" + word + b"\x85R.",
        "memoised names": b"\x80\x04" + short("os") + b"\x940" + short("mkdir")
        + b"\x940h\x00h\x01\x93" + word + b"\x85R.",
        "newobj": b"\x80\x02cpathlib\nPath\n" + word + b"\x85\x81.",
        "eval": b"cbuiltins\neval\n(" + code + b"tR.",
        "exec of Python 2": b"c__builtin__\nexec\n(" + code + b"tR.",
        "partial": b"cfunctools\npartial\n(cos\nmkdir\n" + word + b"tR)R.",
        "through torch": b"\x80\x04" + short("torch") + short("os.mkdir") + b"\x93" + word
        + b"\x85R.",
        "nested": b"ctorch.storage\n_load_from_bytes\n(B" + struct.pack("<I", len(inner)) + inner
        + b"tR.",
        "numpy": b"cnumpy.testing._private.utils\nrunstring\n(" + code + b"}tR.",
        "build": b"ctorch.nn\nModule\n)R}V__setstate__\ncos\nmkdir\nsbVx\nb.",
        "persistent id": b"P../../canary\n.",
        "extension": b"\x80\x02\x82\x01.",
    }  # fmt: skip


def in_archive(body: bytes) -> bytes:
    """Put a pickle where torch.save has its own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


DOORS = {
    "of a run": lambda path: load_checkpoint(path),
    "of a backbone": lambda path: read_checkpoint(path),
    "to start from": lambda path: read_start(path, AdvPT),
    "a bank": lambda path: load_tensors(path),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", pickles("canary"))
def test_pickles_are_not_executed(tmp_path, refused, name, door):
    body = pickles(tmp_path / "canary")[name]
    for number, content in enumerate([body, in_archive(body), in_archive(b"\x80\x02" + body)]):
        path = tmp_path / f"model.pth.tar-{number}"
        path.write_bytes(content)
        assert str(path) in refused(DOORS[door], path)


def test_a_pickle_of_few_shots_is_not_opened(tmp_path, arguments, refused):
    """CoOp keeps its draws as pickles; ours are JSON, and a pickle under our name is replaced."""
    from advprompt.datasets.splits import read_shots

    for name, body in pickles(tmp_path / "canary").items():
        path = tmp_path / f"{name}.json"
        path.write_bytes(body)
        assert read_shots(path, {"shots": 1}) is None
    assert not (tmp_path / "canary").exists()


# --- yaml and JSON --------------------------------------------------------------------------------

DEEP = "[" * 100_000
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
YAML = {
    "apply": "ATTACK: !!python/object/apply:os.mkdir ['CANARY']",
    "apply with keywords": "ATTACK: !!python/object/apply:os.mkdir {args: ['CANARY']}",
    "new": "ATTACK: !!python/object/new:os.mkdir ['CANARY']",
    "a name": "ATTACK: !!python/name:os.system ''",
    "a module": "ATTACK: !!python/module:os ''",
    "a tuple": "ATTACK: !!python/tuple [1, 2]",
    "a long tag": "ATTACK: !<tag:yaml.org,2002:python/object/apply:os.mkdir> ['CANARY']",
    "an own tag": "%TAG ! tag:yaml.org,2002:python/\n---\nA: !object/apply:os.mkdir [CANARY]",
    "a cycle": "ATTACK: &a {TEST: *a}",
    "a cycle of lists": "ATTACK: &a [*a]",
    "a billion laughs": LAUGHS,
    "deep": "ATTACK: " + DEEP,
    "deep by indents": "\n".join(" " * n + "a:" for n in range(3000)),
    "a list": "- ATTACK",
    "a key of lists": "? [ATTACK]\n: 1",
    "a date": "ATTACK: {TEST: {EPS: 2024-01-01}}",
    "bytes": "ATTACK: {TEST: {EPS: !!binary aGk=}}",
    "a set": "ATTACK: {TEST: !!set {EPS, STEPS}}",
    "escapes": f"ATTACK: {{'{ESCAPES}': 1}}",
}  # fmt: skip


@pytest.mark.parametrize("name", YAML)
def test_yaml_is_only_keys_and_values(tmp_path, arguments, refused, name):
    path = tmp_path / "attack.yaml"
    path.write_text(YAML[name].replace("CANARY", str(tmp_path / "canary")))
    words = ["train", *arguments("AdvPT", "--attack-config-file", str(path), "--dry-run")]
    assert "\x1b" not in refused(dispatch, words)


JSON = {
    "deep": DEEP,
    "deep objects": '{"a":' * 50_000,
    "a huge number": '{"train": ' + "9" * 5000 + "}",
    "infinity": '{"train": [["a.png", 1e999, "a"]], "val": [], "test": []}',
    "nan": '{"train": NaN}',
    "null": "null",
    "a text": '"train"',
    "a list": "[[]]",
    "wrong kinds": '{"train": {"a": 1}, "val": 3, "test": null, "TRAINER.NAME": []}',
    "a lone surrogate": '{"train": [["\\ud800", "0", 0]], "val": [], "test": []}',
    "escapes": json.dumps({ESCAPES: ESCAPES}),
    "no text": "\x00\x01\x02",
}


@pytest.mark.parametrize("name", JSON)
def test_json_is_checked_at_every_door(tmp_path, pets, arguments, refused, capsys, name):
    root = tmp_path / "data/oxford_pets"
    root.mkdir(parents=True)
    (root / "images").symlink_to(pets / "oxford_pets/images")
    (root / "split_zhou_OxfordPets.json").write_text(JSON[name])
    words = arguments("AdvPT", root=root.parent)
    cfg = train.build_cfg(words)
    said = refused(datasets.COOP["oxford_pets"], cfg)  # a split
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(JSON[name])
    said += refused(run_folder.look, cfg)
    (tmp_path / "run/record.json").write_text(JSON[name])
    said += refused(dispatch, ["report", str(tmp_path / "run")])
    assert harmless(said)


# --- links, git -----------------------------------------------------------------------------------

LOOPS = {
    "to the parent": ("train/cat/up", ".."),
    "to itself": ("train/cat/self", "self"),
    "of two": ("train/cat/one", "../owl/two"),
    "to the root of all": ("test/owl/all", "/"),
    "of a split": ("train/owl/split", "../../train"),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_of_links_add_no_images(tmp_path, arguments, name):
    from PIL import Image

    for part in ("train", "test"):
        for label in ("cat", "owl"):
            (tmp_path / "data/folder" / part / label).mkdir(parents=True)
            for n in range(4):
                Image.new("RGB", (8, 8)).save(tmp_path / f"data/folder/{part}/{label}/{n}.png")
    place, target = LOOPS[name]
    (tmp_path / "data/folder" / place).symlink_to(target)
    (tmp_path / "data/folder/train/owl/two").symlink_to("../cat/one")
    words = arguments("AdvPT", root=tmp_path / "data", DATASET__NAME="Folder")
    made = datasets.OWN["folder"](train.build_cfg(words))
    assert len(made.train_x) == 8 and len(made.test) == 8


@pytest.mark.parametrize("key", ["core.fsmonitor", "core.pager", "diff.external", "alias.describe"])
def test_git_settings_of_a_fork_run_nothing(tmp_path, monkeypatch, key):
    """A run in a fork states the fork's commit."""
    from tests.cli.test_dropin import git

    fork = tmp_path / "fork"
    (fork / "trainers").mkdir(parents=True)
    (fork / "trainers/machine.py").write_text("")
    git(fork, "init", "-q")
    git(fork, "add", ".")
    git(fork, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first")
    git(fork, "config", key, f"!touch '{tmp_path}/canary'; touch '{tmp_path}/canary'; false")
    monkeypatch.setattr(machine, "__file__", str(fork / "trainers/machine.py"))
    assert machine.git_commit()
    assert not (tmp_path / "canary").exists()


# --- terminals and tables -------------------------------------------------------------------------

NAMES = [ESCAPES, "\rerror", "a\x00b", "\x7f\x08\x08", "caf\udce9", "\u2066x\u2069", "a\nb\n### c"]


def harmless(text: str) -> bool:
    return all(char in "\n\t" or (char.isprintable() and char != "\x9b") for char in text)


@pytest.mark.parametrize("form", ["terminal", "markdown", "latex", "csv", "html"])
@pytest.mark.parametrize("number", range(len(NAMES)))
def test_names_cannot_steer_a_terminal_or_a_table(tmp_path, capsys, form, number):
    name = NAMES[number].encode("utf-8", "backslashreplace").decode()  # JSON holds no other
    made = make_records.make(trainer=f"M{name}", dataset=name, backbone=f"b{name}")
    made["attacks"][0]["warnings"] = [f"w{name}"]
    records.write_record(tmp_path / "run", made)
    assert run_tool(dispatch, ["report", str(tmp_path), "--format", form]) == 0
    out, err = capsys.readouterr()
    assert harmless(out) and harmless(err)
    assert form != "markdown" or "\n### c" not in out
    if form in ("terminal", "csv"):
        out = str(tmp_path / "table")
        assert run_tool(dispatch, ["report", str(tmp_path), "--format", form, "--out", out]) == 0
        assert harmless((tmp_path / "table").read_text(encoding="utf-8"))
    capsys.readouterr()


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_and_arguments_cannot_either(tmp_path, capsys, name):
    name = name.replace("\x00", "")
    for words in (["report", name], ["train", "--trainer", name], [name], ["data", name]):
        with contextlib.suppress(SystemExit):  # argparse has its own way to end with 2
            assert run_tool(dispatch, words) == 2
        out, err = capsys.readouterr()
        assert harmless(out) and harmless(err) and err


def test_progress_bars_still_return_to_the_start_of_the_line(capsys):
    def main(argv):
        print("\r50 %\x1b", end="")

    run_tool(main, [])
    assert capsys.readouterr().out == "\r50 %\\x1b"


FORMULAS = ["=1+1", "+1+1", "-1+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", '=HYPERLINK("x")']


@pytest.mark.parametrize("text", FORMULAS)
def test_texts_in_csv_are_no_formulas(tmp_path, capsys, text):
    name = make_records.make(trainer=text, backbone=text, dataset=text)
    records.write_record(tmp_path / "run", name)
    assert run_tool(dispatch, ["report", str(tmp_path), "--format", "csv"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    found = [cell for row in rows for cell in row]
    assert sum(cell.startswith("'") for cell in found) >= 3
    assert not any(cell.startswith(formats._FORMULA) for cell in found)


def test_signed_numbers_stay_numbers():
    assert formats.csv_text([[-1, -0.5, "-1", "-1 0 2", "–", ""]]) == "-1,-0.5,-1,-1 0 2,–,"
