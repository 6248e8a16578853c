"""One run on several gloo processes: the same result as on one, one writer, and clean ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed import TCPStore

from advprompt.engine.trainer import RobustTrainer
from advprompt.evaluation import partial
from advprompt.evaluation.bank import load_bank
from advprompt.evaluation.evaluator import Evaluation
from advprompt.evaluation.partial import Partial
from advprompt.records import read_record
from advprompt.utils import distributed
from advprompt.utils.errors import UserError
from tests.conftest import REPO, only_error, weights

# what may differ between two runs' records
# the digest of the weights holds their rounding
OURS = {"processes", "seconds", "created", "config", "git_commit", "prompts_sha256"}
NOISE = ("seconds", "batch_logits", "logit_spread")  # of an attack's entry


@pytest.fixture
def launch():
    """Run train.py on N processes as torchrun does: ``launch(N, argv) -> [(code, out, err)]``."""

    def call(count: int, argv: list[str], **env) -> list[tuple[int, str, str]]:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        group = {
            "WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": store.port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
            "TORCHELASTIC_RESTART_COUNT": 0,
            **env,
        }
        started = []
        for rank in range(count):
            own = {k: str(v) for k, v in {**group, "RANK": rank, "LOCAL_RANK": rank}.items()}
            started.append(
                subprocess.Popen(
                    [sys.executable, "train.py", *argv],
                    cwd=REPO,
                    text=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"} | own,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
        ends = [process.communicate(timeout=120) for process in started]
        return [(process.returncode, *end) for process, end in zip(started, ends, strict=True)]

    return call


def apart(one: dict, other: dict) -> float:
    """The largest difference between two checkpoints' weights."""
    one, other = one["state_dict"], other["state_dict"]
    assert one.keys() == other.keys()
    return max((one[k] - other[k]).abs().max().item() for k in one)


def facts(folder) -> dict:
    """A record without what differs from run to run."""
    record = {k: v for k, v in read_record(folder / "record.json").items() if k not in OURS}
    for attack in record["attacks"]:
        for part in (attack, attack["checks"]):
            for name in NOISE:
                part.pop(name, None)
        attack["checks"] = {
            k: round(v, 6) if isinstance(v, float) else v for k, v in attack["checks"].items()
        }
    return record


# --- the same result ----------------------------------------------------------------------------

# 12 training images: batches of 5 leave unequal parts, of 11 (AdvPT) one row for two processes.
# Differences of 1e-7 grow where the sign of a pixel's gradient turns, and where Adam divides
# gradients near 0 by themselves; so the steps are short, but still 100 times the tolerance.
CASES = {
    "AdvPT": (2, "AdvPT", {"DATALOADER__TRAIN_X__BATCH_SIZE": 11}),
    "CAPT": (2, "CAPT", {"TRAINER__CAPT__ALPHA": "acc"}),
    "CoOp": (2, "CoOp", {"INPUT__TRANSFORMS": "('random_resized_crop', 'random_flip')"}),
}
TRAINED = {
    "half": (
        3,
        "AdvCoOp",
        {
            "TRAINER__ADVCOOP__AT_LOSS": "half",
            "TRAINER__ADVERSARIAL__ACCUMULATE": 2,
            "DATALOADER__TRAIN_X__BATCH_SIZE": 2,
        },
    ),
    "APD": (2, "APD", {"TRAINER__APD__TEACHER": "offline"}),
    "NAPTuning": (
        2,
        "NAPTuning",
        {
            "TRAINER__NAPTUNING__N_CTX": 2,
            "OPTIM__NAME": "sgd",
            "DATALOADER__TRAIN_X__IN_MEMORY": "yes",
        },
    ),
}
TRAINED = {k: (n, t, keys | {"TEST__NO_TEST": True}) for k, (n, t, keys) in TRAINED.items()}


@pytest.mark.slow
@pytest.mark.parametrize("count, trainer, keys", [*TRAINED.values()], ids=[*TRAINED])
def test_many_processes_train_as_one_does(white_box, launch, run, tmp_path, count, trainer, keys):
    _both(white_box, launch, run, tmp_path, count, trainer, keys)


@pytest.mark.parametrize("count, trainer, keys", [*CASES.values()], ids=[*CASES])
def test_many_processes_do_what_one_does(
    arguments, white_box, launch, run, tmp_path, count, trainer, keys
):
    make = arguments if trainer == "AdvPT" else white_box
    ends = _both(make, launch, run, tmp_path, count, trainer, keys)
    assert facts(tmp_path / "one") == facts(tmp_path / "many")
    counts = [read_record(tmp_path / out / "record.json")["processes"] for out in ("one", "many")]
    assert counts == [1, count]
    banks = [
        {path.name: load_bank(path) for path in (tmp_path / f"banks of {out}").glob("*")}
        for out in ("one", "many")
    ]
    assert banks[0].keys() == banks[1].keys()
    for name, bank in banks[0].items():
        torch.testing.assert_close(bank.features, banks[1][name].features, rtol=0, atol=1e-6)
    assert len(banks[0]) == {"AdvPT": 3, "CAPT": 0, "CoOp": 1}[trainer]
    _one_writer(ends, tmp_path / "many")


def _both(make, launch, run, folder, count, trainer, keys) -> list[tuple[int, str, str]]:
    """Do one run on one process and on several, and compare what was learned."""
    common = {
        "DATALOADER__TRAIN_X__BATCH_SIZE": 5,
        "DATALOADER__TEST__BATCH_SIZE": 5,
        "OPTIM__MAX_EPOCH": 2,
        "TRAIN__CHECKPOINT_FREQ": 1,
        "OPTIM__WARMUP_EPOCH": -1,
        "OPTIM__LR": 0.01,
        "TRAIN__PRINT_FREQ": 1,
    }

    def argv(out):
        banks = {"DATASET__FEATURE_DIR": folder / f"banks of {out}"}
        return make(trainer, out=out, **common | keys | banks)

    code, out, err = run(argv("one"))
    assert code == 0, err
    ends = launch(count, argv("many"))
    assert [end[0] for end in ends] == [0] * count, ends
    one, many = (weights(folder / out, 2) for out in ("one", "many"))
    assert apart(one, many) < 1e-5
    assert apart(one, weights(folder / "one", 1)) > 1e-3  # a wrong gradient would be seen
    assert shown(out) == pytest.approx(shown(ends[0][1]), abs=2e-3)
    return ends


def shown(out: str) -> list[float]:
    """The losses and accuracies that a run has printed."""
    lines = [line for line in out.splitlines() if line.startswith("epoch [")]
    words = " ".join(line.partition(" loss ")[2].partition(" lr ")[0] for line in lines).split()
    numbers = [float(w.strip("()")) for w in words if w.strip("()").replace(".", "").isdigit()]
    assert len(numbers) >= 4 * len(lines) > 0
    return numbers


def _one_writer(ends, folder: Path) -> None:
    assert "robust accuracy" in ends[0][1] and "epoch [2/2]" in ends[0][1]
    assert [out for _, out, _ in ends[1:]] == [""] * (len(ends) - 1)
    assert "image/s" not in "".join(err for _, _, err in ends[1:])  # no second progress bar
    assert [p.name for p in folder.glob("log*")] == ["log.txt"]
    assert not (folder / "unfinished").exists() and not list(folder.glob("**/*.tmp"))


# --- ends and beginnings ------------------------------------------------------------------------


def test_a_mistake_is_told_once(arguments, launch):
    ends = launch(2, arguments("AdvPT", MODEL__BACKBONE__NAME="file:/none.pt"))
    assert [code for code, _, _ in ends] == [2, 2]
    assert "none.pt" in only_error(2, "".join(err for _, _, err in ends))


def test_what_processes_cannot_share_is_refused(white_box, launch):
    ends = launch(2, white_box("CoOp", TEST__SAVE_ADV=True))
    assert "TEST.SAVE_ADV" in only_error(ends[0][0], "".join(err for _, _, err in ends))


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_killed_process_ends_the_run_and_one_goes_on(white_box, run, tmp_path):
    keys = {"OPTIM__MAX_EPOCH": 25, "TRAIN__CHECKPOINT_FREQ": 1, "TEST__NO_TEST": True}
    words = "--nproc_per_node 2 --master_addr 127.0.0.1 --master_port 0 --rdzv_backend c10d"
    words += " --rdzv_endpoint 127.0.0.1:0 --local_addr 127.0.0.1 train.py"
    command = [sys.executable, "-m", "torch.distributed.run", *words.split()]
    torchrun = subprocess.Popen(
        [*command, *white_box("CoOp", **keys)],
        cwd=REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "prompt_learner" / "model.pth.tar-2").exists():
            assert torchrun.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(_children(torchrun.pid)[1], signal.SIGKILL)
        killed = time.monotonic()
        _, err = torchrun.communicate(timeout=60)
    finally:
        torchrun.kill()
    assert torchrun.returncode != 0 and time.monotonic() - killed < 30
    sentences = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(sentences) <= 1 and all("start the same command again" in s for s in sentences)
    assert not (tmp_path / "run" / "prompt_learner" / "model.pth.tar-25").exists()
    code, out, err = run(white_box("CoOp", **keys))
    assert code == 0 and "Resuming" in out, err
    assert run(white_box("CoOp", out="whole", **keys))[0] == 0
    assert apart(*(weights(tmp_path / f, 25) for f in ("run", "whole"))) < 1e-5


def test_what_two_processes_found_is_not_computed_again(white_box, run, tmp_path, monkeypatch):
    """An attack cut short on two processes goes on in one, whatever was finished counting once."""
    keys = {"DATALOADER__TEST__BATCH_SIZE": 1, "OPTIM__MAX_EPOCH": 1}
    kept = []
    known, attack = partial.load, Evaluation.run_attack
    monkeypatch.setattr(partial, "load", lambda path, new: kept.append(path) or known(path, new))
    monkeypatch.setattr(Evaluation, "clean_up", lambda self: None)
    assert run(white_box("CoOp", out="one", **keys))[0] == 0
    done = json.loads(kept[0].read_text())
    assert None not in done["right"] and len(done["right"]) > 2
    (tmp_path / "one" / "record.json").rename(tmp_path / "record.json")

    half = {
        k: v / 2 if isinstance(v, (int, float)) and v is not True else v
        for k, v in done["checks"].items()
    }
    for rank, own in enumerate(({0}, {2})):
        right = [r if i in own else None for i, r in enumerate(done["right"])]
        state = {"key": done["key"], "right": right, "checks": half, "seconds": 1.0 + rank}
        kept[0].with_suffix(f".{rank}.json").write_text(json.dumps(state))
    kept[0].unlink()
    seen = []
    monkeypatch.setattr(
        Evaluation,
        "run_attack",
        lambda self, spec, where, *a, **k: seen.extend(where) or attack(self, spec, where, *a, **k),
    )
    assert run(white_box("CoOp", out="one", **keys))[0] == 0
    assert len(seen) == len(done["right"]) - 2
    assert not list(kept[0].parent.glob("*.*.json"))
    again = read_record(tmp_path / "one" / "record.json")
    before = json.loads((tmp_path / "record.json").read_text())
    assert again["attacks"][0]["correct"] == before["attacks"][0]["correct"]
    assert again["attacks"][0]["seconds"] > 2  # the slower of the two


def test_results_of_processes_add_up_once():
    whole = Partial("key", [True, None, None], {}, 1.0)
    parts = [
        Partial("key", [None, None, False], {"n": 1, "max_linf": 0.5}, 2.0),
        Partial("key", [None, True, None], {"n": 1}, 5.0),
        Partial("key", [False, None, None], {"n": 1}, 9.0),  # known before
    ]
    whole.add(parts)
    assert (whole.right, whole.seconds) == ([True, True, False], 6.0)
    assert (whole.checks["n"], whole.checks["max_linf"]) == (2, 0.5)
    whole.add(parts)
    assert (whole.checks["n"], whole.seconds) == (2, 6.0)


# --- parts --------------------------------------------------------------------------------------


@pytest.fixture
def as_one_of(monkeypatch):
    """Pretend to be one of many processes, which exchange nothing."""

    def pretend(rank: int, world: int, **more) -> None:
        monkeypatch.setattr(distributed, "_group", {"rank": rank, "world": world, **more})

    return pretend


@pytest.mark.parametrize("count", [1, 2, 5, 32])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_every_row_and_item_belongs_to_one_process(as_one_of, count, world):
    rows, total, dealt = [], 0.0, []
    for rank in range(world):
        as_one_of(rank, world)
        own, weight = distributed.share(count)
        assert range(count)[own]  # a process without rows gets one that does not count
        rows += list(range(count)[own]) if weight else []
        total += weight
        dealt.append(distributed.deal(range(count), 3))
    assert sorted(rows) == list(range(count)) and total == pytest.approx(1)
    assert sorted(i for own in dealt for i in own) == list(range(count))
    for own in dealt:  # whole groups of neighbours, but for the last of all
        groups = [own[i : i + 3] for i in range(0, len(own), 3)]
        assert all(group[0] % 3 == 0 and group[-1] - group[0] == len(group) - 1 for group in groups)


def test_one_process_exchanges_nothing():
    values = torch.ones(3)
    parameter = nn.Parameter(torch.ones(2))
    distributed.sum_gradients([parameter])
    assert parameter.grad is None
    assert distributed.total(values) is values and distributed.mean(values, 1.0) is values
    assert distributed.gather("a") == ["a"] and distributed.agree(lambda: 3) == 3
    assert distributed.spread(str, [1, 2]) == ["1", "2"] and distributed.is_main()


def test_a_gpu_for_each_process(as_one_of, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    gpu = torch.device("cuda")
    assert distributed.device(torch.device("cpu")).type == "cpu"
    assert distributed.device(gpu) == gpu and not chosen
    assert "2 GPUs are visible" in capsys.readouterr().out
    as_one_of(3, 4, local=1)
    assert distributed.device(gpu) == torch.device("cuda", 1) and chosen == [1]
    as_one_of(2, 4, local=2)
    with pytest.raises(UserError, match="--nproc_per_node 2"):
        distributed.device(gpu)


def test_each_process_makes_its_own_images(build, as_one_of):
    keys = {"INPUT__TRANSFORMS": "('random_resized_crop', 'random_flip')"}
    loader = build("CoOp", DATALOADER__TRAIN_X__IN_MEMORY="yes", **keys).train_loader_x

    def batches():
        torch.manual_seed(3)
        return [batch["img"] for batch in loader]

    alone, parts = batches(), []
    for rank in range(3):
        as_one_of(rank, 3)
        parts.append(batches())
    for whole, *shares in zip(alone, *parts, strict=True):
        for rank, share in enumerate(shares):
            assert torch.equal(share[rank::3], whole[rank::3]) and share.any((1, 2, 3)).sum() < 4
        assert torch.equal(sum(shares), whole)  # the others' are black


def test_data_parallel_is_refused(build, monkeypatch):
    whole = RobustTrainer.build_data_loader

    def wrapped(self):
        whole(self)
        self.model_of_theirs = nn.DataParallel(nn.Linear(1, 1))

    monkeypatch.setattr(RobustTrainer, "build_data_loader", wrapped)
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=0.*torchrun"):
        build("CoOp")


def test_a_loss_that_is_no_mean_is_refused(build, as_one_of, monkeypatch):
    from advprompt.capt import CAPT

    monkeypatch.setattr(CAPT, "mean_of_samples", False)
    build("CAPT")
    as_one_of(0, 2)
    with pytest.raises(UserError, match="not a mean over samples"):
        build("CAPT")


def test_trainers_of_a_fork_are_refused(as_one_of, monkeypatch):
    from advprompt.engine import run

    monkeypatch.setattr(run.TRAINER_REGISTRY, "get", lambda name: object)
    run._check_processes("Theirs")
    as_one_of(0, 2)
    with pytest.raises(UserError, match="trainer Theirs is the fork's own"):
        run._check_processes("Theirs")


def test_processes_of_different_runs_are_refused(build, as_one_of, monkeypatch, tmp_path):
    from advprompt.engine import run, run_folder

    trainer = build("CoOp")
    distributed.check_same("numbers", lambda: pytest.fail("one process has nobody to ask"))
    as_one_of(0, 2)
    monkeypatch.setattr(distributed, "gather", lambda value: [value, value])
    distributed.check_same("numbers", lambda: [1])
    monkeypatch.setattr(distributed, "gather", lambda value: [value, "another"])
    trainer.task = run_folder.Task("train", trainer.output_dir, trainer.output_dir)
    with pytest.raises(UserError, match="2 processes of this run have different training images"):
        trainer.train()
    with pytest.raises(UserError, match="different test images"):
        trainer.test()
    with pytest.raises(UserError, match="different settings"):
        run.start(trainer.cfg)


@pytest.mark.parametrize("size", ["", "1", "many"])
def test_a_size_of_the_world_alone_starts_nothing(monkeypatch, size):
    monkeypatch.setattr(distributed, "_group", {})
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    distributed.join()
    assert distributed.world() == 1


def test_a_timeout_that_is_no_number_is_refused(monkeypatch):
    for name, value in (("WORLD_SIZE", 2), ("RANK", 0), ("ADVPROMPT_TIMEOUT", "soon")):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match="ADVPROMPT_TIMEOUT is 'soon'"):
        distributed.join()
