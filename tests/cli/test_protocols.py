"""Protocols, tests of finished runs, papers and dry runs, as the scripts' commands do them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY

from advprompt.cli import train
from advprompt.cli.main import dispatch
from advprompt.datasets import drawing, shifts
from advprompt.engine import run_folder
from advprompt.experiments.state import STATES
from advprompt.records import load_records, read_record
from advprompt.utils.entry import run_tool
from tests.conftest import REPO, ok, only_error, refusal

FOUR = ("advpt", "naptuning", "capt", "apd")
SHIFTS = ("Sketch", "Noise", "Blur", "Background", "Novel", "Patterns")
DRAWN = {f"shapes_{name.lower()}": getattr(shifts, f"Shapes{name}") for name in SHIFTS}


# --- a small world -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def world(pets, tmp_path_factory) -> Path:
    """A data root with the drawn pets and three classes of two drawn test sets."""
    root = tmp_path_factory.mktemp("world")
    (root / "oxford_pets").symlink_to(pets / "oxford_pets")
    for name in ("shapes_novel", "shapes_blur"):
        few = type("Few", (DRAWN[name],), {"class_names": classmethod(three_classes)})
        few.draw_into(root / name / DRAWN[name].version)
    return root


def three_classes(cls) -> list[str]:
    return super(cls, cls).class_names()[:3]


@pytest.fixture
def call(world, tmp_path, monkeypatch, capfd):
    """Do a command in this process: ``call("run capt xd pets 4", TARGETS="dtd") -> done``."""
    monkeypatch.chdir(REPO)
    places = {"DATA": world, "OUTPUT": tmp_path / "out", "HOME": tmp_path, "SEEDS": "1"}
    for name, value in places.items():
        monkeypatch.setenv(name, str(value))

    def do(words: str, *more: str, **env: str) -> subprocess.CompletedProcess:
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            code = run_tool(dispatch, [*words.split(), *more])
        return subprocess.CompletedProcess(words, code, *capfd.readouterr())

    return do


@pytest.fixture
def small(toy_file):
    """Overrides for the shortest run on the toy CLIP."""
    keys = (
        f"MODEL.BACKBONE.NAME file:{toy_file} INPUT.SIZE (32,32) OPTIM.MAX_EPOCH 1 TEST.PROBES 0 "
        "TRAINER.ADVPT.N_CTX 4 ATTACK.TRAIN.STEPS 1 DATALOADER.NUM_WORKERS 0 TEST.SUBSET 8 "
        "TEST.PICTURE 0 ATTACK.TEST.LIST"
    )
    return [*keys.split(), "[{'EPS': 4, 'STEPS': 1}]"]


def states(done: subprocess.CompletedProcess) -> Counter:
    """Count the states of the jobs of a dry run."""
    assert done.returncode == 0, done.stderr
    rows = [line.split("  ")[0] for line in done.stdout.splitlines() if "  " in line]
    return Counter(row for row in rows if row in STATES)


def jobs(done: subprocess.CompletedProcess) -> list[str]:
    """Return the folders, and the tests in them, that a dry run lists."""
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.split("  ")[0] in STATES]
    return [re.split("  +", line)[2] for line in lines]


def by_protocol(folder) -> dict:
    """All completed records by protocol and data set, each of which is there once."""
    found = list(load_records(folder).records.values())
    keyed = {(r["protocol"], r["dataset"]): r for r in found}
    assert len(keyed) == len(found)
    return keyed


# --- what is trained once, and what is tested of it -----------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", FOUR)
def test_prompts_of_one_source_are_tested_on_every_target(call, small, tmp_path, method):
    there = {"xd": {"TARGETS": "shapes_novel"}, "dg": {"TARGETS": "shapes_blur"}}
    for protocol, targets in there.items():
        done = call(f"run {method} {protocol} pets 4 vit_b32", *small, **targets)
        assert done.returncode == 0, done.stderr
        title = {"xd": "cross-dataset", "dg": "domain shift"}[protocol]
        assert title in done.stdout.lower()
    found = by_protocol(tmp_path / "out")
    expected = [("dg", "ShapesBlur"), ("few_shot", "OxfordPets"), ("xd", "ShapesNovel")]
    assert sorted(found) == expected
    assert {r["source"] for r in found.values()} == {"OxfordPets"}
    trained = found["few_shot", "OxfordPets"]
    for record in found.values():
        for key in ("shots", "epochs", "train_threat", "prompt_parameters", "weights_sha256"):
            assert record[key] == trained[key]
        assert record["clean"]["n"] == 8
    (model,) = (tmp_path / "out").rglob("model.pth.tar-*")
    run = model.parents[1]
    assert all(run in path.parents for path in (tmp_path / "out").rglob("record.json"))
    for protocol, targets in there.items():  # again: nothing is left to do
        words = f"run {method} {protocol} pets 4 vit_b32"
        assert states(call(words, *small, "--dry-run", **targets)) == {"done": 2}
    again = call(f"run {method} dg pets 4 vit_b32", *small, **there["dg"])
    assert again.returncode == 0 and again.stdout.count("skipped: ") == 2


@pytest.mark.slow
def test_base_to_novel_tests_the_same_prompts_on_both_halves(call, small, tmp_path):
    chosen = {"METHODS": "zsclip advmaple", "PROTOCOL": "base2new"}
    done = call("all pets 4 vit_b32", *small, **chosen)
    assert done.returncode == 0, done.stderr
    found = load_records(tmp_path / "out").records.values()
    by_kind = {(r["trainer"], r["split"]): r for r in found}
    assert set(by_kind) == {(t, s) for t in ("AdvMaPLe", "ZeroshotCLIP") for s in ("base", "new")}
    base, new = (by_kind["AdvMaPLe", split] for split in ("base", "new"))
    assert {r["protocol"] for r in by_kind.values()} == {"base2new"}
    assert (base["shots"], base["epochs"]) == (new["shots"], new["epochs"]) == (4, 1)
    assert base["seconds"]["train"] > 0 and new["train_threat"] == base["train_threat"]
    assert len(list((tmp_path / "out").rglob("model.pth.tar-*"))) == 1  # trained once
    again = call("all pets 4 vit_b32", *small, **chosen)
    assert again.stdout.count("skipped: ") == 4


@pytest.mark.slow
def test_another_test_of_a_finished_run_trains_nothing(call, small, tmp_path):
    words = "run coop main pets 4 vit_b32"
    assert call(words, *small).returncode == 0
    again = call(words, *small, "TEST.SUBSET", "4", ATTACK="linf4_tiny")
    assert again.returncode == 0 and "epoch [" not in again.stdout
    words += " --dry-run"
    assert states(call(words, *small, "TEST.SUBSET", "4", ATTACK="linf4_tiny")) == {"done": 1}
    assert states(call(words, *small, "TEST.SUBSET", "5")) == {"test": 1}
    subsets = [r["subset"] for r in load_records(tmp_path / "out").records.values()]
    assert sorted(subsets) == [4, 8]
    assert len(list((tmp_path / "out").rglob("model.pth.tar-*"))) == 1


@pytest.mark.slow
def test_an_interrupted_command_resumes(world, call, small, tmp_path):
    words = [*small, "OPTIM.MAX_EPOCH", "40", "TRAIN.CHECKPOINT_FREQ", "1"]
    out, command = tmp_path / "out", "run apd xd pets 4 vit_b32"
    process = subprocess.Popen(
        [sys.executable, "-m", "advprompt", *command.split(), *words],
        cwd=REPO,
        env=os.environ | {"TARGETS": "shapes_novel", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not list(out.rglob("model.pth.tar-3")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130 and b"interrupted" in process.stderr.read()
    assert not list(out.rglob("record.json"))
    assert states(call(command, *words, "--dry-run", TARGETS="shapes_novel"))["resume"] >= 1
    done = call(command, *words, TARGETS="shapes_novel")
    assert done.returncode == 0, done.stderr
    first = int(re.search(r"\(epoch (\d+)\)", done.stdout)[1])
    epochs = [int(n) for n in re.findall(r"^epoch \[(\d+)/40\]", done.stdout, re.M)]
    assert first >= 2 and epochs == list(range(first + 1, 41))
    assert sorted(by_protocol(out)) == [("few_shot", "OxfordPets"), ("xd", "ShapesNovel")]


@pytest.mark.slow
def test_zero_shot_is_tested_plainly_and_a_failing_target_stops_no_other(call, small, tmp_path):
    targets = {"TARGETS": "dtd shapes_blur"}  # of dtd there are no images
    done = call("run zsclip dg pets vit_b32", *small, **targets)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("see above: ZeroshotCLIP/dtd/seed1")
    assert "DescribableTextures is missing" in done.stderr
    found = by_protocol(tmp_path / "out")
    assert sorted(found) == [("zero_shot", "OxfordPets"), ("zero_shot", "ShapesBlur")]
    assert {r["source"] for r in found.values()} == {None}
    again = call("run zsclip main shapes_blur 4 vit_b32", *small)  # the same run; shots say nothing
    assert again.returncode == 0 and again.stdout.count("skipped: ") == 1


@pytest.mark.slow
def test_tests_of_finished_runs_are_those_of_the_robustness_tool(call, small, tmp_path, world):
    test = "linf4_tiny+DEFENCE.NAME=jpeg"
    done = call("run zsclip main pets vit_b32", *small, TESTS=test)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").rglob("tests/*/record.json")
    assert path.parent.name == "linf4_tiny_TEST.SUBSET-8_DEFENCE.NAME-jpeg"
    record = read_record(path)
    assert {a["steps"] for a in record["attacks"]} == {20} and len(record["attacks"]) == 2
    words = f"robustness --model-dir {path.parents[2]} --root {world} --attack-config-file"
    words += " configs/attacks/linf4_tiny.yaml --opts DEFENCE.NAME jpeg"
    again = call(words)
    assert again.returncode == 0 and "skipped: " in again.stdout, again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["advpt", "capt"])
def test_a_seed_is_the_same_alone_and_after_another(call, small, tmp_path, method):
    found = []
    for folder, seeds in (("both", "1 2"), ("alone", "2")):
        env = {"OUTPUT": str(tmp_path / folder), "SEEDS": seeds}
        assert call(f"run {method} main pets 4 vit_b32", *small, **env).returncode == 0
        (path,) = (tmp_path / folder).rglob("seed2/prompt_learner/model.pth.tar-1")
        found.append(torch.load(path, weights_only=True)["state_dict"])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.slow
def test_all_puts_every_method_under_one_attack(call, small, tmp_path):
    done = call("all pets 4 vit_b32", *small)
    assert done.returncode == 0, done.stderr
    records = load_records(tmp_path / "out").records.values()
    # TeCoA twice: prompt and fine-tuning; TGA-ZSR with and without its complement
    assert len(records) == 13 + 4 + 2
    assert {r["attacks"][0]["eps"] for r in records} == {"4/255"}
    bank = [r["train_threat"] for r in records if r["trainer"] == "AdvPT"]
    assert [threat["target"] for threat in bank] == ["embedding"]  # whatever the test is
    table = done.stdout[done.stdout.rindex("OxfordPets, few-shot") :]
    assert all(r["trainer"] in table for r in records)
    again = call("all pets 4 vit_b32", *small, METHODS="advpt apd")
    assert again.stdout.count("skipped: ") == 2


def test_a_failing_seed_ends_its_command_and_no_other_method(call, small):
    done = call("run coop main dtd 4 vit_b32", *small, SEEDS="1 2")
    assert done.returncode == 2 and done.stderr.count("DescribableTextures is missing") == 1
    done = call("all dtd 4 vit_b32", *small, SEEDS="1 2", METHODS="coop zsclip")
    assert done.returncode == 2 and done.stderr.count("DescribableTextures is missing") == 2
    assert done.stderr.splitlines()[-1].endswith("see above: coop zsclip")


# --- names, defaults and mistakes -----------------------------------------------------------------


FOLDERS = """
run advpt main shapes 4 tiny | AdvPT/tiny_advpt_tiny_4shots/seed1
run advpt main pets all vit_b16 | AdvPT/vit_b16_advpt16_-1shots/seed1
SEEDS=3 run zsclip main shapes tiny | ZeroshotCLIP/tiny/seed3
run apd main shapes 4 tiny | APD/tiny_tiny_shapes_4shots/seed1
run apd main dtd 4 tiny | APD/tiny_linf4_tiny_4shots/seed1
run APD main dtd 4 vit_b16 | APD/vit_b16_linf1_4shots/seed1
ATTACK=nap4_aa run apd main dtd 4 vit_b16 | APD/vit_b16_nap4_4shots/seed1
ATTACK=nap4 run advpt main dtd 4 vit_b16 | AdvPT/vit_b16_advpt16_4shots/seed1
ATTACK=nap4 run coop main dtd 4 vit_b16 | CoOp/vit_b16_4shots/seed1
run capt main dtd 1 vit_b16 | CAPT/vit_b16_linf1_1shots_MAX_EPOCH-20/seed1
run capt main dtd 4 vit_b16 | CAPT/vit_b16_linf1_4shots_MAX_EPOCH-50/seed1
run capt main dtd 16 vit_b16 | CAPT/vit_b16_linf1_16shots/seed1
run capt main dtd 1 vit_b16 OPTIM.MAX_EPOCH 3 | CAPT/vit_b16_linf1_1shots_MAX_EPOCH-3/seed1
run apd main dtd 4 tiny OPTIM.LR 0.1 TEST.SUBSET 9 | APD/tiny_linf4_tiny_4shots_LR-0.1/seed1
run apd main dtd 4 tiny TEST.PICTURE 0 DATASET.ROOT /x | APD/tiny_linf4_tiny_4shots/seed1
"""


def spoken(call, words: str, *more: str) -> subprocess.CompletedProcess:
    """Do a command that has its variables in front."""
    env = dict(word.split("=", 1) for word in words.split() if re.match("[A-Z.]+=", word))
    return call(" ".join(w for w in words.split() if not re.match("[A-Z.]+=", w)), *more, **env)


@pytest.mark.parametrize("case", FOLDERS.strip().splitlines())
def test_folders_say_what_was_trained(call, case):
    words, folder = case.split(" | ")
    (found,) = jobs(spoken(call, words, "--dry-run"))
    assert found.partition("/")[2] == folder


def test_targets_and_tests_lie_in_the_run_of_the_source(call):
    found = jobs(call("run apd dg shapes 4 tiny --dry-run", TESTS="linf1+TEST.SUBSET=5"))
    run = "shapes/APD/tiny_tiny_shapes_4shots/seed1"
    tests = ["linf1_TEST.SUBSET-5"]
    for name in ("sketch", "noise", "blur", "background"):
        tests += [f"dg_shapes_{name}_tiny_shapes", f"dg_shapes_{name}_linf1_TEST.SUBSET-5"]
    assert found == [run, *(f"{run} ({test})" for test in tests)]
    half = "shapes/APD/tiny_tiny_shapes_4shots_SUBSAMPLE_CLASSES-base/seed1"
    found = jobs(call("run apd base2new shapes 4 tiny --dry-run"))
    assert found == [half, f"{half} (new_tiny_shapes)"]


def test_the_first_test_images_are_those_of_the_source_alone(call):
    words, rows = "run capt dg shapes 16 tiny --dry-run", []
    for key, alone in ("TEST.FIRST", ""), ("TEST.SUBSET", ""), ("TEST.SUBSET", "TEST.SUBSET"):
        env = {"TARGETS": "shapes_blur", "SOURCE_ONLY": alone}
        _, target = jobs(call(words, key, "9", **env))
        rows.append(f"{key}-9" in target)
    assert rows == [False, True, False]


MISTAKES = """
run advpt main | usage: advprompt run
run advpt main pets | usage
run advpt main pets many | 'many' 16 usage
run advpt main pts 16 tiny | 'pts' pets DATASET
run advpt main pets 16 vit_b61 | 'vit_b61' vit_b16
run advpt main pets 16 tiny OPTIM.LRR 1 | OPTIM.LRR OPTIM.LR
run advpt main pets 16 tiny OPTIM.LR | 'OPTIM.LR' alone
run advpt main pets 16 tiny SEED | 'SEED' alone
run capt main shapes 0 tiny | SHOTS '0'
run capt train shapes 1 tiny | 'train' main
run captt main shapes 1 tiny | 'captt' capt
SEEDS=1,2 run capt main shapes 16 tiny | SEEDS '1,2' blanks
ATTACK=linf3 run capt main shapes 16 tiny | ATTACK 'linf3' linf1
TESTS=linf1_bb run capt main shapes 16 tiny | 'linf1_bb' TESTS
TESTS=linf1+SEED run capt main shapes 16 tiny | 'SEED' KEY=VALUE TESTS
TESTS=linf1+DEFENCE.NAME=jpg run capt main shapes 16 tiny | DEFENCE.NAME 'jpg'
TEST.SUBSET=1 run capt xd pets 4 | 'oxford_pets' TARGETS
run advpt ablate_vectors pets | usage
run advpt ablate_vectors pets many | 'many'
run advpt ablate_vectors pets 16 tiny TRAINER.ADVPT.N_CTX 4 | set VALUES instead
run advpt ablate_vector pets 16 tiny | 'advpt_vector'
TARGETS=pest run capt dg pets 4 | 'pest' TARGETS pets
TARGETS=pest run capt main shapes 4 tiny | 'pest' TARGETS pets
all petz 16 tiny | 'petz' DATASET
all shapes tiny | SHOTS 'tiny' usage
all shapes 16 tyny | 'tyny' tiny
METHODS=capd all shapes 16 tiny | 'capd' METHODS
PROTOCOL=fewshot all shapes 16 tiny | 'fewshot' base2new
reproduce | usage advpt|nap|capt|apd
reproduce coop | 'coop'
reproduce apd tinny | 'tinny' tiny
DATASETS=peets reproduce apd tiny | 'peets' DATASETS
reproduce apd tiny SEED | 'SEED' alone
TESTS=lin4_aa reproduce apd tiny | 'lin4_aa' TESTS
TESTS=lin4+SEED=1 reproduce apd tiny | 'lin4' TESTS
SHOTS=few reproduce capt tiny | SHOTS 'few'
ATTACKS=linf3 reproduce capt tiny | 'linf3' ATTACKS
results now | usage results
"""


@pytest.mark.parametrize("case", MISTAKES.strip().splitlines())
def test_mistakes_are_reported_in_one_sentence_before_any_work(call, tmp_path, case):
    words, said = case.split(" | ")
    done = spoken(call, words)
    line = only_error(done.returncode, done.stderr)
    assert all(word in line for word in said.split()), line
    assert not (tmp_path / "out").exists()


def test_without_clip_weights_the_default_is_said(call):
    done = call("run apd main shapes 16 --dry-run")
    assert "built-in small CLIP" in done.stderr and "vit_b16" in done.stderr
    assert jobs(done) == ["shapes/APD/tiny_tiny_shapes_16shots/seed1"]


# --- papers, results and dry runs -----------------------------------------------------------------


@pytest.mark.slow
def test_reproduce_continues_past_a_data_set_that_is_not_there(call, small, tmp_path):
    few = {"DATASETS": "dtd pets", "METHODS": "zsclip", "SHOTS": "4", "TESTS": ""}
    done = call("reproduce capt vit_b32", *small, **few)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "error: these did not finish, see above: main/dtd/vit_b32/linf4/4shots"
    assert "incomplete: dtd" in done.stdout and "note: xd is left out" in done.stderr
    assert list(by_protocol(tmp_path / "out")) == [("zero_shot", "OxfordPets")]
    again = call("reproduce capt vit_b32", *small, **few | {"DATASETS": "pets"})
    assert again.returncode == 0 and again.stdout.count("skipped: ") == 1


PAPERS = {  # trainers, parts of folders, and tests that are left out
    "advpt": (
        "ZeroshotCLIP AdvPT",
        "dg_shapes_sketch ablations/advpt_vectors/shapes (advpt_tiny_DEFENCE",
        "advpt_tiny_aa rap16",
    ),
    "nap": ("AdvPT TeCoA NAPTuning", "ablations/naptuning_depth/shapes", ""),
    "capt": ("ZeroshotCLIP CAPT", "xd_shapes_novel dg_shapes_background (tiny_shapes_aa)", ""),
    "apd": ("AdvIVLP APD", "ablations/apd_teacher/shapes", ""),
}


@pytest.mark.parametrize("paper", PAPERS)
def test_reproduce_plans_a_paper_on_the_built_in_data(call, tmp_path, paper):
    trainers, words, left_out = map(str.split, PAPERS[paper])
    done = call(f"reproduce {paper} tiny --dry-run", DATASETS="shapes")
    found = jobs(done)
    assert states(done) == {"run": len(found)} and len(set(found)) == len(found)
    assert all(f"note: test {name} is left out: " in done.stderr for name in left_out)
    assert done.stderr.count("note: test ") == len(left_out)
    assert all(any(f"/{name}/" in job for job in found) for name in trainers)
    assert all(any(word in job for job in found) for word in words)
    assert "note: " not in done.stdout  # nothing stands in the way
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [[], ["TEST.SUBSET", "50"], ["TEST.FIRST", "50"]])
def test_advpts_1000_images_are_those_of_imagenet_alone(call, given):
    from advprompt.experiments import commands

    env = {"DATASETS": "imagenet", "METHODS": "advpt", "TESTS": "", "TARGETS": "sketch"}
    context = commands.Context(os.environ | env, "")
    steps = commands.reproduce(["advpt", "vit_b16", *given], context)
    tested = {job.dataset: job.settings.test() for s in steps for job in s.jobs if not s.shows[1:]}
    keys, own = ("TEST.SUBSET", "TEST.FIRST"), {"0", given[1] if given else "1000"}
    counts = {name: {str(test[key]) for key in keys} for name, test in tested.items()}
    of_targets = own if "TEST.SUBSET" in given else {"0"}
    assert counts == {"imagenet": own, "imagenet_sketch": of_targets}


def test_results_lists_its_runs_and_no_page_is_written(call, tmp_path):
    done = call("results --dry-run", PAGE=str(tmp_path / "page.md"), SEEDS="1 2")
    found = jobs(done)
    assert len(found) == len(set(found)) > 300
    new = "eurosat/APD/tiny_robust_tiny_eurosat_16shots_SUBSAMPLE_CLASSES-base_MAX_EPOCH-20/seed1"
    assert sum(job.startswith(f"{new} (new_") for job in found) == 2
    assert not (tmp_path / "page.md").exists()


@pytest.fixture
def no_model(monkeypatch):
    """Make any loading of a backbone or an image fail."""

    refuse = Mock(side_effect=AssertionError("a dry run loads nothing"))
    for name in ("advprompt.engine.trainer.load_clip", "advprompt.utils.images.load_image"):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr("PIL.Image.open", refuse)


def test_a_dry_run_loads_and_writes_nothing(arguments, capsys, no_model, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert train.main([*arguments("AdvPT"), "--dry-run"]) == 0
    assert "1 run: 1 to run." in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_tells_what_is_done_begun_and_refused(arguments, run, capsys, tmp_path):
    argv = arguments("CoOp", ATTACK__TRAIN__TARGET="end_to_end", ATTACK__TRAIN__OBJECTIVE="ce")
    assert run(argv)[0] == 0
    assert "1 run: 1 done." in run([*argv, "--dry-run"])[1]
    assert "OPTIM.LR" in refusal(run([*argv, "OPTIM.LR", "0.5", "--dry-run"]))
    assert "1 to test" in run([*argv, "TEST.SUBSET", "5", "--dry-run"])[1]
    (tmp_path / "run" / "record.json").unlink()
    shutil.rmtree(tmp_path / "run" / "prompt_learner")
    assert "1 to resume" in run([*argv, "--dry-run"])[1]


def test_a_dry_run_lists_what_is_missing_or_refused(call, monkeypatch):
    monkeypatch.setattr("advprompt.backbone.loading.CACHE", "/nowhere")
    out = call("run apd main dtd 16 vit_b16 --dry-run").stdout
    assert "note: the weights of ViT-B/16 are not at '/nowhere/ViT-B-16.pt'; the first run" in out
    words = "run apd main dtd 16 tiny --dry-run"
    done = call(words, "MODEL.BACKBONE.NAME", "file:nosuch.pt")
    (note,) = re.findall("^note: data set .*", done.stdout, re.M)
    assert re.fullmatch(".*DescribableTextures is missing: .*/dtd' .*advprompt data check.*", note)
    assert "note: the weights of file:nosuch.pt are not at 'nosuch.pt'" in done.stdout
    done = call(words, "TRAINER.APD.TEACHER", "none")
    assert done.returncode == 2 and "1 run: 1 refused." in done.stdout
    assert "note: TRAINER.APD.TEACHER is 'none'" in done.stdout


# --- drawn test sets -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_test_sets_are_what_their_configs_name(name):
    cls = DRAWN[name]
    assert DATASET_REGISTRY.get(cls.__name__) is cls and cls.dataset_dir == name and cls.test_only
    file = str(REPO / f"configs/datasets/{name}.yaml")
    cfg = train.build_cfg(["--trainer", "ZeroshotCLIP", "--dataset-config-file", file])
    assert cfg.DATASET.NAME == cls.__name__ and cfg.DATASET.TEMPLATE == "a drawing of a {}."
    names = cls.class_names()
    assert len(set(names)) == len(names) == (24 if name == "shapes_patterns" else 32)


def test_novel_classes_are_none_of_shapes():
    novel = shifts.ShapesNovel.class_names()
    assert not set(novel) & set(drawing.shape_classes())
    held_out = {f"{colour} {shape}" for colour, shape in drawing.HELD_OUT}
    assert len(held_out & set(novel)) == 4


def test_a_cut_out_shape_is_as_it_was_drawn():
    drawn = drawing.Drawing("red", "square", "solid", "black")
    cover, ink = shifts.cut_out(drawn, 3)
    assert set(np.round(np.unique(cover), 6)) >= {0.0, 1.0} and 0.03 < cover.mean() < 0.6
    assert ink[0] > 0.5 > ink[1:].max()  # red
    on_black = drawing.draw(drawn, "test", 3) / 255
    assert np.abs(cover * ink - on_black)[cover[..., 0] == 1].max() < 0.2  # noise


def test_nothing_is_trained_on_a_test_set(arguments, run, world, tmp_path):
    argv = arguments("AdvPT", root=world)
    at = argv.index(str(REPO / "configs/datasets/oxford_pets.yaml"))
    argv[at] = str(REPO / "configs/datasets/shapes_blur.yaml")
    assert "ShapesBlur is for tests only" in refusal(run(argv))
    assert not (tmp_path / "run" / run_folder.CONFIG_FILE).exists()


def first_of_each(items, counts):
    """Keep so many items of every class."""
    return [item for y, n in enumerate(counts) for item in [i for i in items if i[1] == y][:n]]


def test_a_test_needs_neither_the_shots_nor_validation_images(arguments, run, altered, tmp_path):
    """Trained on one data set, tested on one with too few training images and none to validate."""
    few = altered(train=partial(first_of_each, counts=(2, 2, 2)), val=lambda items: [])
    best = {"TEST__FINAL_MODEL": "best_val", "OPTIM__MAX_EPOCH": 1}
    assert run(arguments("AdvPT", **best))[0] == 0
    load = ["--eval-only", "--model-dir", str(tmp_path / "run")]
    best["DATASET__CACHE_DIR"] = tmp_path / "few_cache"
    argv = arguments("AdvPT", *load, root=few, out="test", **best)
    ok(run(argv))
    record = read_record(tmp_path / "test" / "record.json")
    assert record["shots"] == 4 and record["config"]["DATASET.NUM_SHOTS"] == 4
    assert "skipped: " in run(argv)[1]
    for keys, words in ({}, "fewer than the 4 shots"), ({"DATASET__NUM_SHOTS": 2}, "best_val"):
        assert words in refusal(run(arguments("AdvPT", root=few, out="train", **best | keys)))
        assert not (tmp_path / "train" / run_folder.CONFIG_FILE).exists()


def test_long_tailed_sets_are_trained_where_asked_for(arguments, run, altered, tool, tmp_path):
    few = altered(train=partial(first_of_each, counts=(6, 2, 1)))
    quick = {"OPTIM__MAX_EPOCH": 1, "DATASET__CACHE_DIR": tmp_path / "few_cache"}
    assert "set DATASET.FEWER_SHOTS True" in refusal(run(arguments("CoOp", root=few, **quick)))
    for out, own in (("run", {"root": few, "DATASET__FEWER_SHOTS": True}), ("whole", {})):
        ok(run(arguments("CoOp", out=out, **quick | own)))
    record = read_record(tmp_path / "run" / "record.json")
    assert record["shots"] == 4 and record["trained"]["short_classes"] == 2
    assert "short_classes" not in read_record(tmp_path / "whole" / "record.json")["trained"]
    assert run_folder.stored(tmp_path / "run")[0]["DATASET.FEWER_SHOTS"] is True
    said = ok(tool(dispatch, "report", tmp_path / "run"))
    assert "fewer shots: CoOp, 4 shots had fewer images in 2 of 3 classes" in said


@pytest.mark.slow
def test_the_small_clip_knows_the_drawn_test_sets_but_not_all_of_them():
    from torch.nn.functional import normalize

    from advprompt.backbone import load_clip, text_features
    from advprompt.prompting.templates import fill

    clip = load_clip("tiny-robust")
    for cls in DRAWN.values():
        names = cls.class_names()
        texts = text_features(clip, fill("a drawing of a {}.", names))
        pictures = [cls.pixels("test", 40 * y + k, n) for y, n in enumerate(names) for k in (0, 1)]
        pixels = torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2) / 255  # (B, 3, 64, 64)
        with torch.no_grad():
            logits = normalize(clip.encode_image(pixels), dim=-1) @ texts.t()
        labels = torch.arange(len(names)).repeat_interleave(2)
        assert 0.5 < (logits.argmax(1) == labels).float().mean() <= 1, cls.__name__
