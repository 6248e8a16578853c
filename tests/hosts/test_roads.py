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

from tests.hosts import make_host
from tests.hosts.make_host import BY_NAME, CLASSES, IMAGES, REPO, Done, Job, World, git

pytestmark = pytest.mark.slow
ROADS = ("pip", "copy")
OURS = ("AdvPT", "NAPTuning", "CAPT", "APD")
TESTED = IMAGES["test"] * len(CLASSES)
TEST = ("--eval-only", "--load-epoch", "1", "--model-dir")
EPS = (16, 32)  # of the two attacks, in 1/255
TWO_ATTACKS = (
    f"[{{'EPS': '{EPS[0]}', 'STEPS': 2, 'OBJECTIVE': 'embedding_kl', 'TARGET': 'embedding'}},"
    f" {{'EPS': '{EPS[1]}', 'ALPHA': '10', 'STEPS': 3}}]"
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
    repaired: list[str] = field(default_factory=list)  # of its Dassl
    origins: dict = field(default_factory=dict)  # of Dassl, trainers and data sets


def lead_in(road: str, code: Path, env: dict) -> None:
    """Put our trainers into a host."""
    if road == "pip":
        make_host.add_two_lines(code / "train.py")
    else:
        dropin(code, env, "--apply")


def lead_out(road: str, code: Path, env: dict) -> str:
    """Take them out again."""
    if road == "copy":
        return dropin(code, env, "--undo")
    git(code, "checkout", "--", "train.py")
    return ""


def dropin(code: Path, env: dict, what: str) -> str:
    words = [sys.executable, "-m", "advprompt", "dropin", str(code), what]
    done = subprocess.run(words, cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Words:
    """The arguments of runs in one host, as its users write them."""

    def __init__(self, world: World, configs, data: Path):
        self.world, self.configs, self.data = world, configs, data

    def common(self, trainer: str, config, *extra) -> list[str]:
        words = ["--root", str(self.data), "--seed", "1", "--trainer", trainer]
        words += ["--config-file", str(config)]
        words += ["--dataset-config-file", "configs/datasets/oxford_pets.yaml", *extra]
        words += "DATALOADER.NUM_WORKERS 0 DATASET.NUM_SHOTS 2 OPTIM.MAX_EPOCH 1".split()
        return [*words, "DATALOADER.TRAIN_X.BATCH_SIZE", "4"]

    def own(self, run, *extra, name="") -> Job:
        """A run of the host's own trainer; CLIP comes the way the host loads it."""
        size = self.world.weights[run.weights].size
        config = f"configs/trainers/{run.config}"
        words = self.common(run.trainer, config, *run.arguments, *extra)
        words += ["MODEL.BACKBONE.NAME", run.weights, "INPUT.SIZE", f"({size},{size})", *run.words]
        full = {"HOST_FULL_PRECISION": "1"}
        return Job(name or f"own-{run.trainer}-{run.weights}", tuple(words), full)

    def ours(self, trainer: str, weights: str, *extra, name="", **keys) -> Job:
        """A run of ours: the random CLIP through the host's clip/, or the built-in one."""
        random = weights == "random"
        config = f"{self.configs}/trainers/{trainer}/{'vit_b32' if random else 'tiny'}.yaml"
        words = self.common(trainer, config, *map(str, extra))
        options = {
            "ATTACK.THREAT": "advpt16" if trainer == "AdvPT" else "linf1",
            "ATTACK.TRAIN.STEPS": 2,
            "ATTACK.TEST.LIST": TWO_ATTACKS,
            "TEST.PROBES": 2,
            "TEST.PICTURE": 1,
        } | {key.replace("__", "."): value for key, value in keys.items()}
        if random:
            options["MODEL.BACKBONE.NAME"] = f"file:{self.world.weights['random'].file}"
            options["INPUT.SIZE"] = "(64,64)"
        words += [str(word) for pair in options.items() for word in pair]
        env = {"ADVPROMPT_CLIP_PROVIDER": "clip" if random else "auto"}
        return Job(name or f"{trainer}-{weights}", tuple(words), env)


def everyday(words: Words, out: Path) -> list[Job]:
    """What users of forks do besides: test again, and from base to new classes."""
    classes = "DATASET__SUBSAMPLE_CLASSES"
    return [
        words.ours("CAPT", "tiny", *TEST, out / "CAPT-tiny", name="eval"),
        words.ours("CAPT", "tiny", name="base", **{classes: "base"}),
        words.ours("CAPT", "tiny", *TEST, out / "base", name="new", **{classes: "new"}),
    ]


def whole_and_cut(words: Words) -> list[Job]:
    """Another seed with fewer test images, and two equal runs of which one will be cut."""
    two = {"OPTIM__MAX_EPOCH": 2, "TRAIN__CHECKPOINT_FREQ": 1}
    return [
        words.ours("APD", "tiny", "--seed", "2", name="seed2", TEST__SUBSET=4),
        words.ours("APD", "tiny", name="whole", **two),
        words.ours("APD", "tiny", name="cut", **two),
    ]


def resume(words: Words, code: Path, env: dict, out: Path) -> Done:
    """Take away what came after the first epoch of the run ``cut`` and start it again."""
    folder = out / "cut" / "prompt_learner"
    (out / "cut" / "record.json").unlink()
    (folder / "model.pth.tar-2").unlink()
    (folder / "checkpoint").write_text("model.pth.tar-1\n", encoding="utf-8")
    return make_host.run(code, env, [whole_and_cut(words)[-1]], out)["runs"]["cut"]


def journey(name: str, road: str, world: World, folder: Path) -> Trip:
    """Make the whole journey."""
    clock, host = time.perf_counter(), BY_NAME[name]
    trip = Trip(name, road, make_host.commit(host, world.hosts))
    code = make_host.clone(host, world.hosts, folder)
    site = world.site if road == "pip" else None
    env = make_host.environment(host, world.hosts, world.weights, site)
    lead_in(road, code, env)
    trip.changed = git(code, "status", "--porcelain")
    places = {"pip": world.site / "advprompt/configs", "copy": "configs/advprompt"}
    words, out = Words(world, places[road], make_host.make_data(folder / "data")), folder / "out"
    jobs = [words.own(one) for one in host.own]
    first, trained = host.own[0], out / jobs[0].name
    jobs += [words.own(first, *TEST, trained, name=f"reload {first.trainer}")]
    jobs += [words.ours(t, weights) for weights in ("random", "tiny") for t in OURS]
    jobs += everyday(words, out) + (whole_and_cut(words) if name == "CoOp" else [])
    trip.repaired = make_host.repaired(env)
    trip.origins = make_host.run(code, env, jobs, out)
    trip.runs = trip.origins.pop("runs")
    if name == "CoOp" and trip.runs["cut"].code == 0:
        trip.runs["resumed"] = resume(words, code, env, out)
    trip.undone = lead_out(road, code, env)
    trip.left = git(code, "status", "--porcelain", "--ignored")
    trip.seconds = time.perf_counter() - clock
    return trip


def trips(*names: str) -> pytest.MarkDecorator:
    """Let a test look at the journeys to these hosts."""
    params = [f"{name}-{road}" for name in names for road in ROADS]
    return pytest.mark.parametrize("trip", params, indirect=True)


everywhere, coop_alone = trips(*BY_NAME), trips("CoOp")


@pytest.fixture(scope="module")
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


def counted(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("* correct:")]


def record(done: Done) -> dict:
    passed(done)
    return json.loads((done.folder / "record.json").read_text(encoding="utf-8"))


def prompts(done: Done, epoch: int) -> dict:
    path = done.folder / "prompt_learner" / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)["state_dict"]


@everywhere
def test_the_hosts_names_and_dassl_stay_theirs(trip, hosts):
    found, host = trip.origins, BY_NAME[trip.host]
    assert Path(found["dassl"]) == hosts / host.dassl / "dassl" / "__init__.py"
    assert trip.repaired
    ours = "advprompt." if trip.road == "pip" else "trainers.advprompt."
    assert all(found["trainers"][name].startswith(ours) for name in OURS)
    for own in host.own:
        module = found["trainers"][own.trainer]
        assert module.startswith("trainers.") and not module.startswith(ours)
    assert found["datasets"]["OxfordPets"] == "datasets.oxford_pets"


@everywhere
def test_its_own_trainers_run(trip):
    own = BY_NAME[trip.host].own
    for one in own:
        output = passed(trip.runs[f"own-{one.trainer}-{one.weights}"])
        assert f"Loading trainer: {one.trainer}" in output
        assert f"* total: {TESTED}" in output
    first = trip.runs[f"own-{own[0].trainer}-{own[0].weights}"]
    again = passed(trip.runs[f"reload {own[0].trainer}"])
    assert counted(again) == counted(first.output)


@everywhere
@pytest.mark.parametrize("weights", ("random", "tiny"))
@pytest.mark.parametrize("trainer", OURS)
def test_our_trainers_run(trip, trainer, weights):
    done = trip.runs[f"{trainer}-{weights}"]
    found = record(done)
    assert (found["status"], found["trainer"]) == ("completed", trainer)
    assert found["dataset"] == "OxfordPets" and found["prompt_parameters"] > 0
    assert found["clean"]["n"] == TESTED
    assert [attack["target"] for attack in found["attacks"]] == ["embedding", "end_to_end"]
    for attack, eps in zip(found["attacks"], EPS, strict=True):
        assert attack["n"] == TESTED
        assert attack["correct"] <= found["clean"]["correct"]
        assert attack["checks"]["max_linf"] <= eps / 255 + 1e-6 and attack["checks"]["in_range"]
    if weights == "tiny":  # it knows these classes
        assert found["clean"]["correct"] >= TESTED * 3 // 4
        assert found["attacks"][1]["correct"] < found["clean"]["correct"]
    assert f"* record: {done.folder / 'record.json'}" in done.output


@everywhere
def test_a_trained_model_is_tested_again_with_the_same_result(trip):
    first, again = record(trip.runs["CAPT-tiny"]), record(trip.runs["eval"])
    assert again["clean"] == first["clean"]
    same = [[attack["correct"] for attack in found["attacks"]] for found in (first, again)]
    assert same[0] == same[1]


@everywhere
def test_base_to_new(trip):
    base, new = record(trip.runs["base"]), record(trip.runs["new"])
    assert (base["split"], new["split"]) == ("base", "new")
    assert base["classes"] == new["classes"] == len(CLASSES) // 2
    assert new["protocol"] == "base2new" and new["epochs"] == 1


@coop_alone
def test_seed_and_subset_are_the_runs(trip):
    found = record(trip.runs["seed2"])
    assert found["seed"] == 2 and record(trip.runs["APD-tiny"])["seed"] == 1
    assert found["subset"] == found["clean"]["n"] == 4
    one, two = prompts(trip.runs["APD-tiny"], 1), prompts(trip.runs["seed2"], 1)
    assert any(not torch.equal(one[key], two[key]) for key in one)


@coop_alone
def test_a_cut_run_resumes_to_the_same_weights(trip):
    passed(trip.runs["cut"])
    assert "(epoch 1)" in passed(trip.runs["resumed"])
    whole, resumed = prompts(trip.runs["whole"], 2), prompts(trip.runs["resumed"], 2)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@everywhere
def test_the_host_is_as_before(trip):
    assert trip.changed
    assert not trip.left, trip.left + trip.undone
