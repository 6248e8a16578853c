"""Files that other processes leave behind, and readers that expect anything."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
import torch

from advprompt.utils.errors import UserError
from advprompt.utils.io import flaw_of, load_pickle, read_json, read_yaml, write_json


def test_leftovers_of_killed_processes_are_swept(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = ended.pid
    here, target = socket.gethostname().replace(".", "-"), tmp_path / "a.json"
    gone = tmp_path / f".a.json.{dead}@{here}.00.tmp"
    old = tmp_path / ".a.json.12.00.tmp"  # as older versions named them
    kept = [f".a.json.{os.getppid()}@{here}.00.tmp", f".a.json.{dead}@elsewhere.00.tmp"]
    kept += [".a.json.13.00.tmp", f".b.json.{dead}@{here}.00.tmp", f".a.json.{'9' * 30}@x.0.tmp"]
    for path in (gone, old, *(tmp_path / name for name in kept)):
        path.write_text("half")
    os.utime(old, (time.time() - 90000,) * 2)
    write_json(target, {"a": 1})
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", *kept}
    assert read_json(target) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", r"holds \[\], expected an object"),
        (b"null", "holds None"),
        (b'{"a": NaN}', "the number nan"),
        (b'{"a": 1e999}', "the number inf"),
        (b"\xff\xfe{\x00}\x00", "not valid JSON"),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "nested over 64 deep"),
        (b"[" * 100000, "not valid JSON"),
    ],
)
def test_json_that_is_no_object_is_named(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read_json(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: &a {b: *a}", "nested over 64 deep"),
        (("a: " + "[" * 20000).encode(), "not valid yaml"),
        ("é: 1".encode("latin-1"), "not valid yaml"),
        ("a: 1".encode("utf-16"), "not valid yaml"),
        (b"a: [1\nb: 2", "line 2"),
        (b"- 1", "holds no keys"),
        (b"a: 2020-01-01", "a date"),
        (b"a: .nan", "the number nan"),
    ],
)
def test_yaml_that_is_no_configuration_is_named(tmp_path, content, words):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read_yaml(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def hostile() -> dict:
    cyclic: dict = {}
    cyclic["a"] = cyclic
    shared: list = []
    for _ in range(40):
        shared = [shared, shared]
    return {
        "cyclic": cyclic,
        "shared": shared,
        "stride 0": torch.zeros(1).as_strided((2**20, 2**17), (0, 0)),
        "sparse": torch.zeros(2, 2).to_sparse(),
        "meta": torch.zeros(2, device="meta"),
        "complex": torch.zeros(2, dtype=torch.complex64),
        "quantised": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
    }


@pytest.mark.parametrize("name", hostile())
def test_a_pickle_of_anything_but_weights_is_refused(tmp_path, name):
    torch.save({"state_dict": {"a": torch.ones(2)}, "x": hostile()[name]}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="nested over|a tensor that"):
        load_pickle(tmp_path / "a.pt")
    torch.save({"a": torch.ones(2), "b": [1, None, "x", {"c": float("nan")}]}, tmp_path / "b.pt")
    assert load_pickle(tmp_path / "b.pt")["b"][:3] == [1, None, "x"]


def test_what_our_files_hold_has_no_flaw():
    assert flaw_of(json.loads('{"a": [1, 2.5, null, true, "x", {"b": []}]}')) == ""
    assert flaw_of({"a": torch.ones(3)}) == "a Tensor"
    assert flaw_of({"a": torch.ones(3, 4).t()}, tensors=True) == ""
