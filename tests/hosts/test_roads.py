"""Our trainers inside public hosts with real Dassl, on both roads: pip and copy.

    ADVPROMPT_HOSTS=$HOSTS pytest tests/hosts/test_roads.py -rs

On each road a clean clone of the host runs its own trainers and our four, trained and tested clean
and attacked, with its own data set file and command line; then the road is taken back. With
ADVPROMPT_HOSTS_TABLE=FILE a row per host and road is written for docs/hosts.md.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.hosts.make_host import (
    BY_NAME,
    CLASSES,
    IMAGES,
    REPO,
    Done,
    Job,
    World,
    add_two_lines,
    clone,
    commit,
    environment,
    git,
    make_data,
    run,
)

pytestmark = pytest.mark.slow
ROADS = ("pip", "copy")
OURS = ("AdvPT", "NAPTuning", "CAPT", "APD")
TESTED = IMAGES["test"] * len(CLASSES)
TWO_ATTACKS = (
    "[{'EPS': '8', 'STEPS': 2, 'OBJECTIVE': 'embedding_kl', 'TARGET': 'embedding'},"
    " {'EPS': '4', 'STEPS': 2}]"
)


@dataclass
class Trip:
    """A host on one road: what ran there and what is left."""

    host: str
    road: str
    commit: str
    changed: str = ""  # by the road, as git sees it
    left: str = ""  # once the road was taken back
    undone: str = ""  # what dropin --undo said
    runs: dict[str, Done] = field(default_factory=dict)
    seconds: float = 0.0


def lead_in(road: str, code: Path, env: dict) -> None:
    """Put our trainers into a host."""
    add_two_lines(code / "train.py") if road == "pip" else dropin(code, env, "--apply")


def lead_out(road: str, code: Path, env: dict) -> str:
    """Take them out again."""
    if road == "copy":
        return dropin(code, env, "--undo")
    git(code, "checkout", "--", "train.py")
    return ""


def dropin(code: Path, env: dict, what: str) -> str:
    words = [sys.executable, "-m", "tools.dropin", str(code), what]
    done = subprocess.run(words, cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Words:
    """The arguments of runs in one host, as its users write them."""

    def __init__(self, world: World, configs, data: Path):
        self.world, self.configs, self.data = world, configs, data

    def common(self, trainer: str, config, *extra: str) -> list[str]:
        return [
            "--root", str(self.data), "--seed", "1", "--trainer", trainer, "--config-file",
            str(config), "--dataset-config-file", "configs/datasets/oxford_pets.yaml", *extra,
            "DATALOADER.NUM_WORKERS", "0", "DATASET.NUM_SHOTS", "2",
            "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "OPTIM.MAX_EPOCH", "1",
        ]  # fmt: skip

    def own(self, run) -> Job:
        """A run of the host's own trainer; CLIP comes the way the host loads it."""
        size = self.world.weights[run.weights].size
        words = self.common(run.trainer, run.config, *run.arguments)
        words += ["MODEL.BACKBONE.NAME", run.weights, "INPUT.SIZE", f"({size},{size})", *run.words]
        full = {"HOST_FULL_PRECISION": "1"}
        return Job(f"own-{run.trainer}-{run.weights}", tuple(words), full)

    def ours(self, trainer: str, weights: str, *extra: str, name="", **keys) -> Job:
        """A run of ours: the random CLIP through the host's clip/, or the built-in one."""
        random = weights == "random"
        config = f"{self.configs}/trainers/{trainer}/{'vit_b32' if random else 'tiny'}.yaml"
        words = self.common(trainer, config, *extra)
        options = {
            "ATTACK.THREAT": "advpt16" if trainer == "AdvPT" else "linf1",
            "ATTACK.TRAIN.STEPS": 2,
            "ATTACK.TEST.LIST": TWO_ATTACKS,
            "TEST.PROBES": 2,
            "TEST.PICTURE": 1,
        } | {key.replace("__", "."): value for key, value in keys.items()}
        if random:
            options["MODEL.BACKBONE.NAME"] = f"file:{self.world.weights['random'].file}"
        words += [str(word) for pair in options.items() for word in pair]
        env = {"ADVPROMPT_CLIP_PROVIDER": "clip" if random else "auto"}
        return Job(name or f"{trainer}-{weights}", tuple(words), env)


def everyday(words: Words, out: Path) -> list[Job]:
    """Runs of a fork's everyday: test again, base to new, another seed, twice."""
    trained = str(out / "CAPT-tiny")
    base = {"DATASET__SUBSAMPLE_CLASSES": "base"}
    new = {"DATASET__SUBSAMPLE_CLASSES": "new"}
    test = ("--eval-only", "--model-dir")
    two = {"OPTIM__MAX_EPOCH": 2, "TRAIN__CHECKPOINT_FREQ": 1}
    return [
        words.ours("CAPT", "tiny", *test, trained, "--load-epoch", "1", name="eval"),
        words.ours("CAPT", "tiny", name="base", **base),
        words.ours("CAPT", "tiny", *test, str(out / "base"), "--load-epoch", "1", name="new",
                   **new),
        words.ours("CAPT", "tiny", "--seed", "2", name="seed2"),
        words.ours("CAPT", "tiny", name="whole", **two),
        words.ours("CAPT", "tiny", name="cut", OPTIM__MAX_EPOCH=2, TRAIN__CHECKPOINT_FREQ=1),
    ]  # fmt: skip


def resume(words: Words, trip: Trip, code, env, out: Path) -> None:
    """Take away what came after the first epoch of the run ``cut`` and start it again."""
    folder = out / "cut"
    (folder / "record.json").unlink()
    prompts = folder / "prompt_learner"
    (prompts / "model.pth.tar-2").unlink()
    (prompts / "checkpoint").write_text("model.pth.tar-1\n")
    again = words.ours("CAPT", "tiny", name="cut", OPTIM__MAX_EPOCH=2, TRAIN__CHECKPOINT_FREQ=1)
    trip.runs["resumed"] = run(code, env, [again], out)["cut"]


def journey(name: str, road: str, world: World, folder: Path) -> Trip:
    """Make the whole journey."""
    clock, host = time.perf_counter(), BY_NAME[name]
    trip = Trip(name, road, commit(host, world.hosts))
    code = clone(host, world.hosts, folder)
    env = environment(host, world.hosts, world.weights, world.site if road == "pip" else None)
    lead_in(road, code, env)
    trip.changed = git(code, "status", "--porcelain")
    places = {"pip": world.site / "advprompt/configs", "copy": "configs/advprompt"}
    words, out = Words(world, places[road], make_data(folder / "data")), folder / "out"
    jobs = [words.own(one) for one in host.own]
    jobs += [words.ours(t, weights) for weights in ("random", "tiny") for t in OURS]
    jobs += everyday(words, out)
    trip.runs = run(code, env, jobs, out)
    if trip.runs["cut"].code == 0:
        resume(words, trip, code, env, out)
    trip.undone = lead_out(road, code, env)
    trip.left = git(code, "status", "--porcelain", "--ignored")
    trip.seconds = time.perf_counter() - clock
    return trip


@pytest.fixture(scope="module", params=[f"{h}-{r}" for h in BY_NAME for r in ROADS])
def trip(request, hosts, world, tmp_path_factory):
    name, _, road = request.param.rpartition("-")
    if not (hosts / name).is_dir():
        pytest.skip(f"ADVPROMPT_HOSTS has no checkout of {name}")
    for package in BY_NAME[name].needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{name} needs the package {package}")
    made = journey(name, road, world, tmp_path_factory.mktemp(request.param))
    if file := os.environ.get("ADVPROMPT_HOSTS_TABLE"):
        rows = {k: [v.code, v.seconds] for k, v in made.runs.items()}
        with open(file, "a", encoding="utf-8") as table:
            table.write(json.dumps(vars(made) | {"runs": rows}) + "\n")
    return made


def passed(done: Done) -> str:
    """Return the output of a run that must have ended well."""
    assert done.code == 0, done.output[-4000:]
    return done.output


def record(done: Done) -> dict:
    passed(done)
    return json.loads((done.folder / "record.json").read_text(encoding="utf-8"))


def prompts(done: Done, epoch: int) -> dict:
    path = done.folder / "prompt_learner" / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)["state_dict"]


def test_its_own_trainers_run(trip):
    for own in BY_NAME[trip.host].own:
        output = passed(trip.runs[f"own-{own.trainer}-{own.weights}"])
        assert f"Loading trainer: {own.trainer}" in output
        assert f"* total: {TESTED}" in output.replace(",", "")


@pytest.mark.parametrize("weights", ("random", "tiny"))
@pytest.mark.parametrize("trainer", OURS)
def test_our_trainers_run(trip, trainer, weights):
    done = trip.runs[f"{trainer}-{weights}"]
    found = record(done)
    assert (found["status"], found["trainer"]) == ("completed", trainer)
    assert found["dataset"] == "OxfordPets" and found["prompt_parameters"] > 0
    assert found["clean"]["n"] == TESTED
    assert [attack["target"] for attack in found["attacks"]] == ["embedding", "end_to_end"]
    for attack, eps in zip(found["attacks"], (8, 4), strict=True):
        assert attack["n"] == TESTED
        assert attack["correct"] <= found["clean"]["correct"]
        assert attack["checks"]["max_linf"] <= eps / 255 + 1e-6 and attack["checks"]["in_range"]
    if weights == "tiny":  # it knows these classes
        assert found["clean"]["correct"] >= TESTED * 3 // 4
    assert f"* record: {done.folder / 'record.json'}" in done.output


def test_a_trained_model_is_tested_again_with_the_same_result(trip):
    first, again = record(trip.runs["CAPT-tiny"]), record(trip.runs["eval"])
    assert again["clean"] == first["clean"]
    same = [[attack["correct"] for attack in found["attacks"]] for found in (first, again)]
    assert same[0] == same[1]


def test_base_to_new(trip):
    base, new = record(trip.runs["base"]), record(trip.runs["new"])
    assert (base["split"], new["split"]) == ("base", "new")
    assert base["classes"] == new["classes"] == len(CLASSES) // 2
    assert new["protocol"] == "base2new" and new["epochs"] == 1


def test_the_seed_is_the_runs(trip):
    found = record(trip.runs["seed2"])
    assert found["seed"] == 2 and record(trip.runs["CAPT-tiny"])["seed"] == 1
    one, two = prompts(trip.runs["CAPT-tiny"], 1), prompts(trip.runs["seed2"], 1)
    assert any(not torch.equal(one[key], two[key]) for key in one)


def test_a_cut_run_resumes_to_the_same_weights(trip):
    passed(trip.runs["cut"])
    assert "(epoch 1)" in passed(trip.runs["resumed"])
    whole, resumed = prompts(trip.runs["whole"], 2), prompts(trip.runs["resumed"], 2)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_the_host_is_as_before(trip):
    assert trip.changed
    assert not trip.left, trip.left + trip.undone
