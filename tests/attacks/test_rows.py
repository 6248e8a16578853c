"""Banks that do not fit into memory: written as they come, read row by row, never whole."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from advprompt.advpt import BankLoader
from advprompt.evaluation import bank as banks
from advprompt.evaluation.rows import Rows, save_rows
from advprompt.utils.errors import UserError
from advprompt.utils.io import load_tensors, save_tensors
from benchmarks import bank_rows, memory
from tests.conftest import REPO

ADVICE = "delete it"
N, D = 100, 7


@pytest.fixture
def values():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def path(values, tmp_path):
    path = tmp_path / "rows.safetensors"
    columns = {"index": torch.arange(N), "labels": torch.arange(N) % 3}
    save_rows(path, "features", values.split(30), (N, D), columns, {"kind": "test", "a": [1]})
    return path


def test_the_file_is_what_save_tensors_writes(path, values, tmp_path):
    tensors, meta = load_tensors(path)  # which verifies the checksum
    assert torch.equal(tensors["features"], values)
    assert tensors["labels"].tolist() == [i % 3 for i in range(N)]
    assert (meta["kind"], meta["a"]) == ("test", [1])
    save_tensors(tmp_path / "other", tensors)
    assert load_tensors(tmp_path / "other")[1]["checksum"] == meta["checksum"]


def test_rows_come_by_number_and_in_blocks(path, values):
    rows = Rows(path, "features", advice=ADVICE)
    assert (len(rows), tuple(rows.shape), rows.nbytes) == (N, (N, D), 4 * N * D)
    chosen = torch.tensor([5, 99, 0, 5])
    assert torch.equal(rows[chosen], values[chosen])
    assert torch.equal(rows[10:20], values[10:20]) and torch.equal(rows[::9], values[::9])
    assert torch.equal(torch.cat(list(rows.blocks(33))), values)
    assert len(rows[torch.tensor([], dtype=torch.int64)]) == len(rows[3:3]) == 0
    columns = {name: rows.column(name) for name in ("index", "labels")}
    rows.verify(**columns)
    with pytest.raises(UserError, match="checksum"):
        rows.verify(index=columns["index"], labels=columns["labels"] + 1)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_file_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged"):
        Rows(path, "features", advice=ADVICE)


def test_other_files_are_refused(path, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Rows(tmp_path / "none", "features", advice=ADVICE)
    with pytest.raises(UserError, match="damaged"):
        Rows(path, "pixels", advice=ADVICE)
    with pytest.raises(UserError, match="other rows"):
        Rows(path, "labels", advice=ADVICE)
    content = json.dumps({"features": {"dtype": "F32", "shape": [2, 1 << 60]}}).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(UserError, match="damaged"):
        Rows(path, "features", advice=ADVICE)


@pytest.mark.parametrize("blocks", ["few", "wide", "double"])
def test_wrong_blocks_leave_the_old_file(path, values, blocks):
    before = path.read_bytes()
    given = {"few": [values[:9]], "wide": [values[:, :3]], "double": [values.double()]}[blocks]
    with pytest.raises(ValueError):
        save_rows(path, "features", given, (N, D), {}, {})
    assert path.read_bytes() == before


def join(folder, count, *, chunk=16):
    """A bank of random rows, as a run joins it from its parts."""
    parts = banks.Parts(folder / "parts", bank_rows.KEY, count, 1, chunk)
    for number in range(len(parts)):
        features = torch.randn(len(parts.span(number)), D, generator=torch.manual_seed(number))
        parts.save(number, features, {"n": len(features)}, 1.0, bank=folder / "none")
    path = folder / f"{bank_rows.KEY}.safetensors"
    banks.join(parts, path, [i % 3 for i in range(count)], None)
    return path


def test_a_large_bank_gives_the_batches_of_a_small_one(tmp_path, monkeypatch):
    path = join(tmp_path, N)
    small = banks.load_bank(path)
    assert isinstance(small.features, torch.Tensor) and small.seconds == 7
    monkeypatch.setattr(banks, "IN_MEMORY", 100)
    large = banks.load_bank(path, key=bank_rows.KEY)
    assert isinstance(large.features, Rows)
    assert torch.equal(torch.cat(list(large.blocks())), torch.cat(list(small.blocks())))
    loaders = [BankLoader(bank, 32, 1, torch.device("cpu")) for bank in (small, large)]
    for one, other in zip(*loaders, strict=True):
        assert torch.equal(one["img"], other["img"]) and torch.equal(one["label"], other["label"])


def test_a_large_bank_is_verified(tmp_path, monkeypatch):
    path = join(tmp_path, N)
    monkeypatch.setattr(banks, "IN_MEMORY", 100)
    with pytest.raises(UserError, match="another bank"):
        banks.load_bank(path, key="1" * 64)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        banks.load_bank(path)


PROBE = """
import sys
from pathlib import Path
from benchmarks import bank_rows, memory
from trainers import bank, rows
rows.BLOCK, folder, count = 1 << 20, Path(sys.argv[1]), 20_000
bank_rows.measure(folder / "warm", 64, 512, 64, 32)  # what is loaded on first use
for bank.IN_MEMORY in (1 << 20, 1 << 30):
    work = lambda: bank_rows.measure(folder / str(bank.IN_MEMORY), count, 512, 256, 32)
    print(memory.peak_of(work, "cpu"))
print(4 * 512 * count)
"""


@pytest.mark.slow
@pytest.mark.skipif(not memory.RESET.exists(), reason="Linux tells the peak memory of a process")
def test_memory_does_not_grow_with_the_bank(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path)], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    on_disk, in_memory, size = map(int, done.stdout.split())
    assert on_disk < size / 2 < in_memory, done.stdout


def test_the_benchmark_prints_its_steps(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert bank_rows.main(["--rows", "500", "--width", "8", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "one epoch, shuffled" in out and "500 rows of 8" in out
    steps = bank_rows.io.read_json(file)["steps"]
    assert len(steps) == 4 and all(step["peak"] > 0 for step in steps)
    assert bank_rows.run_tool(bank_rows.main, ["--rows", "0"]) == 2
