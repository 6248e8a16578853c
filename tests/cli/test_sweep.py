"""Sweeps: the jobs are those of the scripts, and the pool gets through whatever happens to them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from advprompt.cli import train
from advprompt.experiments import jobs, plan, sweep
from advprompt.experiments import pool as jobs_pool
from advprompt.experiments import settings as jobs_settings
from advprompt.experiments import slurm as jobs_slurm
from advprompt.experiments import view as jobs_view
from advprompt.experiments.pool import Local, Pool
from advprompt.experiments.state import HOST, Place, epochs, last_lines, state_of
from advprompt.records import load_records, write_record
from advprompt.utils.entry import run_tool
from advprompt.utils.errors import UserError
from tests import make_records
from tests.conftest import REPO, only_error

# a run in the place of train.py: HOW SECONDS RECORD FOLDER
FAKE = """
import os, shutil, sys, time
how, seconds, record, folder = sys.argv[1:]
os.makedirs(folder, exist_ok=True)
with open(folder + "/tries", "a") as file:
    file.write(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')} "
               f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {time.time()}\\n")
print("epoch [1/2] batch [1/1]", flush=True)
time.sleep(float(seconds))
tries = len(open(folder + "/tries").readlines())
if how == "refuse":
    print("error: there is no such thing", file=sys.stderr)
    sys.exit(2)
if how == "fail" or (how == "once" and tries == 1):
    print("Traceback: it broke", file=sys.stderr)
    sys.exit(1)
if how == "kill":
    os.kill(os.getpid(), 9)
if how != "nothing":
    shutil.copy(record, folder + "/half")
    os.replace(folder + "/half", folder + "/record.json")
with open(folder + "/tries", "a") as file:
    file.write(f"end - - {time.time()}\\n")
"""


def described(tmp_path, words: str = "", trainers="zsclip coop", **extra) -> jobs.Sweep:
    """The sweep that a command line describes; by default two methods on shapes, one seed."""
    argv = ["--trainers", *trainers.split(), "--root", str(tmp_path), "--output"]
    argv += [str(tmp_path / "out"), *words.split()]
    for option, value in {
        "--datasets": "shapes",
        "--seeds": "1",
        "--config-file": "tiny",
        "--shots": "4",
    }.items():
        argv += [] if option in argv else [option, value]
    return sweep.plan(sweep.parser().parse_args(argv))


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Put short fake runs in the place of train.py: ``fakes(AdvPT="fail", seconds=0.1)``."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def use(seconds: float = 0.0, **how: str) -> None:
        def command(job):
            record = tmp_path / f"{abs(hash(job.place))}.json"
            shots = {"protocol": "zero_shot"} if job.shots == 0 else {}
            made = make_records.make(
                trainer=job.trainer,
                dataset=job.dataset,
                shots=job.shots,
                seed=job.seed,
                config=job.settings.asked(),
                **shots,
            )
            write_record(tmp_path / "record.json", made)
            (tmp_path / "record.json").rename(record)
            kind = how.get(job.trainer + job.role, how.get(job.trainer, "work"))
            words = [sys.executable, "-IS", str(script), kind, str(seconds)]
            return [*words, str(record), job.folder]

        monkeypatch.setattr(sweep, "command", command)

    return use


def work(described: jobs.Sweep, slots=None, **options) -> int:
    place = Place(described.output)
    place.take()
    try:
        return sweep.work(described.jobs(), place.read(), slots or Local(2), **options)
    finally:
        os.close(place.file)


def tries(folder) -> list[list[str]]:
    """What the fake runs of a folder wrote down: pid, threads, GPU, time; and ends."""
    path = Path(folder) / "tries"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def starts(folder) -> int:
    return sum(line[0] != "end" for line in tries(folder))


# --- the jobs are those of the scripts -----------------------------------------------------------


def script(tmp_path, call: str, **extra: str) -> list[list[str]]:
    """The arguments that a script would give to train.py, run by run."""
    noted = tmp_path / "noted"
    noted.unlink(missing_ok=True)
    env = os.environ | {
        "DATA": str(tmp_path),
        "OUTPUT": str(tmp_path / "out"),
        "PYTHON": sys.executable,
        "HOME": str(tmp_path),
        "SEEDS": "1",
        "ADVPROMPT_DRY_RUN_JOBS": str(noted),
    }
    for name in ("ATTACK", "TESTS", "TARGETS", "SOURCE_ONLY", "METHODS", "PROTOCOL"):
        env.pop(name, None)
    command = ["bash", *call.split(" ")]
    command[1] = str(REPO / "scripts" / command[1])
    done = subprocess.run(command, env=env | extra, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return plan.read_jobs(noted)


def absolute(words: list[str]) -> list[str]:
    return [str(REPO / word) if word.startswith("configs/") else word for word in words]


LONG = "DATALOADER.TRAIN_X.BATCH_SIZE 8 OPTIM.WARMUP_CONS_LR 0.00001 TRAIN.PRINT_FREQ 1 OPTIM.LR 1"
SAME = [
    ("advpt/main.sh shapes 4 tiny", "advpt", "", {}),
    ("advpt/main.sh pets all vit_b16", "AdvPT", "--datasets pets --shots all", {}),
    (
        "naptuning/main.sh flowers 1 vit_b32 OPTIM.LR 0.1",
        "naptuning",
        "--datasets flowers --shots 1 --opts OPTIM.LR 0.1",
        {"SEEDS": "3 1"},
    ),
    (f"coop/main.sh shapes 4 tiny {LONG}", "coop", f"--opts {LONG}", {}),
    (
        "coop/main.sh shapes 4 tiny MODEL.INIT_WEIGHTS naïve/é",
        "coop",
        "--opts MODEL.INIT_WEIGHTS naïve/é",
        {},
    ),
    ("capt/main.sh pets 1 vit_b16", "capt", "--datasets pets --shots 1", {}),
    (
        "capt/base2new.sh pets 4 vit_b16 OPTIM.LR 1",
        "capt",
        "--datasets pets --protocols base2new --opts OPTIM.LR 1",
        {},
    ),
    (
        "capt/xd.sh imagenet 2 vit_b16 TEST.FIRST 9 OPTIM.LR 1",
        "capt",
        "--datasets imagenet --shots 2 --protocols xd --opts TEST.FIRST 9 OPTIM.LR 1",
        {},
    ),
    (
        "advpt/xd.sh shapes 4 tiny",
        "advpt",
        "--protocols xd --targets sketch pets",
        {"TARGETS": "sketch pets"},
    ),
    ("apd/dg.sh shapes 4 tiny", "apd", "--protocols dg", {"SEEDS": "1 2"}),
    ("zsclip/main.sh shapes tiny", "zsclip", "--shots 2 8", {"SEEDS": "3 1"}),
    ("zsclip/base2new.sh shapes tiny", "zsclip", "--protocols base2new", {}),
    ("zsclip/dg.sh imagenet vit_b16", "zsclip", "--datasets imagenet --protocols dg", {}),
    ("all.sh eurosat 4 tiny", "all", "--datasets eurosat --attack-config-file common", {}),
    (
        "all.sh dtd 2 vit_b16 OPTIM.LR 1",
        "all",
        "--datasets dtd --shots 2 --attack-config-file nap4 --opts OPTIM.LR 1",
        {"ATTACK": "nap4"},
    ),
    (
        "all.sh pets 4 vit_b32_tecoa",
        "all",  # which TeCoA has not
        "--datasets pets --attack-config-file common",
        {},
    ),
    (
        "all.sh shapes 4 tiny",
        "all",
        "--protocols xd --attack-config-file common",
        {"PROTOCOL": "xd"},
    ),
]


@pytest.mark.parametrize(("call", "trainers", "words", "env"), SAME, ids=[row[0] for row in SAME])
def test_runs_are_those_of_the_script(tmp_path, call, trainers, words, env):
    config = re.search(r"(tiny|vit_\w+)", call)[1]
    seeds = env.get("SEEDS", "1")
    asked = f"{words} --seeds {seeds} --config-file {config}"
    mine = described(tmp_path, asked, trainers).jobs()
    theirs: dict[str, list[str]] = {}
    for run in script(tmp_path, call, **env):
        theirs.setdefault(run[run.index("--output-dir") + 1], absolute(run))
    assert {job.folder: job.words for job in mine} == theirs


def test_names_and_defaults_are_those_of_the_scripts(tmp_path):
    sets = [*jobs.SHORT, "shapes", "dtd", "eurosat"]
    cases = [
        (t, c, d)
        for t in ("AdvPT", "ZeroshotCLIP", "APD")
        for c in ("tiny", "vit_b16")
        for d in ("shapes", "eurosat", "dtd")
    ]
    lines = [f"full_name {name}" for name in sets]
    lines += [f"default_attack {' '.join(case)}" for case in cases]
    lines += [f"targets_of {' '.join(key)} | xargs" for key in jobs.TARGETS]
    text = f"source {REPO}/scripts/common.sh\n" + "\n".join(lines)
    env = os.environ | {"PYTHON": sys.executable}
    env.pop("TARGETS", None)
    done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True)
    mine = [jobs.SHORT.get(name, name) for name in sets]
    one = described(tmp_path)
    mine += [one.threat("", *case) for case in cases]
    mine += [" ".join(names) for names in jobs.TARGETS.values()]
    assert done.stdout.splitlines() == mine, done.stderr
    listed = re.search(r"METHODS:-(.+)}", (REPO / "scripts/all.sh").read_text())[1]
    assert listed.split() == list(jobs.METHODS)


def test_checksum_is_that_of_posix():
    for text in (b"", b"_LR-0.1", bytes(range(256)) * 3):
        theirs = subprocess.run(["cksum"], input=text, capture_output=True).stdout
        assert jobs.cksum(text) == int(theirs.split()[0])


def test_one_job_per_folder_behind_what_it_needs(tmp_path):
    words = "--protocols few_shot xd dg base2new --shots 1 4 --seeds 1 2"
    todo = described(tmp_path, words, "advpt apd zsclip").jobs()
    folders = [job.folder for job in todo]
    assert len(set(folders)) == len(folders)
    for i, job in enumerate(todo):
        assert {*job.needs, *job.after} <= set(folders[:i])
        model = "--model-dir" in job.words
        assert model == (job.trainer != "ZeroshotCLIP" and job.role in ("new", "xd", "dg"))
        where = job.words.index("--model-dir") + 1 if model else 0
        assert job.needs == ((job.words[where],) if model else ())


def test_images_that_runs_share_are_made_by_the_first(tmp_path):
    todo = described(tmp_path, "--seeds 1 2", "advpt coop apd zsclip").jobs()
    zero, *others = todo
    assert zero.trainer == "ZeroshotCLIP" and zero.attack == "advpt_tiny"
    after = {job.trainer: job.after for job in others}
    # APD moves the image tower, CoOp's threat model has no transfer attack
    assert after == {"AdvPT": (zero.folder,), "CoOp": (), "APD": ()}
    common = described(tmp_path, "--attack-config-file common", "advpt zsclip").jobs()
    assert [job.after for job in common] == [(), ()]
    # two threat models with one training attack: one bank
    first, second = described(
        tmp_path, "--config-file vit_b16 --attack-config-file advpt16 advpt16_aa", "advpt"
    ).jobs()
    assert second.after == (first.folder,)


# --- which runs are done -------------------------------------------------------------------------


def finished(job: jobs.Job, **config) -> None:
    settings = job.settings.asked() | config
    write_record(job.folder, make_records.make(seed=job.seed, config=settings))


def test_a_run_is_done_by_its_record_with_its_settings(tmp_path):
    (job,) = described(tmp_path, trainers="coop").jobs()
    assert state_of(job) == "run"
    Path(job.folder).mkdir(parents=True)
    assert state_of(job) == "run"  # a folder alone says nothing
    (Path(job.folder) / "config.json").write_text("{}")
    assert state_of(job) == "resume"
    finished(job)
    assert state_of(job) == "done"
    finished(job, **{"OPTIM.LR": 99.0})
    assert state_of(job) == "other"
    (Path(job.folder) / "record.json").write_text('{"status": "compl')
    assert state_of(job) == "resume"


def test_settings_are_those_of_a_built_configuration(tmp_path):
    words = (
        "--protocols few_shot base2new --opts INPUT.SIZE (32,32) ATTACK.TEST.DROP False OPTIM.LR 1"
    )
    for job in described(tmp_path, words, "all").jobs():
        cfg = train.setup_cfg(train.parser().parse_args(job.words))
        config = jobs_settings.records.flat_config(cfg)
        assert job.settings.agree(config)
        for key, value in {"SEED": 7, "OPTIM.LR": 2.0, "INPUT.SIZE": [32, 31]}.items():
            assert not job.settings.agree(config | {key: value}), key
    for opts in ("INPUT.TRANSFORMS ['random_flip']", "DATASET.TRANSFORMS ['random_flip']"):
        (job,) = described(tmp_path, f"--opts {opts}", "coop").jobs()
        cfg = train.setup_cfg(train.parser().parse_args(job.words))
        assert job.settings.agree(jobs_settings.records.flat_config(cfg)), opts


def test_ten_thousand_runs_are_listed_with_one_look_at_each(tmp_path, monkeypatch, capsys):
    looked: list[str] = []
    read: list[str] = []
    completed, load = jobs_settings.completed, jobs_settings.Path.read_text
    monkeypatch.setattr(
        "advprompt.experiments.state.completed", lambda f: looked.append(f) or completed(f)
    )
    monkeypatch.setattr(
        jobs_settings.Path, "read_text", lambda p, *a, **k: read.append(p) or load(p, *a, **k)
    )
    jobs_settings._read.cache_clear()
    sets = "pets flowers cars aircraft food dtd eurosat sun caltech ucf"
    seeds = " ".join(map(str, range(16)))
    argv = (
        f"--trainers all --datasets {sets} --shots 1 2 4 8 16 --seeds {seeds} --config-file vit_b16"
    )
    argv += f" --root {tmp_path} --output {tmp_path}/out --attack-config-file common --dry-run"
    assert sweep.main(argv.split()) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == "10410 runs: 10410 to run."
    assert len(looked) == len(set(looked)) == 10410
    assert len([p for p in read if p.suffix == ".yaml"]) <= 14 + 10 + 1
    assert not (tmp_path / "out").exists()  # a dry run writes nothing


# --- the pool ------------------------------------------------------------------------------------


def test_all_runs_are_done_and_reported_and_not_done_again(tmp_path, fakes, capsys):
    fakes()
    asked = described(tmp_path, "--seeds 1 2")
    assert work(asked) == 0
    out = capsys.readouterr().out
    assert "3 jobs: 3 done" in out and "CoOp" in out.split("3 jobs")[1]  # the tables
    assert [starts(job.folder) for job in asked.jobs()] == [1, 1, 1]
    assert work(asked) == 0
    assert [starts(job.folder) for job in asked.jobs()] == [1, 1, 1]
    logs = [Place(asked.output).log(job).read_text() for job in asked.jobs()]
    assert logs == ["epoch [1/2] batch [1/1]\n"] * 3


def test_what_fails_is_tried_again_and_stops_nothing_else(tmp_path, fakes, capsys):
    fakes(CoOp="fail", APD="once", AdvCoOp="refuse", MaPLe="nothing", AdvVPT="kill", FAPbase="fail")
    asked = described(tmp_path, trainers="coop apd advcoop maple advvpt zsclip")
    assert work(asked) == 1
    captured = capsys.readouterr()
    counts = {job.trainer: starts(job.folder) for job in asked.jobs()}
    assert counts == {"CoOp": 2, "APD": 2, "AdvCoOp": 1, "MaPLe": 2, "AdvVPT": 2, "ZeroshotCLIP": 1}
    err = captured.err
    assert re.search(r"CoOp .*: exit code 1\n +epoch.*\n +Traceback: it broke\n", err)
    assert "error: there is no such thing" in err and "without a completed record" in err
    assert "SIGKILL" in err and "APD" not in err and "2 done, 4 failed" in captured.out
    fakes(FAPbase="fail")  # a new sweep tries again what failed before
    assert work(asked) == 0
    asked = described(tmp_path, "--protocols base2new", "fap zsclip")
    assert work(asked) == 1
    err = capsys.readouterr().err
    assert "blocked: FAP shapes 4 shots tiny tiny_shapes new seed 1: needs FAP" in err
    assert [starts(job.folder) for job in asked.jobs()] == [1, 1, 2, 0]


def test_no_retries(tmp_path, fakes):
    fakes(CoOp="once")
    asked = described(tmp_path, trainers="coop")
    assert work(asked, retries=0) == 1
    assert starts(asked.jobs()[0].folder) == 1


def test_a_run_that_cannot_be_started(tmp_path, fakes, capsys, monkeypatch):
    fakes()
    start, asked = Local.start, described(tmp_path)

    def broken(self, job, *words):
        if job.trainer == "CoOp":
            raise OSError("no more processes")
        return start(self, job, *words)

    monkeypatch.setattr(Local, "start", broken)
    assert work(asked) == 1
    captured = capsys.readouterr()
    assert "cannot be started: no more processes" in captured.err
    assert captured.out.count("failed: CoOp") == 2 and "1 done, 1 failed" in captured.out


@pytest.mark.parametrize("gpus", [[], ["0", "3"]])
def test_each_slot_has_one_run_its_gpu_and_its_share_of_the_cores(
    tmp_path, fakes, monkeypatch, gpus
):
    monkeypatch.setattr(jobs_pool, "cores", lambda: 8)
    fakes(seconds=0.2)
    asked = described(tmp_path, "--seeds 1 2 3", "coop apd")
    assert work(asked, Local(2, gpus)) == 0
    events = []
    for job in asked.jobs():
        (pid, threads, gpu, begin), (_, _, _, end) = tries_with_gpu(job.folder)
        assert threads == "4" and gpu in (gpus or [""])
        events += [(float(begin), 1, gpu), (float(end), -1, gpu)]
    for gpu in gpus or [""]:
        running = [0]
        for _, change, where in sorted(events):
            running.append(running[-1] + change * (where == gpu))
        assert max(running) == (1 if gpus else 2)


def tries_with_gpu(folder) -> list[list[str]]:
    return [line.split(" ") for line in (Path(folder) / "tries").read_text().splitlines()]


def test_order_of_runs_that_need_or_share(tmp_path, fakes):
    fakes(seconds=0.4)
    asked = described(tmp_path, "--protocols base2new few_shot --seeds 1", "advpt zsclip")
    assert work(asked, Local(8)) == 0
    times = {}
    for job in asked.jobs():
        begin, end = tries(job.folder)
        times[job.folder] = float(begin[-1]), float(end[-1])
    for job in asked.jobs():
        for folder in (*job.needs, *job.after):
            assert times[folder][1] <= times[job.folder][0]


def forked(call) -> int:
    """Do something in a fork of this process; return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 99
        # tests that run in the background of a shell have Ctrl-C ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            code = run_tool(lambda argv: call())
        finally:
            os._exit(code)
    return pid


def wait_for(condition, seconds: float = 30.0) -> None:
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
def test_ctrl_c_stops_the_runs_and_a_restart_ends_them(tmp_path, fakes, number):
    fakes(seconds=60)
    asked = described(tmp_path, "--seeds 1 2", "coop")
    folders = [job.folder for job in asked.jobs()]
    pid = forked(lambda: work(asked))
    wait_for(lambda: all(tries(folder) for folder in folders))
    runs = [int(tries(folder)[0][0]) for folder in folders]
    os.kill(pid, number)
    assert code_of(pid) == 130
    assert not any(map(alive, runs))
    fakes()
    assert work(asked) == 0
    assert [starts(folder) for folder in folders] == [2, 2]


def test_a_run_that_cannot_be_ended_keeps_no_other_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_pool, "PATIENCE", 0.2)
    asked = described(tmp_path, "--seeds 1 2 3", "coop")
    pool, heard = Pool(asked.jobs(), Place(asked.output), Local(3), sweep.command), []

    class Run:
        def __init__(self, ends_at: str):
            self.ends_at, self.code = ends_at, None

        def poll(self):
            return self.code

        def stop(self, how="stop"):
            heard.append((self.ends_at, how))
            if heard == [("never", "stop")]:
                raise KeyboardInterrupt  # a second Ctrl-C, while the first is being answered
            self.code = 1 if how == self.ends_at else None

        def kill(self):
            self.stop("kill")

    for entry, ends_at in zip(pool.entries.values(), ("never", "stop", "kill"), strict=True):
        entry.state, entry.handle = "running", Run(ends_at)
    pool.stop()
    assert heard[1:4] == [("never", "kill"), ("stop", "kill"), ("kill", "kill")]
    assert heard[-1] == ("stop", "kill") and len(heard) == 6
    assert pool.counts() == {"waiting": 3}


def test_after_a_kill_the_runs_that_go_on_are_waited_for(tmp_path, fakes, capsys, monkeypatch):
    monkeypatch.setattr(jobs_pool, "GLANCE", 0.05)
    fakes(seconds=1.5)
    asked = described(tmp_path, "--seeds 1 2 3", "coop")
    folders = [job.folder for job in asked.jobs()]
    pid = forked(lambda: work(asked, Local(1)))
    wait_for(lambda: tries(folders[0]))
    os.kill(pid, signal.SIGKILL)
    assert code_of(pid) == -signal.SIGKILL
    run = int(tries(folders[0])[0][0])
    assert alive(run)
    fakes(seconds=0.0)
    assert work(asked, Local(1)) == 0
    assert "is being run on" in capsys.readouterr().out
    assert [starts(folder) for folder in folders] == [1, 1, 1]
    ended = [float(tries(folder)[-1][-1]) for folder in folders]
    assert ended[0] == min(ended)  # its slot was taken


def test_one_sweep_per_output_and_locks_of_the_dead_do_not_count(tmp_path, fakes):
    fakes()
    asked = described(tmp_path, trainers="zsclip")
    first, second = Place(asked.output), Place(asked.output)
    first.take()
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        second.take()
    os.close(first.file)
    owner = Path(asked.output) / f"sweep/{HOST}.pid"
    owner.write_text("1\n")  # is alive, but it is not the sweep that wrote this
    assert work(asked) == 0


def test_another_process_may_have_a_job(tmp_path, fakes, monkeypatch):
    """As a sweep on another machine that shares the folder: its job is waited for."""
    monkeypatch.setattr(jobs_pool, "GLANCE", 0.05)
    fakes(seconds=0.5)
    asked = described(tmp_path, "--seeds 1 2", "coop")
    place = Place(asked.output)
    first = asked.jobs()[0]
    place.log(first).parent.mkdir(parents=True)
    far = Local(1).start(first, sweep.command(first), place.log(first), "cpu.0")
    wait_for(lambda: tries(first.folder))
    fakes()
    assert work(asked) == 0
    assert far.poll() == 0 and starts(first.folder) == 1


def test_a_journal_that_a_crash_has_cut(tmp_path, fakes):
    fakes(seconds=0.1)
    asked = described(tmp_path, "--seeds 1 2", "coop")
    assert work(asked) == 0
    journal = Path(asked.output) / f"sweep/{HOST}.jsonl"
    text = journal.read_text()
    events = [json.loads(line) for line in text.splitlines()]
    assert [e["event"] for e in events].count("done") == 2
    journal.write_text(text[:-20] + "\nnull\n[1]\n{}\n")
    place = Place(asked.output).read()
    assert len(place.seconds) == 1 and place.usual[asked.jobs()[0].kind] >= 0.1


# --- what is shown -------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_live_table_in_a_terminal_and_lines_elsewhere(tmp_path, fakes, monkeypatch):
    fakes(seconds=0.6)
    asked = described(tmp_path, "--seeds 1 2", "coop")
    place = Place(asked.output)
    place.take()
    screen = jobs_view.view(Terminal())
    assert isinstance(screen, jobs_view.Screen)
    screen.every = 0.1
    todo = asked.jobs()
    pool = Pool(todo, place, Local(2), sweep.command, screen.tell, screen.watch)
    assert pool.run()
    screen.close(pool)
    os.close(place.file)
    text = screen.out.getvalue()
    assert "epoch 1/2" in text and "cpu.1" in text and re.search(r"\x1b\[\d+F\x1b\[J", text)
    assert "2 jobs: 2 running" in text and "2 jobs: 2 done" in text
    plain = jobs_view.view(io.StringIO())
    assert type(plain) is jobs_view.Lines
    plain.tell("done: it")
    assert re.fullmatch(r"\d\d:\d\d:\d\d done: it\n", plain.out.getvalue())


def test_last_lines_of_a_log(tmp_path):
    log = tmp_path / "log"
    assert last_lines(log) == []
    log.write_bytes(
        b"x" * 9000 + "\nepoch [3/10] batch [1/9]\n\rtest:  1%\rtest: 50% é\n\n".encode()
    )
    assert last_lines(log, 2) == ["epoch [3/10] batch [1/9]", "test: 50% é"]
    assert epochs(last_lines(log, 2)) == (3, 10) and epochs(["test"]) is None


# --- what is refused -----------------------------------------------------------------------------


MISTAKES = """
--trainers NAPTunin | trainer 'NAPTunin' (--trainers) is unknown. Did you mean NAPTuning
--datasets shape | data set 'shape' (--datasets or --targets) is unknown. Did you mean shapes
--protocols fewshot | protocol 'fewshot' (--protocols) is unknown. Did you mean few_shot?
--config-file vit_b17 | config of CoOp 'vit_b17' (--config-file) is unknown. Did you mean vit_b
--trainers apd tecoa_finetune --config-file vit_b16_x | config of APD 'vit_b16_x'
--attack-config-file linf2 | threat model 'linf2' (--attack-config-file) is unknown. Did you
--attack-config-file /x/linf1.yaml | threat model '/x/linf1.yaml'
--shots 0 | --shots has '0', expected whole numbers of at least 1, or all (zero-shot CLIP is the
--shots 4 many | --shots has 'many', expected whole numbers
--seeds 1.5 | --seeds has '1.5', expected whole numbers of at least 0
--seeds x | --seeds has 'x'
--datasets eurosat --root nowhere | nowhere', does not exist; give --root (or set DATA)
--datasets eurosat | data set EuroSAT is not there: folder
--datasets eurosat --protocols xd | for source 'eurosat' under xd; name some with --targets
--opts OPTIM.LR | overrides come in pairs KEY VALUE, but 'OPTIM.LR' stands alone
--opts OPTIM.LRR 1 | config key 'OPTIM.LRR' on the command line is unknown. Did you mean
--opts DATASET.NUM_SHOTS 1 | --opts has DATASET.NUM_SHOTS, which the sweep sets; use --shots
--opts ATTACK.THREAT linf1 | --opts has ATTACK.THREAT, which the sweep sets; use --attack-co
--jobs 0 | --jobs is 0, expected 1 or more
--gpus 0,x | --gpus is '0,x', expected all, none, or indices such as 0,1
--retries -1 | --retries is -1, expected 0 or more
--slurm --time soon | --time is 'soon', expected minutes or H:MM:SS
--slurm --slurm-options account | --slurm-options has 'account', expected KEY=VALUE
"""


@pytest.mark.parametrize("case", MISTAKES.strip().splitlines())
def test_mistakes_are_told_in_one_sentence(tmp_path, capsys, monkeypatch, case):
    monkeypatch.setattr(sweep, "work", None)  # nothing is to be run
    words, said = case.split(" | ")
    argv = words.split()
    for option, value in {
        "--trainers": "coop",
        "--datasets": "shapes",
        "--root": str(tmp_path),
        "--config-file": "tiny",
        "--output": str(tmp_path / "out"),
    }.items():
        argv += [] if option in argv else [option, value]
    assert said in only_error(run_tool(sweep.main, argv), capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    argv = f"--trainers coop --datasets shapes --config-file tiny --output {tmp_path}/out"
    assert "cannot write into folder" in only_error(
        run_tool(sweep.main, argv.split()), capsys.readouterr().err
    )


def test_gpus_by_environment(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert sweep.gpus("all") == ["2", "5"] and sweep.gpus("none") == []
    assert sweep.gpus("0,1") == ["0", "1"]
    assert Local(3, ["2", "5"]).slots == ["gpu2.0", "gpu5.0", "gpu2.1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert sweep.gpus("all") == []


def test_methods_under_other_threat_models_are_noted(tmp_path, capsys):
    argv = f"--trainers zsclip coop --datasets shapes --config-file tiny --output {tmp_path}/out"
    assert sweep.main([*argv.split(), "--dry-run"]) == 0
    assert (
        "methods differ in their threat models (advpt_tiny, tiny_shapes)" in capsys.readouterr().err
    )
    assert sweep.main([*argv.split(), "--dry-run", "--attack-config-file", "common"]) == 0
    assert capsys.readouterr().err == ""


# --- Slurm ---------------------------------------------------------------------------------------


class FakeExecutor:
    """What is used of submitit's executor, with processes in the place of a cluster."""

    made: list = []

    def __init__(self, folder, cluster):
        self.folder, self.cluster, self.parameters = folder, cluster, {}
        FakeExecutor.made.append(self)

    def update_parameters(self, **options):
        self.parameters |= options

    def submit(self, run):
        process = subprocess.Popen(run.command, cwd=run.cwd, start_new_session=True)
        return types.SimpleNamespace(
            job_id=process.pid,
            done=lambda: process.poll() is not None,
            cancel=lambda check: process.terminate(),
        )


def test_jobs_go_through_submitit(tmp_path, fakes, monkeypatch):
    function = lambda command, verbose, cwd: types.SimpleNamespace(command=command, cwd=cwd)  # noqa: E731
    fake = types.SimpleNamespace(
        AutoExecutor=FakeExecutor, helpers=types.SimpleNamespace(CommandFunction=function)
    )
    monkeypatch.setitem(sys.modules, "submitit", fake)
    fakes(CoOp="once", APD="refuse")
    words = (
        "--slurm --partition gpu --time 1:30:00 --jobs 2 --slurm-options slurm_account=v mem_gb=8"
    )
    argv = f"--trainers coop apd zsclip --datasets shapes --config-file tiny {words}"
    args = sweep.parser().parse_args(argv.split())
    slots = sweep.launcher(args, str(tmp_path / "out"))
    asked = described(tmp_path, trainers="coop apd zsclip")
    assert work(asked, slots) == 1
    counts = {job.trainer: starts(job.folder) for job in asked.jobs()}
    assert counts == {"CoOp": 2, "APD": 1, "ZeroshotCLIP": 1}
    parameters = FakeExecutor.made[-1].parameters
    assert parameters.pop("name") in [job.folder.split("/")[-2] for job in asked.jobs()]
    assert parameters == {
        "timeout_min": 90,
        "gpus_per_node": 1,
        "slurm_partition": "gpu",
        "slurm_account": "v",
        "mem_gb": 8,
    }


def test_without_submitit_or_slurm(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    argv = f"--trainers coop --datasets shapes --config-file tiny --output {tmp_path}/out --slurm"
    assert "pip install 'submitit'" in only_error(
        run_tool(sweep.main, argv.split()), capsys.readouterr().err
    )

    def nowhere(folder, cluster):
        raise RuntimeError('Could not detect "srun"')

    monkeypatch.setitem(
        sys.modules, "submitit", types.SimpleNamespace(AutoExecutor=nowhere, helpers=None)
    )
    assert "finds no cluster here" in only_error(
        run_tool(sweep.main, argv.split()), capsys.readouterr().err
    )


@pytest.mark.slow
def test_submitit_itself_with_processes_for_a_cluster(tmp_path, fakes):
    pytest.importorskip("submitit")
    fakes(CoOp="once", APD="refuse")
    asked = described(tmp_path, trainers="coop apd zsclip")
    slots = jobs_slurm.Slurm(2, asked.output, minutes=2, cluster="local")
    assert work(asked, slots) == 1
    counts = {job.trainer: starts(job.folder) for job in asked.jobs()}
    assert counts == {"CoOp": 2, "APD": 1, "ZeroshotCLIP": 1}


# --- real runs -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_runs_stopped_and_started_again(tmp_path, pets, toy_file, warm_python):
    """Two methods; the second is stopped in its training and resumed; the script skips both."""
    opts = (
        f"MODEL.BACKBONE.NAME file:{toy_file} INPUT.SIZE (32,32) OPTIM.MAX_EPOCH 40 "
        "TRAIN.CHECKPOINT_FREQ 1 DATALOADER.NUM_WORKERS 0 ATTACK.TEST.STEPS 1 TEST.SUBSET 6 "
        "TEST.PICTURE 0 TEST.PROBES 0"
    )
    out = tmp_path / "out"
    argv = "--trainers zsclip coop --datasets pets --shots 4 --seeds 1 --config-file vit_b32 "
    argv += f"--attack-config-file common --root {pets} --output {out} --jobs 2 --gpus none"
    argv = [*argv.split(), "--opts", *opts.split()]
    first = forked(lambda: sweep.main(argv))
    wait_for(lambda: list(out.glob("oxford_pets/CoOp/*/seed1/prompt_learner/model*")), 200)
    os.kill(first, signal.SIGTERM)
    assert code_of(first) == 130
    assert not list(out.glob("oxford_pets/CoOp/*/seed1/record.json"))
    second = forked(lambda: sweep.main(argv))
    assert code_of(second) == 0
    assert len(load_records(out).records) == 2
    (log,) = out.glob("sweep/logs/oxford_pets/CoOp/*/seed1.log")
    assert "Resuming prompt_learner" in log.read_text()
    for method in ("zsclip", "coop"):
        call = ["bash", "scripts/" + method + "/main.sh", "pets", "4", "vit_b32", *opts.split()]
        env = {"PYTHON": str(warm_python), "DATA": str(pets), "OUTPUT": str(out), "SEEDS": "1"}
        done = subprocess.run(
            call,
            cwd=REPO,
            env=os.environ | env | {"ATTACK": "linf1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "skipped: " in done.stdout, done.stdout + done.stderr
