"""Sweeps: which jobs they plan, and that the pool gets through whatever happens to these."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from advprompt.cli import sweep, train
from advprompt.cli.main import dispatch
from advprompt.config.keys import METHODS
from advprompt.engine.checkpoints import LEARNER, save_checkpoint
from advprompt.engine.data import listed
from advprompt.experiments import pool as pools
from advprompt.experiments import settings as settings_of
from advprompt.experiments import state
from advprompt.experiments.jobs import Job
from advprompt.experiments.pool import Local, Pool, last_lines
from advprompt.experiments.state import state_of
from advprompt.experiments.view import View
from advprompt.records import flat_config, load_records, write_record
from advprompt.utils.entry import run_tool
from advprompt.utils.io import tensors_digest
from tests import fake_run, make_records
from tests.conftest import REPO, only_error


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
    monkeypatch.chdir(REPO)
    for name in ("DATA", "OUTPUT", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def given(tmp_path, words: str, trainers: str) -> list[str]:
    """A command line; by default of shapes, one seed."""
    defaults = f"--datasets shapes --seeds 1 --config-file tiny --shots 4 --root {tmp_path}"
    start = ["--trainers", *trainers.split(), *f"{defaults} --output {tmp_path}/out".split()]
    return [*start, *words.split()]


def planned(tmp_path, words: str = "", trainers="zsclip coop") -> list[Job]:
    """The jobs of a command line; by default two methods."""
    return sweep.plan(sweep.parser().parse_args(given(tmp_path, words, trainers)))[0]


def finished(job: Job, folder=None, **config) -> None:
    """Write the record of a job."""
    shots = {"protocol": "zero_shot"} if job.shots == 0 else {}
    asked = {"config": job.settings.asked() | config, "dataset": job.dataset, **shots}
    made = make_records.make(trainer=job.trainer, shots=job.shots, seed=job.seed, **asked)
    write_record(folder or job.run, made)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Run jobs as a sweep does, with fakes for runs: ``work(jobs, CoOp="fail") -> exit code``."""

    def do(jobs, slots=None, seconds: float = 0.0, retries: int = 1, **how: str) -> int:
        made = {}
        for i, job in enumerate(jobs):
            finished(job, tmp_path / f"records/{i}")
            made[f"{job.run} {job.test}"] = str(tmp_path / f"records/{i}/record.json")
        fake = fake_run.Fake(made, {k.replace("_", " "): v for k, v in how.items()}, seconds)
        monkeypatch.setattr(sweep, "WORK", fake)
        with sweep.interruptible():
            return sweep.work(
                jobs, str(tmp_path / "out"), slots or Local(3), dispatch, retries=retries
            )

    return do


def starts(job: Job) -> list[list]:
    return [line for line in fake_run.lines(job.run) if line[0] == job.test]


def ends(job: Job) -> list[float]:
    return [line[2] for line in fake_run.lines(job.run) if line[:2] == ["end", job.test]]


# --- the jobs ------------------------------------------------------------------------------------


def test_one_run_is_trained_once_and_its_tests_need_it(tmp_path):
    words = "--protocols few_shot xd dg base2new --shots 1 4 --seeds 1 2"
    jobs = planned(tmp_path, words, "advpt apd zsclip")
    keys = [job.key for job in jobs]
    assert len(set(keys)) == len(keys)
    trained = {job.run: job.key for job in jobs if not job.needs}
    for i, job in enumerate(jobs):
        assert {*job.after, *filter(None, [job.needs])} <= set(keys[:i])
        assert job.needs in (None, trained[job.run])
        cfg = train.build_cfg(job.words)
        assert job.needs is None or cfg.OUTPUT_DIR == "" or job.trainer == "ZeroshotCLIP"
    roles = {job.role for job in jobs}
    assert roles == {"", "base", "new", "xd", "dg"}


def test_two_tests_of_one_training(tmp_path):
    threats = "--attack-config-file linf1 linf1_aa"
    first, second = planned(tmp_path, threats, "apd")
    assert first.run == second.run and second.needs == first.key
    assert (first.test, second.test) == ("linf1", "linf1_aa")
    bank, other = planned(tmp_path, "--attack-config-file advpt_tiny linf1", "advpt")
    assert bank.run == other.run


def test_images_that_runs_share_are_made_by_the_first(tmp_path):
    zero, *others = planned(tmp_path, "--attack-config-file advpt_tiny", "advpt coop zsclip")
    assert zero.trainer == "ZeroshotCLIP"
    after = (zero.key,)
    assert {job.trainer: job.after for job in others} == {"AdvPT": after, "CoOp": after}
    # APD moves the image tower, and linf1 has no attack on the tower alone
    moved = planned(tmp_path, "--attack-config-file advpt_tiny", "zsclip apd")
    through = planned(tmp_path, "--attack-config-file linf1", "zsclip coop")
    assert [job.after for job in (*moved, *through)] == [(), (), (), ()]


def test_a_run_is_done_by_a_record_with_its_settings(tmp_path):
    (job,) = planned(tmp_path, trainers="coop")
    assert state_of(job)[0] == "run"
    Path(job.run).mkdir(parents=True)
    assert state_of(job)[0] == "run"  # a folder alone says nothing
    config = Path(job.run) / "config.json"
    config.write_text(json.dumps(job.settings.training()))
    assert state_of(job)[0] == "resume"
    finished(job)
    assert state_of(job)[0] == "done"
    finished(job, **{"TEST.SUBSET": 77})
    assert state_of(job)[0] == "test"
    finished(job, Path(job.run) / "tests/any")
    assert state_of(job)[0] == "done"
    (Path(job.run) / "tests/any/config.json").write_text('{"load_epoch": 5}')
    assert state_of(job)[0] == "test"
    config.write_text(json.dumps(job.settings.training() | {"OPTIM.LR": 99.0}))
    state, why = state_of(job)
    assert state == "refuse" and "OPTIM.LR = 99.0" in why
    (Path(job.run) / "record.json").write_text('{"status": "compl')
    assert state_of(job)[0] == "refuse"


def test_a_record_of_other_data_or_another_model_is_not_done(tmp_path, work):
    for part in ("train", "test"):
        for i, name in enumerate("ab"):
            (tmp_path / "folder" / part / name).mkdir(parents=True)
            for n in range(4):
                image = Image.new("RGB", (8, 8), (50 * n, 99 * i, 0))
                image.save(tmp_path / "folder" / part / name / f"{n}.png")
    (job,) = planned(tmp_path, "--datasets folder --shots 2", "coop")
    data, model = listed(state.cfg_of(job)), {LEARNER + ".x": torch.ones(2)}
    facts = {"trainer": "CoOp", "dataset": "Folder", "classes": 2, "config": job.settings.asked()}
    facts |= {"clean": 8, "n": 8, "transfer": 0, "white_box": 0, "data_sha256": data.digest}
    made = make_records.make(**facts, prompts_sha256=tensors_digest(model))
    write_record(job.run, made)
    checkpoint = Path(job.run) / LEARNER / "model.pth.tar-1"
    save_checkpoint(checkpoint, {"state_dict": {"x": torch.ones(2)}})
    assert state_of(job) == ("done", "")
    save_checkpoint(checkpoint, {"state_dict": {"x": torch.zeros(2)}})
    os.utime(checkpoint, (time.time() + 9,) * 2)
    assert state_of(job)[0] == "refuse" and "record of another model" in state_of(job)[1]
    checkpoint.unlink()
    assert Pool([job], str(tmp_path / "out"), Local(1), None).counts() == {"done": 1}
    Image.new("RGB", (8, 8)).save(tmp_path / "folder/test/b/3.png")
    kind, why = state_of(job)
    assert kind == "refuse" and "holds a run on other data" in why
    assert Pool([job], str(tmp_path / "out"), Local(1), None).counts() == {"waiting": 1}
    assert work([job], CoOp="refuse") == 1  # its old record does not make it done
    shutil.rmtree(tmp_path / "folder")  # nothing to compare it with
    assert state_of(job) == ("done", "")


def test_settings_are_those_of_a_built_configuration(tmp_path):
    words = "--protocols main base2new --opts INPUT.SIZE (32,32) ATTACK.TEST.DROP False OPTIM.LR 1"
    found = planned(tmp_path, words, "all")
    found += planned(tmp_path, "--opts INPUT.TRANSFORMS ['random_flip']", "coop")
    found += planned(tmp_path, "--opts DATASET.TRANSFORMS ['random_flip']", "coop")
    for job in found:
        config = flat_config(train.build_cfg(job.words))
        asked = job.settings.asked()
        assert settings_of.differing(asked, config) == ""
        for key, value in {"SEED": 7, "OPTIM.LR": 2.5, "INPUT.SIZE": [32, 31]}.items():
            assert settings_of.differing(asked, config | {key: value}) == key


def test_ten_thousand_runs_are_listed_in_seconds(tmp_path, capsys):
    sets = "pets flowers cars aircraft food dtd eurosat sun caltech ucf"
    seeds = " ".join(map(str, range(12)))
    argv = f"--trainers all --datasets {sets} --shots 1 2 4 8 16 --seeds {seeds}"
    argv += f" --config-file vit_b16 --root {tmp_path} --output {tmp_path}/out --dry-run"
    began = time.process_time()
    assert dispatch(["sweep", *argv.split(), "--attack-config-file", "common"]) == 0
    assert time.process_time() - began < 5
    assert "\n10810 runs: 10810 to run.\n" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()  # a dry run writes nothing


# --- the pool ------------------------------------------------------------------------------------


def test_all_runs_are_done_and_reported_and_not_done_again(tmp_path, work, capsys):
    jobs = planned(tmp_path, "--seeds 1 2")
    assert work(jobs) == 0
    out = capsys.readouterr().out
    assert "3 jobs: 3 done" in out and "CoOp" in out.split("3 jobs")[1]  # the tables
    assert work(jobs) == 0
    assert [len(starts(job)) for job in jobs] == [1, 1, 1]
    logs = [path.read_text() for path in (tmp_path / "out/sweep").rglob("*_log.out")]
    assert len(logs) == 3 and all("epoch [1/2] batch [1/1]\n" in log for log in logs)


def test_what_fails_is_tried_again_and_stops_nothing_else(tmp_path, work, capsys):
    jobs = planned(tmp_path, trainers="coop apd advcoop maple advvpt zsclip")
    how = {"CoOp": "fail", "APD": "once", "AdvCoOp": "refuse", "MaPLe": "nothing", "AdvVPT": "kill"}
    assert work(jobs, **how) == 1
    out, err = capsys.readouterr()
    counts = {job.trainer: len(starts(job)) for job in jobs}
    assert counts == {"CoOp": 2, "APD": 2, "AdvCoOp": 1, "MaPLe": 2, "AdvVPT": 2, "ZeroshotCLIP": 1}
    assert "RuntimeError: it broke" in err and "error: there is no such thing" in err
    assert err.count("without a completed record") == 3
    assert "APD" not in err and "2 done, 4 failed" in out
    assert work(jobs) == 0  # a new sweep tries again what failed before


def test_what_needs_a_failed_run_is_blocked(tmp_path, work, capsys):
    jobs = planned(tmp_path, "--protocols base2new", "fap coop")
    assert work(jobs, FAP="fail", CoOp_new="fail", retries=0) == 1
    err = capsys.readouterr().err
    assert "blocked: FAP shapes 4 shots tiny tiny_shapes new seed 1: needs FAP" in err
    counts = {f"{job.trainer} {job.role}": len(starts(job)) for job in jobs}
    assert counts == {"FAP base": 1, "FAP new": 0, "CoOp base": 1, "CoOp new": 1}


def test_a_run_that_cannot_be_started(tmp_path, work, capsys, monkeypatch):
    submit, jobs = Local.submit, planned(tmp_path)

    def broken(self, job, *words):
        if job.trainer == "CoOp":
            raise OSError("no more processes")
        return submit(self, job, *words)

    monkeypatch.setattr(Local, "submit", broken)
    assert work(jobs) == 1
    out, err = capsys.readouterr()
    assert "cannot be started: no more processes" in err
    assert out.count("failed: CoOp") == 2 and "1 done, 1 failed" in out


@pytest.mark.parametrize("gpus", [[], ["0", "MIG-3"]])
def test_each_slot_has_one_run_its_gpu_and_its_share_of_the_cores(
    tmp_path, work, monkeypatch, gpus
):
    monkeypatch.setattr(pools, "cores", lambda: 8)
    jobs = planned(tmp_path, "--seeds 1 2", "coop apd")
    assert work(jobs, Local(2, gpus), seconds=0.2) == 0
    events = []
    for job in jobs:
        (_, _, threads, gpu, begin), end = starts(job)[0], ends(job)[0]
        assert threads == "4" and gpu in (gpus or [""])
        events += [(begin, 1, gpu), (end, -1, gpu)]
    for gpu in gpus or [""]:
        running = [0]
        for _, change, where in sorted(events):
            running.append(running[-1] + change * (where == gpu))
        assert max(running) <= (1 if gpus else 2)


def test_order_of_runs_that_need_or_share(tmp_path, work):
    words = "--protocols base2new few_shot --attack-config-file advpt_tiny"
    jobs = planned(tmp_path, words, "advpt zsclip")
    assert work(jobs, Local(8), seconds=0.2) == 0
    began = {job.key: starts(job)[0][-1] for job in jobs}
    ended = {job.key: ends(job)[0] for job in jobs}
    for job in jobs:
        for key in {*job.after, *filter(None, [job.needs])}:
            assert ended[key] <= began[job.key]


def forked(call) -> int:
    """Do something in a fork of this process; return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = run_tool(lambda argv: call())
        finally:
            os._exit(code)
    return pid


def wait_for(condition, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_runs_and_a_restart_ends_them(tmp_path, work, number):
    jobs = planned(tmp_path, "--seeds 1 2", "coop")
    pid = forked(lambda: work(jobs, seconds=60))
    wait_for(lambda: all(starts(job) for job in jobs))
    runs = [starts(job)[0][1] for job in jobs]
    os.kill(pid, number)
    assert code_of(pid) == 130
    wait_for(lambda: not any(map(alive, runs)), 5)
    assert work(jobs) == 0
    assert [len(starts(job)) for job in jobs] == [2, 2]


def test_after_a_kill_the_runs_that_continue_are_waited_for(tmp_path, work, capsys, monkeypatch):
    monkeypatch.setattr(pools, "GLANCE", 0.05)
    jobs = planned(tmp_path, "--seeds 1 2", "coop")
    pid = forked(lambda: work(jobs, Local(1), seconds=3))
    wait_for(lambda: starts(jobs[0]))
    os.kill(pid, signal.SIGKILL)
    assert code_of(pid) == -signal.SIGKILL
    assert alive(starts(jobs[0])[0][1])
    assert work(jobs, Local(1)) == 0
    assert f"is being run by {starts(jobs[0])[0][1]}@" in capsys.readouterr().out
    assert [len(starts(job)) for job in jobs] == [1, 1]
    assert ends(jobs[0]) < ends(jobs[1])  # its slot was taken


# --- what is shown -------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_live_table_in_a_terminal_and_lines_elsewhere(tmp_path, work, monkeypatch):
    screen = View(Terminal())
    screen.every = 0.1
    monkeypatch.setattr(sweep, "View", lambda: screen)
    assert work(planned(tmp_path, "--seeds 1 2", "coop"), Local(2), seconds=1.5) == 0
    text = screen.out.getvalue()
    assert "epoch 1/2" in text and "cpu.1" in text and re.search(r"\x1b\[\d+F\x1b\[J", text)
    assert "2 jobs: 2 running" in text and "2 jobs: 2 done" in text
    plain = View(io.StringIO())
    plain.tell("done: it")
    assert re.fullmatch(r"\d\d:\d\d:\d\d done: it\n", plain.out.getvalue())


def test_the_time_left_comes_from_the_records_of_alike_jobs(tmp_path):
    jobs = planned(tmp_path, "--seeds 1 2 3", "coop")
    finished(jobs[0])
    left = Path(jobs[0].run, "unfinished")  # by a kill right after the record was written
    left.mkdir()
    pool = Pool(jobs, str(tmp_path / "out"), Local(1), None)
    assert not left.exists()
    assert pool.counts() == {"done": 1, "waiting": 2} and len(pool.seconds) == 1


def test_last_lines_of_a_log(tmp_path):
    log = tmp_path / "log"
    assert last_lines(log) == []
    text = "\nepoch [3/10] batch [1/9]\n\rtest:  1%\rtest: 50% é\n\n"
    log.write_bytes(b"x" * 9000 + text.encode())
    assert last_lines(log, 2) == ["epoch [3/10] batch [1/9]", "test: 50% é"]


# --- what is refused -----------------------------------------------------------------------------


MISTAKES = """
--trainers NAPTunin | 'NAPTunin' METHODS naptuning
--datasets shape | 'shape' --datasets shapes
--protocols fewshot | 'fewshot' main
--config-file vit_b17 | 'vit_b17' CoOp vit_b16
--trainers apd tecoa_finetune --config-file vit_b16_x | 'vit_b16_x' APD
--attack-config-file linf2 | 'linf2' --attack-config-file linf1
--attack-config-file /x/linf1.yaml | '/x/linf1.yaml' --attack-config-file
--shots 0 | '0' SHOTS
--shots 4 many | 'many' SHOTS
--seeds 1.5 | '1.5' SEEDS
--seeds x | 'x' SEEDS
--datasets eurosat | EuroSAT is missing folder
--datasets eurosat --protocols xd | 'eurosat' --targets
--opts OPTIM.LR | pairs 'OPTIM.LR' alone
--opts OPTIM.LRR 1 | 'OPTIM.LRR' OPTIM.LR
--opts DATASET.NUM_SHOTS 1 | DATASET.NUM_SHOTS --shots
--opts ATTACK.THREAT linf1 | ATTACK.THREAT --attack-config-file
--jobs 0 | --jobs 0, 1
--gpus 0,x | --gpus '0,x' none
--retries -1 | --retries -1,
--slurm --time 0 | --time 0, 1
--slurm --slurm-options account | --slurm-options 'account', KEY=VALUE
--dry-run --jobs 0 | --jobs 0, 1
--dry-run --retries -1 | --retries -1,
--dry-run --slurm --time 0 | --time 0, 1
"""


@pytest.mark.parametrize("case", MISTAKES.strip().splitlines())
def test_mistakes_are_reported_in_one_sentence(tmp_path, capsys, monkeypatch, case):
    monkeypatch.setattr(sweep, "work", None)  # nothing is to be run
    words, said = case.split(" | ")
    argv = given(tmp_path, words, "coop")  # of an option given twice, the last counts
    code, (out, err) = run_tool(dispatch, ["sweep", *argv]), capsys.readouterr()
    line = only_error(code, err)
    assert all(word in line for word in said.split()) and not out, line
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    argv = given(tmp_path, "", "coop")
    line = only_error(run_tool(dispatch, ["sweep", *argv]), capsys.readouterr().err)
    assert "cannot write into folder" in line


def test_gpus_by_environment(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert sweep.gpus("all") == ["2", "5"] and sweep.gpus("none") == []
    assert sweep.gpus("0,1") == ["0", "1"]
    assert Local(3, ["2", "5"]).slots == ["gpu2.0", "gpu5.0", "gpu2.1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert sweep.gpus("all") == []


def test_methods_under_other_threat_models_are_noted(tmp_path, capsys):
    argv = ["sweep", *given(tmp_path, "--dry-run", "zsclip coop")]
    assert dispatch(argv) == 0
    said = "methods differ in their threat models (advpt_tiny, tiny_shapes)"
    assert said in capsys.readouterr().err
    assert dispatch([*argv, "--attack-config-file", "common"]) == 0
    assert capsys.readouterr().err == ""


def test_all_methods_are_also_ones_own(tmp_path, monkeypatch, capsys):
    assert dispatch(["sweep", *given(tmp_path, "--dry-run", "all")]) == 0
    assert "Mine" not in capsys.readouterr().err
    monkeypatch.setitem(METHODS, "Mine", type("Mine", (METHODS["CoOp"],), {}))
    monkeypatch.setenv("OUTPUT", str(tmp_path / "out"))
    for words in ["sweep", *given(tmp_path, "--dry-run", "all")], ["all", "shapes", "4", "tiny"]:
        assert dispatch([*words, *["--dry-run"] * (words[0] == "all")]) == 0
        assert "Mine has no config 'tiny' and is left out" in capsys.readouterr().err


# --- Slurm ---------------------------------------------------------------------------------------


def test_slurm_gets_its_parameters(tmp_path, monkeypatch):
    import submitit

    make = Mock()
    monkeypatch.setattr(submitit, "AutoExecutor", make)
    words = "--slurm --time 90 --jobs 2 --slurm-options slurm_partition=gpu mem_gb=8"
    argv = f"--trainers coop --datasets shapes --config-file tiny {words}"
    slots = sweep.launcher(sweep.parser().parse_args(argv.split()))
    (job,) = planned(tmp_path, trainers="coop")
    slots.submit(job, tmp_path, slots.slots[0], sweep.WORK)
    make.assert_called_once_with(tmp_path, cluster="slurm")
    make.return_value.submit.assert_called_once_with(sweep.WORK, job.words)
    parameters = {"name": "CoOp-shapes-1", "stderr_to_stdout": True, "timeout_min": 90}
    parameters |= {"gpus_per_node": 1, "slurm_partition": "gpu", "mem_gb": 8}
    make.return_value.update_parameters.assert_called_once_with(**parameters)
    again = sweep.WORK.checkpoint(job.words)  # what submitit queues again after a time limit
    assert (again.function, again.args) == (sweep.WORK, (job.words,))


def test_without_a_cluster(tmp_path, capsys):
    argv = given(tmp_path, "--slurm", "coop")
    line = only_error(run_tool(dispatch, ["sweep", *argv]), capsys.readouterr().err)
    assert "finds no cluster here" in line


# --- real runs -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_runs_stopped_and_started_again(tmp_path, pets, toy_file):
    """Two methods; the second is stopped in its training and resumed."""
    opts = (
        f"MODEL.BACKBONE.NAME file:{toy_file} INPUT.SIZE (32,32) OPTIM.MAX_EPOCH 40 "
        "TRAIN.CHECKPOINT_FREQ 1 DATALOADER.NUM_WORKERS 0 ATTACK.TEST.STEPS 1 TEST.SUBSET 6 "
        "TEST.PICTURE 0 TEST.PROBES 0"
    )
    out = tmp_path / "out"
    argv = "--trainers zsclip coop --datasets pets --shots 4 --seeds 1 --config-file vit_b32 "
    argv += f"--attack-config-file common --root {pets} --output {out} --jobs 2 --gpus none"
    argv = [*argv.split(), "--opts", *opts.split()]
    first = forked(lambda: dispatch(["sweep", *argv]))
    wait_for(lambda: list(out.glob("oxford_pets/CoOp/*/seed1/prompt_learner/model*")), 200)
    os.kill(first, signal.SIGTERM)
    assert code_of(first) == 130
    assert not list(out.glob("oxford_pets/CoOp/*/seed1/record.json"))
    assert code_of(forked(lambda: dispatch(["sweep", *argv]))) == 0
    assert len(load_records(out).records) == 2
    logs = [path.read_text() for path in out.glob("sweep/oxford_pets/CoOp/*/seed1/*/*_log.out")]
    assert any("Resuming prompt_learner" in log for log in logs)
