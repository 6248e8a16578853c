"""Protocols beyond one data set, dry runs and the reproduction of papers, as a user calls them."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY

from advprompt.attacks import AttackSpec, run_attack
from advprompt.attacks.cost import attack_forwards
from advprompt.attacks.cost import test_forwards as forwards_of_test
from advprompt.cli import train
from advprompt.datasets import drawing, shapes, shifts
from advprompt.engine import run_folder
from advprompt.experiments import plan, sizes
from advprompt.records import load_records, read_record
from advprompt.utils.errors import UserError
from tests.conftest import REPO, only_error

FOUR = ("advpt", "naptuning", "capt", "apd")
DRAWN = {
    "shapes_sketch": shifts.ShapesSketch,
    "shapes_noise": shifts.ShapesNoise,
    "shapes_blur": shifts.ShapesBlur,
    "shapes_background": shifts.ShapesBackground,
    "shapes_novel": shifts.ShapesNovel,
    "shapes_patterns": shifts.ShapesPatterns,
}


# --- a small world -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def world(pets, tmp_path_factory) -> Path:
    """A data root with the drawn pets and three classes of two drawn test sets."""
    root = tmp_path_factory.mktemp("world")
    (root / "oxford_pets").symlink_to(pets / "oxford_pets")
    for name in ("shapes_novel", "shapes_blur"):
        few = type("Few", (DRAWN[name],), {"class_names": classmethod(three_classes)})
        few.draw_into(root / name / DRAWN[name].recipe())
    return root


def three_classes(cls) -> list[str]:
    return super(cls, cls).class_names()[:3]


@pytest.fixture
def environment(world, tmp_path, warm_python):
    """What the scripts read from the environment."""
    return os.environ | {
        "DATA": str(world),
        "OUTPUT": str(tmp_path / "out"),
        "PYTHON": str(warm_python),
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "SEEDS": "1",
    }


@pytest.fixture
def shell(environment):
    """Call ``bash SCRIPT ARGS``: ``shell("capt/xd.sh", "pets", "4", TARGETS="shapes_novel")``."""

    def call(script: str, *words: str, **extra: str) -> subprocess.CompletedProcess:
        command = ["bash", str(REPO / "scripts" / script), *words]
        return subprocess.run(
            command, env=environment | extra, capture_output=True, text=True, timeout=600
        )

    return call


@pytest.fixture
def small(toy_file):
    """Overrides for the shortest run on the toy CLIP."""
    return [
        "MODEL.BACKBONE.NAME",
        f"file:{toy_file}",
        "INPUT.SIZE",
        "(32,32)",
        "OPTIM.MAX_EPOCH",
        "1",
        "TRAINER.ADVPT.N_CTX",
        "4",
        "ATTACK.TRAIN.STEPS",
        "1",
        "DATALOADER.NUM_WORKERS",
        "0",
        "ATTACK.TEST.LIST",
        "[{'EPS': 4, 'STEPS': 1}]",
        "TEST.SUBSET",
        "8",
        "TEST.PICTURE",
        "0",
        "TEST.PROBES",
        "0",
    ]


def states(done: subprocess.CompletedProcess) -> Counter:
    """Count the states of the jobs of a dry run."""
    assert done.returncode == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines() if "  " in line]
    return Counter(row for row in rows if row in plan.STATES)


def by_protocol(folder) -> dict:
    """All completed records by protocol and data set, each of which is there once."""
    found = list(load_records(folder).records.values())
    keyed = {(r["protocol"], r["dataset"]): r for r in found}
    assert len(keyed) == len(found)
    return keyed


# --- cross-dataset and domain shift --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", FOUR)
def test_prompts_of_one_source_are_tested_on_every_target(shell, small, tmp_path, method):
    call = ("pets", "4", "vit_b32", *small)
    there = {"xd": {"TARGETS": "shapes_novel"}, "dg": {"TARGETS": "shapes_blur"}}
    for protocol, targets in there.items():
        done = shell(f"{method}/{protocol}.sh", *call, **targets)
        assert done.returncode == 0, done.stderr
        title = {"xd": "cross-dataset", "dg": "domain shift"}[protocol]
        assert title in done.stdout.lower()
    found = by_protocol(tmp_path / "out")
    assert sorted(found) == [
        ("dg", "OxfordPets"),
        ("dg", "ShapesBlur"),
        ("few_shot", "OxfordPets"),
        ("xd", "OxfordPets"),
        ("xd", "ShapesNovel"),
    ]
    assert {r["source"] for r in found.values()} == {"OxfordPets"}
    trained = found["few_shot", "OxfordPets"]
    for record in found.values():
        for key in ("shots", "epochs", "train_threat", "prompt_parameters", "weights_sha256"):
            assert record[key] == trained[key]
        assert record["clean"]["n"] == 8
        asked = "" if record["protocol"] == "few_shot" else record["protocol"]
        assert record["config"]["TEST.PROTOCOL"] == asked
    for protocol in there:  # the same model, images and attacks: not measured again
        copy = found[protocol, "OxfordPets"]
        assert [copy[k] for k in ("clean", "attacks")] == [trained[k] for k in ("clean", "attacks")]
    assert len(list((tmp_path / "out").rglob("model.pth.tar-*"))) == 1
    for protocol, targets in there.items():  # again: nothing is left to do
        planned = shell(f"{method}/{protocol}.sh", *call, "--dry-run", **targets)
        assert states(planned) == {"skip": 3}
    again = shell(f"{method}/dg.sh", *call, **there["dg"])
    assert again.returncode == 0 and again.stdout.count("skipped: ") == 3


@pytest.mark.slow
def test_a_killed_script_goes_on_where_it_was(environment, shell, small, tmp_path):
    words = [*small, "OPTIM.MAX_EPOCH", "40", "TRAIN.CHECKPOINT_FREQ", "1"]
    call = ["apd/xd.sh", "pets", "4", "vit_b32", *words]
    extra, out = {"TARGETS": "shapes_novel"}, tmp_path / "out"
    script = subprocess.Popen(
        ["bash", str(REPO / "scripts" / call[0]), *call[1:]],
        env=environment | extra | {"PYTHON": sys.executable},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(out.rglob("model.pth.tar-3")):
            assert script.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(script.pid, signal.SIGKILL)
        script.wait()
    (folder,) = {path.parent.parent for path in out.rglob("model.pth.tar-3")}
    last = plan.epochs_done(folder)
    assert 2 <= last < 40 and not list(out.rglob("record.json"))
    assert states(shell(*call, "--dry-run", **extra)) == {"resume": 1, "copy": 1, "run": 1}
    done = shell(*call, **extra)
    assert done.returncode == 0, done.stderr
    assert f"(epoch {last})" in done.stdout  # resumed from there
    epochs = [int(n) for n in re.findall(r"^epoch \[(\d+)/40\]", done.stdout, re.M)]
    assert epochs == list(range(last + 1, 41))
    assert sorted(by_protocol(out)) == [
        ("few_shot", "OxfordPets"),
        ("xd", "OxfordPets"),
        ("xd", "ShapesNovel"),
    ]


@pytest.mark.slow
def test_zero_shot_is_tested_plainly_and_a_failing_target_stops_no_other(shell, small, tmp_path):
    words = ("pets", "vit_b32", *small)
    targets = {"TARGETS": "dtd shapes_blur"}  # of dtd there are no images
    done = shell("zsclip/dg.sh", *words, **targets)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("see above: ZeroshotCLIP/dtd/seed1")
    assert "DescribableTextures is not there" in done.stderr
    found = by_protocol(tmp_path / "out")
    assert sorted(found) == [("zero_shot", "OxfordPets"), ("zero_shot", "ShapesBlur")]
    assert {r["source"] for r in found.values()} == {None}
    again = shell("zsclip/main.sh", "shapes_blur", "vit_b32", *small)  # the same run
    assert again.returncode == 0 and again.stdout.count("skipped: ") == 1


@pytest.mark.slow
def test_tests_of_finished_runs_are_those_of_the_robustness_tool(shell, small, tmp_path, world):
    words = ("pets", "vit_b32", *small)
    good = "linf4_tiny+DEFENCE.NAME=jpeg"
    done = shell("zsclip/main.sh", *words, TESTS=f"{good} nosuch")
    assert done.returncode == 2 and "nosuch.yaml" in done.stderr
    assert not (tmp_path / "out").exists()
    # one that is refused later stops neither the other tests nor the code 2 in the end
    done = shell("zsclip/main.sh", *words, TESTS=f"linf4_tiny+DEFENCE.NAME=jpg {good}")
    assert done.returncode == 2 and "'jpg'" in done.stderr
    (path,) = (tmp_path / "out").rglob("robustness/*/record.json")
    assert path.parent.name == "linf4_tiny_DEFENCE.NAME-jpeg"
    record = read_record(path)
    assert {a["steps"] for a in record["attacks"]} == {20} and len(record["attacks"]) == 2
    again = subprocess.run(
        [
            sys.executable,
            "-m",
            "advprompt",
            "robustness",
            "--model-dir",
            str(path.parents[2]),
            "--attack-config-file",
            "configs/attacks/linf4_tiny.yaml",
            "--root",
            str(world),
            "--opts",
            "DEFENCE.NAME",
            "jpeg",
        ],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0 and "skipped: " in again.stdout, again.stderr


@pytest.mark.parametrize(
    ("script", "extra", "words"),
    [
        (["capt/xd.sh", "pets", "4"], {}, ["'oxford_pets'", "TARGETS"]),
        (["capt/dg.sh", "pets", "4"], {"TARGETS": "pest"}, ["'pest'", "pest.yaml"]),
        (["capt/xd.sh", "shapes"], {}, ["usage"]),
        (["reproduce.sh"], {}, ["usage", "advpt|nap|capt|apd"]),
        (["reproduce.sh", "coop"], {}, ["'coop'"]),
        (["reproduce.sh", "apd", "tinny"], {}, ["'tinny'", "tiny"]),
        (["reproduce.sh", "apd", "tiny"], {"DATASETS": "peets"}, ["'peets'"]),
        (["reproduce.sh", "apd", "tiny", "SEED"], {}, ["'SEED' stands alone"]),
        (["reproduce.sh", "apd", "tiny"], {"TESTS": "aa lin4_aa"}, ["'lin4_aa'", "TESTS"]),
        (["reproduce.sh", "apd", "tiny"], {"TESTS": "lin4+SEED=1"}, ["'lin4'", "TESTS"]),
    ],
)
def test_wrong_calls_end_before_any_work(shell, tmp_path, script, extra, words):
    done = shell(*script, **extra)
    assert done.returncode == 2
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert all(word in line for word in words)
    assert not (tmp_path / "out").exists()


def test_every_method_has_four_thin_scripts():
    folders = {path.parent for path in (REPO / "scripts").glob("*/main.sh")}
    assert len(folders) == 13
    for folder in folders:
        for name in ("main", "base2new", "xd", "dg"):
            path = folder / f"{name}.sh"
            lines = path.read_text(encoding="utf-8").splitlines()
            assert os.access(path, os.X_OK)
            assert lines[-2].startswith("source ") and lines[-3].startswith("#") and len(lines) < 9


# --- reproduction of papers ----------------------------------------------------------------------


@pytest.mark.slow
def test_reproduce_goes_on_past_a_data_set_that_is_not_there(shell, small, tmp_path):
    call = ("reproduce.sh", "capt", "vit_b32", *small)
    few = {"DATASETS": "dtd pets", "METHODS": "zsclip", "SHOTS": "4", "TESTS": ""}
    done = shell(*call, **few)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "error: these did not finish, see above: main/dtd/vit_b32/linf4/4shots"
    assert "incomplete: dtd" in done.stdout and "note: xd is left out" in done.stderr
    found = by_protocol(tmp_path / "out")
    assert list(found) == [("zero_shot", "OxfordPets")]
    again = shell(*call, **few | {"DATASETS": "pets"})
    assert again.returncode == 0 and again.stdout.count("skipped: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("paper", "trainers", "folders", "left_out"),
    [
        (
            "advpt",
            {"ZeroshotCLIP", "AdvPT"},
            {"shapes_sketch", "ablations/advpt_vectors/shapes"},
            ["advpt_tiny_aa", "rap16"],
        ),
        ("nap", {"AdvPT", "TeCoA", "NAPTuning"}, {"ablations/naptuning_depth/shapes"}, []),
        ("capt", {"ZeroshotCLIP", "CAPT"}, {"shapes_novel", "shapes_background"}, []),
        ("apd", {"AdvIVLP", "APD"}, {"ablations/apd_teacher/shapes"}, []),
    ],
)
def test_reproduce_plans_a_paper_on_the_built_in_data(
    shell, tmp_path, paper, trainers, folders, left_out
):
    done = shell("reproduce.sh", paper, "tiny", "--dry-run", DATASETS="shapes")
    counts = states(done)
    assert not {"refuse", "resume"} & set(counts)
    # zero-shot CLIP has one folder for all shots, and a source's training is that of main.sh
    assert bool(counts["skip"]) == (paper in ("advpt", "capt"))
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("run ")]
    assert len({row[-1] for row in rows}) == len(rows) == counts["run"]  # each once
    assert all(f"note: test {name} is left out: " in done.stderr for name in left_out)
    assert done.stderr.count("note: test ") == len(left_out)
    assert all(f"/{name}/" in done.stdout for name in trainers)
    assert all(f" {name}/" in done.stdout for name in folders)
    assert "note: " not in done.stdout  # nothing stands in the way
    assert not (tmp_path / "out").exists()


def planned_folders(done: subprocess.CompletedProcess) -> list[str]:
    """The folders of the jobs that a dry run would run or copy."""
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if "  " in line]
    return [row[-1] for row in rows if row[0] in ("run", "copy")]


def test_the_first_test_images_are_those_of_the_source_alone(shell):
    words = ("capt/dg.sh", "shapes", "16", "tiny", "TEST.FIRST", "9", "--dry-run")
    folders = planned_folders(shell(*words, TARGETS="shapes_blur"))
    assert ["FIRST-9" in folder for folder in folders] == [True, True, False]
    words = ("capt/dg.sh", "shapes", "16", "tiny", "TEST.SUBSET", "9", "--dry-run")
    folders = planned_folders(shell(*words, TARGETS="shapes_blur"))
    assert ["SUBSET-9" in folder for folder in folders] == [True, True, True]
    folders = planned_folders(shell(*words, TARGETS="shapes_blur", SOURCE_ONLY="TEST.SUBSET"))
    assert ["SUBSET-9" in folder for folder in folders] == [True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "source", "target"),
    [
        ([], "SUBSET-1000", ""),
        (["TEST.SUBSET", "50"], "SUBSET-50", "SUBSET-50"),
        (["TEST.FIRST", "50"], "FIRST-50", ""),
    ],
)
def test_reproduce_takes_its_test_images_of_imagenet_from_there_only(shell, given, source, target):
    few = {"DATASETS": "imagenet", "METHODS": "advpt", "TESTS": "", "TARGETS": "sketch"}
    done = shell("reproduce.sh", "advpt", "vit_b16", *given, "--dry-run", **few)
    folders = [f for f in planned_folders(done) if "ablations" not in f]
    sizes_in = [(f.split("/")[0], re.findall("(?:SUBSET|FIRST)-[0-9]+", f)) for f in folders]
    assert sizes_in == [
        ("imagenet", [source]),
        ("imagenet", [source]),
        ("imagenet_sketch", [target] if target else []),
    ]


# --- dry runs ------------------------------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch):
    """Make any loading of a backbone or an image fail."""

    def refuse(*args, **kwargs):
        raise AssertionError("a dry run loads nothing")

    monkeypatch.setattr("advprompt.engine.trainer.load_clip", refuse)
    monkeypatch.setattr("advprompt.utils.images.load_image", refuse)
    monkeypatch.setattr("PIL.Image.open", refuse)


def dry(capsys, *argv: str) -> str:
    """Run a dry run in this process and return what it prints."""
    assert train.main([*argv, "--dry-run"]) == 0
    return capsys.readouterr().out


def test_a_dry_run_loads_and_writes_nothing(arguments, capsys, no_model, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    out = dry(capsys, *arguments("AdvPT"))
    bank = 12 * (1 + 2 + 1 + 1)  # images x clean, steps, the last loss, the result
    assert re.search(rf"^run +- +{bank} +\d+ +\d+ +run$", out, re.M)
    assert "1 run: 1 to run." in out and "image-forwards" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_tells_what_is_done_begun_and_in_the_way(arguments, run, capsys, tmp_path):
    argv = arguments("CoOp", ATTACK__TRAIN__TARGET="end_to_end", ATTACK__TRAIN__OBJECTIVE="ce")
    assert run(argv)[0] == 0
    assert "1 run: 1 to skip (completed" in dry(capsys, *argv)
    code, _, err = run([*argv, "OPTIM.LR", "0.5", "--dry-run"])
    assert "OPTIM.LR" in only_error(code, err)
    (tmp_path / "run" / "record.json").unlink()
    assert "1 run: 1 to resume." in dry(capsys, *argv)
    out = dry(capsys, *argv)
    assert re.search(r"^resume +- ", out, re.M)  # all epochs are done, the test is left
    (tmp_path / "run/prompt_learner/checkpoint").write_text("model.pth.tar-2\n")
    whole, half = 12 * 4, 12 * 2  # images x epochs, one forward each
    assert re.search(rf"^resume +{half} ", dry(capsys, *argv), re.M)
    argv[argv.index(str(tmp_path / "run"))] = str(tmp_path / "other")
    assert re.search(rf"^run +{whole} ", dry(capsys, *argv), re.M)


def test_many_jobs_count_shared_features_once(arguments, tmp_path, capsys, no_model):
    jobs = tmp_path / "jobs"
    runs_of = [arguments("AdvPT", out=f"seed{s}", seed=s) for s in (1, 2)]
    runs_of.append(arguments("AdvPT", out="wrong", OPTIM__LRR=1))
    jobs.write_text("".join("\0".join([str(len(a)), *a]) + "\0" for a in runs_of))
    assert train.main(["--dry-run", "--jobs", str(jobs)]) == 2
    out = capsys.readouterr().out
    tests = [line.split()[3] for line in out.splitlines() if line.startswith("run ")]
    shared = 12 * (1 + 5)  # clean features, and the bank of the transferred images
    assert int(tests[0]) - int(tests[1]) == shared
    assert "refuse" in out and "OPTIM.LRR" in out and "3 runs: 2 to run, 1 refused." in out
    again = [runs_of[0], [*runs_of[0], "OPTIM.LR", "0.5"], [*runs_of[0], "TEST.PICTURE", "1"]]
    jobs.write_text("".join("\0".join([str(len(a)), *a]) + "\0" for a in again))
    assert train.main(["--dry-run", "--jobs", str(jobs)]) == 2  # another run in the first's folder
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line.endswith(" seed1")] == [
        "run",
        "refuse",
        "skip",  # a picture makes no other run
    ]
    assert "will hold a run with OPTIM.LR" in out and "3 runs: 1 to run, 1 to skip" in out
    jobs.write_text("7\0--trainer\0")
    with pytest.raises(UserError, match="is cut"):
        plan.read_jobs(jobs)
    with pytest.raises(UserError, match="cannot be read"):
        plan.read_jobs(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "shots", "which", "expected"),
    [
        ("oxford_pets", 4, "all", (3, 12, 12)),  # the split file of the drawn pets
        ("shapes", 16, "all", (32, 512, 1280)),
        ("shapes", 16, "new", (16, 256, 640)),
        ("shapes_novel", 16, "all", (32, 0, 1280)),
        ("imagenet", 16, "base", (500, 8000, 25_000)),  # not there: the published sizes
        ("imagenet_r", 16, "all", (200, 0, 30_000)),
        ("eurosat", -1, "all", (10, 13_500, 8_100)),
    ],
)
def test_sizes_come_from_split_files_or_publications(pets, name, shots, which, expected):
    argv = [
        "--trainer",
        "CoOp",
        "--root",
        str(pets),
        "--dataset-config-file",
        str(REPO / f"configs/datasets/{name}.yaml"),
        "DATASET.NUM_SHOTS",
        str(shots),
        "DATASET.SUBSAMPLE_CLASSES",
        which,
        "ATTACK.TRAIN.TARGET",
        "end_to_end",
    ]
    found, missing = sizes.sizes_of(train.setup_cfg(train.parser().parse_args(argv)))
    assert found == expected
    assert bool(missing) == (name in ("imagenet", "imagenet_r", "eurosat"))


def test_sizes_of_shapes_are_those_of_the_drawn_set(tmp_path):
    argv = [
        "--trainer",
        "ZeroshotCLIP",
        "--root",
        str(tmp_path),
        "DATASET.NAME",
        "Shapes",
        "DATASET.NUM_SHOTS",
        "-1",
    ]
    (found, _) = sizes.sizes_of(train.setup_cfg(train.parser().parse_args(argv)))
    names, per_class = drawing.shape_classes(), shapes.IMAGES_PER_CLASS
    assert found == (len(names), len(names) * per_class["train"], len(names) * per_class["test"])


def test_forwards_of_composed_attacks():
    def spec(**fields):
        node = {
            "NAME": "pgd",
            "EPS": "4",
            "ALPHA": "1",
            "STEPS": 10,
            "RESTARTS": 1,
            "START": "uniform",
            "OBJECTIVE": "ce",
            "TARGET": "end_to_end",
        }
        return AttackSpec.from_cfg(node, fields)

    assert attack_forwards(spec(), scored=False) == 10
    assert attack_forwards(spec(DROP=True, RESTARTS=3)) == 33
    assert attack_forwards(spec(DROP=True, RESTARTS=3, PREC="bf16")) == 66
    assert forwards_of_test(spec(), 10) == 10 + 3  # the loss, the answer and the score at the end
    assert attack_forwards(spec(NAME="apgd-ce")) == 1 + 101
    auto = 1 + 101 + 1 + 9 * 101 + 1 + 9 * 2 * 100 + 1 + 1 + 5001
    assert attack_forwards(spec(NAME="autoattack"), 1000) == auto
    assert attack_forwards(spec(NAME="autoattack"), 3) == 1 + 101 + 1 + 5001


@pytest.mark.parametrize("name", ["pgd", "di"])
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("doubted", [False, True])
def test_no_attack_takes_more_forwards_than_said(name, drop, doubted):
    """The most there is: no sample breaks, and all look wrong in bf16 at every iterate."""
    node = {
        "NAME": name,
        "EPS": "4",
        "ALPHA": "1",
        "STEPS": 3,
        "RESTARTS": 2,
        "DROP": drop,
        "START": "uniform",
        "OBJECTIVE": "ce",
        "TARGET": "end_to_end",
        "PREC": "bf16" if doubted else "fp32",
    }
    spec, counted = AttackSpec.from_cfg(node, {}), Counter()

    def model(kind: str, right: bool):
        def logits(images):
            counted[kind] += len(images)
            score = 9 * (1 if right else -1) + images.mean((1, 2, 3))
            return torch.stack([score, -score], dim=1)  # (B, 2)

        return logits

    labels, exact = torch.zeros(1, dtype=torch.long), model("exact", True) if doubted else None
    forward = model("forward", not doubted)
    pixels = torch.full((1, 3, 8, 8), 0.5)
    run_attack(spec, pixels, [1], forward=forward, labels=labels, exact=exact)
    assert bool(counted["exact"]) == (drop and doubted)
    assert counted.total() == attack_forwards(spec, 2)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["AdvPT", "CoOp", "NAPTuning", "CAPT", "APD"])
def test_the_estimate_holds_for_a_counted_run(trainer, run, monkeypatch, capsys, world, tmp_path):
    """Trained on three classes of drawings, which `tiny` gets right, so that all are attacked.

    The factor of docs/protocols.md: a test takes 0.8 to 1 of the estimate where all images are
    right clean and no attack drops samples; training and banks take exactly the estimate.
    """
    counted = count_images(monkeypatch)
    monkeypatch.setattr(shifts.ShapesNovel, "test_only", False)
    argv = [
        "--root",
        str(world),
        "--seed",
        "1",
        "--trainer",
        trainer,
        "--dataset-config-file",
        str(REPO / "configs/datasets/shapes_novel.yaml"),
        "--config-file",
        str(REPO / f"configs/trainers/{trainer}/tiny.yaml"),
        "--attack-config-file",
        str(REPO / "configs/attacks/linf4_tiny.yaml"),
        "--output-dir",
        str(tmp_path / "run"),
        "TEST.SUBSET",
        "9",
        "TEST.PROBES",
        "1",
        "TEST.PICTURE",
        "2",
        "DATALOADER.NUM_WORKERS",
        "0",
        "OPTIM.MAX_EPOCH",
        "1",
        "DATASET.TRANSFORMS",
        "[]",
        "ATTACK.TRAIN.EPS",
        "1",
        "ATTACK.TRAIN.ALPHA",
        "0.5",
        "ATTACK.TEST.LIST",
        "[{'EPS': '0.01/255', 'ALPHA': '0.01/255', 'STEPS': 10},"
        " {'EPS': '1/255', 'STEPS': 6, 'OBJECTIVE': 'embedding_kl',"
        " 'TARGET': 'embedding'}]",
    ]
    if trainer == "AdvPT":
        argv += ["ATTACK.TRAIN.TARGET", "embedding", "ATTACK.TRAIN.OBJECTIVE", "embedding_kl"]
    # all 120 images are there to train on
    monkeypatch.setattr(plan, "sizes_of", lambda cfg: (sizes.Sizes(3, 120, 9), ""))
    args = train.parser().parse_args(argv)
    planned = plan.Plan()
    planned.add(train.setup_cfg(args))
    expected = planned.jobs[0].forwards
    code, _, err = run(argv)
    assert code == 0, err
    for part in ("train", "bank"):
        assert counted[part] == expected.get(part, 0), part
    assert 0.8 * expected["test"] <= counted["test"] <= expected["test"]
    assert read_record(tmp_path / "run" / "record.json")["clean"]["correct"] == 9


def count_images(monkeypatch) -> Counter:
    """Count images through an image tower by part of the run; nested calls count once."""
    from advprompt import advpt
    from advprompt.backbone.adapter import CLIPAdapter
    from advprompt.engine import trainer as robust_trainer
    from advprompt.prompting.prompted import PromptedCLIP

    counted, now = Counter(), {"part": "train", "inside": False}

    def counting(function):
        def call(self, pixels, *args, **kwargs):
            if now["inside"]:
                return function(self, pixels, *args, **kwargs)
            counted[now["part"]] += len(pixels)
            now["inside"] = True
            try:
                return function(self, pixels, *args, **kwargs)
            finally:
                now["inside"] = False

        return call

    def during(part, function):
        def call(*args, **kwargs):
            before, now["part"] = now["part"], part
            try:
                return function(*args, **kwargs)
            finally:
                now["part"] = before

        return call

    for owner, name in ((CLIPAdapter, "encode_image"), (PromptedCLIP, "image_features")):
        monkeypatch.setattr(owner, name, counting(getattr(owner, name)))
    trainer = robust_trainer.RobustTrainer
    monkeypatch.setattr(trainer, "test", during("test", trainer.test))
    # one image tries the tower when it is loaded, whatever the run
    monkeypatch.setattr(trainer, "load_clip", during("loading", trainer.load_clip))
    monkeypatch.setattr(advpt, "build_bank", during("bank", advpt.build_bank))
    return counted


# --- drawn test sets -----------------------------------------------------------------------------


def image(cls, index: int, name: str) -> np.ndarray:
    return cls.picture(index, name, np.random.default_rng([1, index]))


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_test_sets_are_what_their_configs_name(name):
    cls = DRAWN[name]
    assert DATASET_REGISTRY.get(cls.__name__) is cls and cls.dataset_dir == name and cls.test_only
    argv = [
        "--trainer",
        "ZeroshotCLIP",
        "--dataset-config-file",
        str(REPO / f"configs/datasets/{name}.yaml"),
    ]
    cfg = train.setup_cfg(train.parser().parse_args(argv))
    assert cfg.DATASET.NAME == cls.__name__ and cfg.DATASET.TEMPLATE == "a drawing of a {}."
    names = cls.class_names()
    assert len(set(names)) == len(names) == (24 if name == "shapes_patterns" else 32)
    first = image(cls, 5, names[0])
    assert first.shape == (64, 64, 3) and np.array_equal(first, image(cls, 5, names[0]))
    assert not np.array_equal(first, image(cls, 6, names[0]))
    plain = shifts.shapes_picture(5, drawing.shape_classes()[0])
    assert np.abs(np.clip(first, 0, 1) - plain).mean() > 0.01


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


def test_a_drawing_cut_short_leaves_nothing_behind(tmp_path, monkeypatch):
    folder = tmp_path / "shapes_blur" / "recipe"

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importlib.import_module("PIL.Image").Image, "save", full)
    with pytest.raises(OSError):
        shifts.ShapesBlur.draw_into(folder)
    assert not folder.exists() and not list(folder.parent.iterdir())


def test_nothing_is_trained_on_a_test_set(arguments, run, world, tmp_path):
    argv = arguments("AdvPT", root=world)
    at = argv.index(str(REPO / "configs/datasets/oxford_pets.yaml"))
    argv[at] = str(REPO / "configs/datasets/shapes_blur.yaml")
    code, _, err = run(argv)
    assert "ShapesBlur is for tests only" in only_error(code, err)
    assert not (tmp_path / "run" / run_folder.CONFIG_FILE).exists()


def test_a_test_needs_neither_the_shots_nor_validation_images(arguments, run, pets, tmp_path):
    """Trained on one data set, tested on one with too few training images and none to validate."""
    few = tmp_path / "few"
    shutil.copytree(pets, few)
    path = few / "oxford_pets" / "split_zhou_OxfordPets.json"
    split = json.loads(path.read_text(encoding="utf-8"))
    lone = [[i for i in split["train"] if i[1] == y][:2] for y in range(3)]  # 2 of each class
    path.write_text(json.dumps(split | {"train": sum(lone, []), "val": []}), encoding="utf-8")
    best = {"TEST__FINAL_MODEL": "best_val", "OPTIM__MAX_EPOCH": 1}
    assert run(arguments("AdvPT", **best))[0] == 0
    load = ["--eval-only", "--model-dir", str(tmp_path / "run")]
    best["DATASET__CACHE_DIR"] = tmp_path / "few_cache"
    argv = arguments("AdvPT", *load, root=few, out="test", **best)
    code, _, err = run(argv)
    assert code == 0, err
    record = read_record(tmp_path / "test" / "record.json")
    assert record["shots"] == 4 and record["config"]["DATASET.NUM_SHOTS"] == 4
    assert "skipped: " in run(argv)[1]
    for keys, words in ({}, "fewer than the 4 shots"), ({"DATASET__NUM_SHOTS": 2}, "best_val"):
        code, _, err = run(arguments("AdvPT", root=few, out="train", **best | keys))
        assert words in only_error(code, err)
        assert not (tmp_path / "train" / run_folder.CONFIG_FILE).exists()


@pytest.mark.slow
def test_the_small_clip_knows_the_drawn_test_sets_but_not_all_of_them():
    from torch.nn.functional import normalize

    from advprompt.backbone import load_clip, text_features
    from advprompt.prompting.templates import fill

    clip = load_clip("tiny-robust")
    for cls in DRAWN.values():
        names = cls.class_names()
        texts = text_features(clip, fill("a drawing of a {}.", names))
        pictures = np.stack(
            [image(cls, 40 * y + k, n) for y, n in enumerate(names) for k in (0, 1)]
        )
        pixels = torch.tensor(pictures.clip(0, 1)).permute(0, 3, 1, 2).float()  # (B, 3, 64, 64)
        with torch.no_grad():
            logits = normalize(clip.encode_image(pixels), dim=-1) @ texts.t()
        labels = torch.arange(len(names)).repeat_interleave(2)
        assert 0.5 < (logits.argmax(1) == labels).float().mean() <= 1, cls.__name__
