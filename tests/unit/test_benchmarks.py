"""The benchmarks compare equal things. What they measure, time, no test looks at."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from toy import toy_state_dict

from advprompt.backbone.loading import make_adapter
from benchmarks import budget, gpu, jobs, memory, plain, run, timing


@pytest.fixture(scope="module")
def clip():
    return make_adapter(toy_state_dict(), name="toy", provider="open_clip")


@pytest.mark.parametrize("row", range(8))
def test_both_sides_of_a_ratio_give_the_same(clip, row):
    job = jobs.ratio_table(clip, quick=True, many=12)[row]()
    assert job.difference() < 1e-4
    for side in (job.plain, job.ours):
        assert torch.isfinite(side()).all()
    frozen = itertools.chain(clip.model.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in frozen)


def test_a_wrong_result_would_be_seen(clip, monkeypatch):
    job = jobs.tuning(clip, 5, vectors=4, batch=3)
    real = plain.text_features
    monkeypatch.setattr(plain, "text_features", lambda model: real(model).roll(1, 0))
    assert job.difference() > 0.1


def test_the_plain_side_computes_all_positions(clip):
    lengths = []
    block = clip.model.transformer.resblocks[0]
    hook = block.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape))
    jobs.tuning(clip, 5, vectors=4, batch=3).plain()
    hook.remove()
    assert [tuple(shape[:2]) for shape in lengths] == [(5, clip.context_length)]


@pytest.mark.parametrize(("code", "in_attacks"), [(jobs.ADVIVLP, 0), (jobs.FAP, 2)])
def test_an_attack_goes_back_through_the_text_where_its_code_does(
    clip, monkeypatch, code, in_attacks
):
    """torchattacks asks for the images' gradients alone, FAP's attack fills the prompts' too."""
    deep, seen = jobs.deep, []

    def watched(*args):
        model = deep(*args)
        model.text_prompts.register_hook(lambda gradient: seen.append(1))
        return model

    monkeypatch.setattr(jobs, "deep", watched)
    jobs.training(clip, 5, 2, 0, code=code).plain()
    assert len(seen) == in_attacks + 1  # PGD-2, then the step's own gradients


def test_rounds_take_turns_after_a_warm_up():
    done = []
    ways = {name: lambda n=name: done.append(n) for name in "ab"}
    ticks = itertools.count()
    taken = timing.paired(ways, pairs=3, clock=lambda: next(ticks))
    assert "".join(done) == "ab" * 4
    assert taken == {"a": [1, 1, 1], "b": [1, 1, 1]}
    assert timing.ratio([4, 9, 6], [2, 3, 1]) == 3


def test_the_table_names_job_ratio_and_difference(tmp_path, capsys):
    file = tmp_path / "rows.json"
    words = ["--quick", "--backbone", "tiny", "--jobs", "1", "--pairs", "1", "--no-memory"]
    run.main([*words, "--json", str(file)])
    out = capsys.readouterr().out
    assert "AdvPT tuning step, 37 classes, 32 vectors" in out
    (row,) = run.io.read_json(file)["rows"]
    assert row["ratio"] > 0 and row["max_difference"] < 1e-4 and 0 < row["share_of_peak"]
    assert run.run_tool(run.main, ["--backbone", "tiny", "--jobs", "9"]) == 2
    assert "--jobs 9 is no row; there are rows 1 to 8" in capsys.readouterr().err


@pytest.mark.skipif(not memory.RESET.exists(), reason="this system does not report peak memory")
def test_peak_memory_is_that_of_the_work_alone():
    before = torch.ones(16 * 2**20)  # 64 MiB that are there already
    small = memory.peak_of(lambda: torch.ones(2**20), "cpu")
    large = memory.peak_of(lambda: torch.ones(32 * 2**20), "cpu")
    assert before.sum() > 0
    assert small < 48 * 2**20 < 120 * 2**20 < large < 200 * 2**20


@pytest.mark.slow
@pytest.mark.skipif(not memory.RESET.exists(), reason="this system does not report peak memory")
def test_each_side_is_measured_in_a_process_of_its_own():
    plainly, ours = (
        memory.of_side(1, side, "tiny", "cpu", quick=True, many=5) for side in ("plain", "ours")
    )
    assert plainly > 2 * ours  # 37 x 77 positions against a shared prefix


def test_the_budget_table_times_whole_jobs(clip, monkeypatch):
    monkeypatch.setattr(jobs, "backbone", lambda name, device: clip)
    rows = budget.table("cpu", rounds=1, batch=2, size=64)
    assert len(rows) == 6 and "AdvPT bank, Pets 16 shots" in budget.shown(rows)
    # 592 images of 37 classes, the last incomplete batch of 32 dropped, 100 epochs
    assert [row["units"] for row in rows] == [296, 1900, 28800, 800000, 18345, 2500]
    for row in rows:
        assert row["seconds"] > 0 and row["limit_seconds"] > 0, row


def test_bf16_attacks_of_the_budget_differ_from_float32(clip):
    fine, coarse = (jobs.bank(clip, 2, 3, prec=prec).ours() for prec in ("fp32", "bf16"))
    assert fine.dtype == coarse.dtype == torch.float32 and not torch.equal(fine, coarse)


def test_the_comparison_of_devices_runs_on_the_cpu_and_notices_what_is_apart(capsys):
    assert gpu.main(["tf32", "--device", "cpu"]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["part"] == "tf32" and row["holds"] and 0 < row["figure"] < 1e-5
    assert not gpu.line("too far", 0.1, 0.01)["holds"]
    assert not gpu.line("too few", 0.99, 0.995, least=True)["holds"]
