"""train.py end to end on a toy CLIP: training, testing, resuming, and every bad input."""

from __future__ import annotations

import errno
import json
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from advprompt import advpt
from advprompt.records import read_record
from tests.conftest import REPO, ok, only_error, refusal, weights
from tests.world import Payload

# --- what works ---------------------------------------------------------------------------------


def test_advpt_trains_tests_and_writes_a_record(arguments, run, tmp_path):
    out = ok(run(arguments("AdvPT", TEST__PICTURE=2, seed=0)))
    record = read_record(tmp_path / "run" / "record.json")
    assert record["status"] == "completed" and record["trainer"] == "AdvPT"
    assert (record["shots"], record["seed"], record["classes"]) == (4, 0, 3)
    assert (tmp_path / "cache/oxford_pets/split_fewshot/shot_4-seed_0.json").is_file()
    assert record["prompt_parameters"] == 4 * 64
    assert record["clean"]["n"] == 12
    transfer, white_box = record["attacks"]
    assert (transfer["target"], transfer["eps"]) == ("embedding", "16/255")
    assert (white_box["target"], white_box["eps"]) == ("end_to_end", "4/255")
    assert white_box["correct"] <= record["clean"]["correct"]
    assert 0 < white_box["checks"]["max_linf"] <= 4 / 255 + 1e-6
    assert record["train_threat"]["objective"] == "embedding_kl"
    assert record["seconds"]["bank"] > 0 and record["seconds"]["train"] > 0
    picture = tmp_path / "run" / "picture.png"
    assert str(picture) in out and Image.open(picture).width > 300
    assert not list((tmp_path / "run").glob("**/*.tmp"))
    assert not (tmp_path / "run" / "unfinished").exists()


def test_the_loss_falls(arguments, run, tmp_path):
    keys = {"OPTIM__MAX_EPOCH": 30, "OPTIM__LR": 0.02, "OPTIM__WARMUP_EPOCH": -1}
    out = ok(run(arguments("AdvPT", TRAIN__PRINT_FREQ=1, TEST__NO_TEST=True, **keys)))
    shown = [line.split(" loss ")[1].split()[0] for line in out.splitlines() if " loss " in line]
    assert float(shown[-1]) < 0.7 * float(shown[0])


def test_zero_shot_needs_neither_training_nor_seed(arguments, run, tmp_path):
    ok(run(arguments("ZeroshotCLIP", seed=-1)))
    record = read_record(tmp_path / "run" / "record.json")
    assert record["protocol"] == "zero_shot" and record["prompt_parameters"] == 0
    assert record["train_threat"] is None and len(record["attacks"]) == 2
    assert record["seed"] == record["config"]["SEED"] == -1
    assert record["config"]["ATTACK.TEST.LIST"][0]["EPS"] == "16"


def test_bf16_tuning_and_words_to_start_from(arguments, run, tmp_path):
    options = {"TRAINER__ADVERSARIAL__PREC": "bf16", "TRAINER__ADVPT__CTX_INIT": "a photo"}
    out = ok(run(arguments("AdvPT", **options)))
    assert "note: CTX_INIT 'a photo' makes 2 vectors, not N_CTX 4" in out
    state = weights(tmp_path / "run")["state_dict"]["text_prompts"]
    assert state.dtype == torch.float32 and torch.isfinite(state).all() and state.shape[-2] == 2


def test_evaluation_equals_the_test_after_training(arguments, run, tmp_path):
    assert run(arguments("AdvPT"))[0] == 0
    again = arguments("AdvPT", "--eval-only", "--model-dir", str(tmp_path / "run"), out="again")
    assert run(again)[0] == 0
    first, second = (read_record(tmp_path / d / "record.json") for d in ("run", "again"))
    assert first["clean"] == second["clean"]
    for a, b in zip(first["attacks"], second["attacks"], strict=True):
        assert a["correct"] == b["correct"] and a["checks"] == b["checks"]


def test_a_finished_run_is_skipped_because_of_its_record(arguments, run, tmp_path):
    assert run(arguments("AdvPT"))[0] == 0
    before = (tmp_path / "run" / "record.json").read_bytes()
    code, out, _ = run(arguments("AdvPT"))
    assert code == 0 and "skipped: " in out
    assert (tmp_path / "run" / "record.json").read_bytes() == before
    (tmp_path / "run" / "record.json").unlink()  # a folder alone is no reason to skip
    code, out, _ = run(arguments("AdvPT"))
    assert code == 0 and "skipped: " not in out
    assert (tmp_path / "run" / "record.json").is_file()


@pytest.fixture
def no_training(monkeypatch):
    """From now on, a step of a training fails the test."""

    def forbid():
        def step(self, batch):
            raise AssertionError("this trains")

        monkeypatch.setattr(advpt.AdvPT, "forward_backward", step)

    return forbid


def test_settings_of_a_test_never_train_again(arguments, run, tmp_path, no_training):
    assert run(arguments("AdvPT", OPTIM__MAX_EPOCH=2))[0] == 0
    no_training()
    folder = tmp_path / "run"
    first = (folder / "record.json").read_bytes()

    def again(**keys):
        return ok(run(arguments("AdvPT", OPTIM__MAX_EPOCH=2, **keys)))

    assert "skipped: " in again(TEST__PICTURE=2, DATALOADER__TEST__BATCH_SIZE=5)
    assert not (folder / "tests").exists()
    one = {"ATTACK__TEST__LIST": "[{'EPS': '2', 'STEPS': 1}]"}
    again(TEST__SUBSET=6, **one)
    again(DEFENCE__NAME="jpeg", **one)
    again(**one)
    assert "skipped: " in again(**one)
    made = {path.name: read_record(path / "record.json") for path in folder.glob("tests/*")}
    assert {r["clean"]["n"] for r in made.values()} == {6, 12}
    assert [name for name, r in made.items() if "defence" in r["attacks"][0]] == [
        "pgd1-linf-2.255_NAME-jpeg"
    ]
    assert len(made) == 3 and all(r["shots"] == 4 and r["epochs"] == 2 for r in made.values())
    assert all(r["seconds"]["train"] == 0 for r in made.values())  # counted once
    assert (folder / "record.json").read_bytes() == first
    sentence = refusal(run(arguments("AdvPT", OPTIM__MAX_EPOCH=2, OPTIM__LR=0.5)))
    assert "OPTIM.LR = 0.005, this one has 0.5" in sentence


def test_a_record_is_not_reused_for_a_model_that_was_changed_since(arguments, run, tmp_path):
    argv = arguments("AdvPT", OPTIM__MAX_EPOCH=2)
    assert run(argv)[0] == 0
    path = tmp_path / "run" / "prompt_learner" / "model.pth.tar-2"
    whole, state = path.read_bytes(), torch.load(path, weights_only=True)
    state["state_dict"]["text_prompts"] += 0.1
    torch.save(state, path)
    again = ("--eval-only", "--model-dir", str(tmp_path / "run"), "--output-dir", "")
    for call in (argv, [*again, *argv]):
        assert f"record of another model than '{path}' is now" in refusal(run(call))
    path.write_bytes(whole)
    assert "skipped: " in run(argv)[1]


def test_a_test_alone_goes_into_the_folder_of_its_run(arguments, run, tmp_path, no_training):
    base = {"OPTIM__MAX_EPOCH": 2, "DATASET__SUBSAMPLE_CLASSES": "base"}
    assert run(arguments("AdvPT", **base))[0] == 0
    no_training()
    folder = tmp_path / "run"

    def test(**keys):
        argv = arguments("AdvPT", "--eval-only", "--model-dir", str(folder), **base | keys)
        at = argv.index("--output-dir")
        return ok(run(argv[:at] + argv[at + 2 :]))

    assert f"skipped: {folder} holds" in test(TEST__PROTOCOL="base2new")
    test(DATASET__SUBSAMPLE_CLASSES="new")
    record = read_record(folder / "tests" / "new" / "record.json")
    assert (record["classes"], record["split"], record["source"]) == (1, "new", "OxfordPets")
    assert "skipped: " in test(DATASET__SUBSAMPLE_CLASSES="new")


def test_an_interrupted_test_of_a_finished_run_resumes(
    arguments, run, tmp_path, no_training, monkeypatch
):
    from advprompt.evaluation.evaluator import Evaluation

    assert run(arguments("AdvPT", OPTIM__MAX_EPOCH=2))[0] == 0
    no_training()
    attack = Evaluation.run_attack
    lists = "[{'EPS': '2', 'STEPS': 1}, {'EPS': '8', 'STEPS': 1}]"
    argv = arguments("AdvPT", OPTIM__MAX_EPOCH=2, ATTACK__TEST__LIST=lists)
    seen = []

    def note(self, spec, *rest, **keys):
        seen.append(spec.eps)
        if len(set(seen)) == 2 and not stopped:
            raise KeyboardInterrupt
        return attack(self, spec, *rest, **keys)

    stopped = []
    monkeypatch.setattr(Evaluation, "run_attack", note)
    assert run(argv)[0] == 130
    stopped.append(True)
    first, seen = set(seen), []
    assert len(first) == 2 and run(argv)[0] == 0
    assert len(set(seen)) == 1  # the attack that was done is not made again
    (folder,) = (tmp_path / "run" / "tests").iterdir()
    assert len(read_record(folder / "record.json")["attacks"]) == 2
    assert not (folder / "unfinished").exists()


def test_an_interrupted_attack_goes_on(arguments, run, tmp_path, monkeypatch):
    from advprompt.evaluation import evaluator as evaluation

    assert run(arguments("ZeroshotCLIP", out="whole"))[0] == 0
    monkeypatch.setattr(evaluation, "SAVE_SECONDS", -1)
    attack, calls = evaluation.Evaluation.run_attack, []

    def stop_at_third(self, spec, where, pixels, **keys):
        calls.append(where)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return attack(self, spec, where, pixels, **keys)

    monkeypatch.setattr(evaluation.Evaluation, "run_attack", stop_at_third)
    one = {"DATALOADER__TEST__BATCH_SIZE": 1}
    assert run(arguments("ZeroshotCLIP", out="cut", **one))[0] == 130
    done = calls[:2]
    calls.clear()

    def go_on(self, spec, where, pixels, **keys):
        calls.append(where)
        return attack(self, spec, where, pixels, **keys)

    monkeypatch.setattr(evaluation.Evaluation, "run_attack", go_on)
    assert run(arguments("ZeroshotCLIP", out="cut", **one))[0] == 0
    assert not [where for where in calls if where in done]  # none is attacked twice
    whole, cut = (read_record(tmp_path / d / "record.json") for d in ("whole", "cut"))
    assert [a["correct"] for a in whole["attacks"]] == [a["correct"] for a in cut["attacks"]]


def test_best_val_never_looks_at_the_test_set(arguments, run, altered, tmp_path, monkeypatch):
    best = {"TEST__FINAL_MODEL": "best_val", "OPTIM__LR": 0.02}
    step, towers = advpt.AdvPT.forward_backward, []

    def look(self, batch):
        towers.append(self.clip.model.visual)
        assert not (tmp_path / "run" / "record.json").exists()
        return step(self, batch)

    monkeypatch.setattr(advpt.AdvPT, "forward_backward", look)
    out = ok(run(arguments("AdvPT", **best)))
    assert out.count("Evaluate on the *val* set") == 1 + 4 and towers and not any(towers)
    assert out.count("Evaluate on the *test* set") == 1 and "model-best.pth.tar" in out

    root = altered(val=lambda items: [])
    sentence = refusal(run(arguments("AdvPT", root=root, out="b", **best)))
    assert "best_val" in sentence and "last_step" in sentence


def test_a_record_tells_how_the_loaded_prompts_were_trained(arguments, run, tmp_path):
    assert run(arguments("AdvPT"))[0] == 0
    load = ["--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch"]
    other = {"DATASET__NUM_SHOTS": 2, "ATTACK__TRAIN__EPS": 3}
    assert run(arguments("AdvPT", *load, "2", out="eval", **other))[0] == 0
    record = read_record(tmp_path / "eval" / "record.json")
    assert (record["shots"], record["epochs"]) == (4, 2)
    assert record["train_threat"]["eps"] == "8/255"
    # another epoch is another model: neither skipped nor overwritten
    assert "load_epoch = 2" in refusal(run(arguments("AdvPT", *load, "4", out="eval", **other)))
    assert "--model-dir" in refusal(run(arguments("AdvPT", "--eval-only", out="c")))
    assert "tar-0" in refusal(run(arguments("AdvPT", *load, "0", out="d")))


def test_an_older_checkpoint_learns_its_data_set_from_its_run(arguments, run, tmp_path):
    assert run(arguments("AdvPT"))[0] == 0
    (path,) = (tmp_path / "run").rglob("model.pth.tar-4")
    state = torch.load(path, weights_only=True)
    assert state["training"].pop("dataset") == "OxfordPets"
    torch.save(state, path)
    load = ["--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "4"]
    assert run(arguments("AdvPT", *load, out="told"))[0] == 0
    assert read_record(tmp_path / "told" / "record.json")["source"] == "OxfordPets"
    (tmp_path / "run" / "record.json").unlink()
    assert run(arguments("AdvPT", *load, out="untold"))[0] == 0
    assert read_record(tmp_path / "untold" / "record.json")["source"] is None


def foreign(path, to, keep=("state_dict", "epoch")):
    """Copy a checkpoint without what we note in it, as CoOp's and AdvPT's own are."""
    state = torch.load(path, weights_only=True)
    to.parent.mkdir(parents=True)
    torch.save({key: state[key] for key in keep}, to)


def test_the_training_of_a_foreign_checkpoint_is_unknown(arguments, run, tmp_path):
    assert run(arguments("AdvPT"))[0] == 0
    for name, keep in {"bare": (), "odd": ("training",)}.items():
        path = tmp_path / name / "prompt_learner/model.pth.tar-4"
        foreign(weights_path := tmp_path / "run/prompt_learner/model.pth.tar-4", path)
        if keep:
            torch.save(torch.load(path, weights_only=True) | {"training": {"shots": 4}}, path)
        load = ["--eval-only", "--model-dir", str(tmp_path / name), "--load-epoch", "4"]
        assert run(arguments("AdvPT", *load, out=f"{name} test"))[0] == 0
        record = read_record(tmp_path / f"{name} test/record.json")
        facts = ("shots", "epochs", "train_threat", "source", "trained", "seed")
        assert [record[key] for key in facts] == [None] * 5 + [-1]
        assert (
            record["prompts_sha256"] == read_record(tmp_path / "run/record.json")["prompts_sha256"]
        )
    foreign(weights_path, tmp_path / "again/prompt_learner/model.pth.tar-2")
    sentence = refusal(run(arguments("AdvPT", out="again")))
    assert "does not say how it was trained" in sentence and "INIT_WEIGHTS" in sentence


def test_a_record_says_on_what_the_model_was_trained(arguments, run, tmp_path):
    half = {"DATASET__SUBSAMPLE_CLASSES": "base"}
    assert run(arguments("AdvPT", **half))[0] == 0
    load = ["--eval-only", "--model-dir", str(tmp_path / "run")]
    half["DATASET__SUBSAMPLE_CLASSES"] = "new"
    assert run(arguments("AdvPT", *load, out="new", seed=7, **half))[0] == 0
    base, new = (read_record(tmp_path / d / "record.json") for d in ("run", "new"))
    assert (new["split"], new["classes"], new["seed"]) == ("new", 1, 1)  # the training's seed
    assert new["trained"] == base["trained"] and new["set_sha256"] == base["set_sha256"]
    facts = [base["trained"][key] for key in ("name", "split", "classes", "set_sha256")]
    assert facts == ["OxfordPets", "base", 2, base["set_sha256"]]
    assert new["data_sha256"] != base["data_sha256"] != base["trained"]["data_sha256"]
    # older checkpoints do not say it; the folder of their run says of which classes it was
    (path,) = (tmp_path / "run").rglob("model.pth.tar-4")
    state = torch.load(path, weights_only=True)
    del state["training"]["data"], state["training"]["seed"]
    torch.save(state, path)
    assert run(arguments("AdvPT", *load, out="older", seed=7, **half))[0] == 0
    record = read_record(tmp_path / "older" / "record.json")
    assert record["trained"]["split"] == "base" and record["trained"]["data_sha256"] is None
    (tmp_path / "run" / "config.json").unlink()
    assert run(arguments("AdvPT", *load, out="no config", seed=7, **half))[0] == 0
    assert read_record(tmp_path / "no config" / "record.json")["trained"] is None


def renamed(items):
    return [[*item[:2], item[2].replace("red_circle", "red_disc")] for item in items]


def relabelled(items):
    first, *others, last = items
    return [[first[0], *last[1:]], *others, [last[0], *first[1:]]]


def fewer(items):
    return items[1:]


def repaint(root):
    for path in (root / "oxford_pets" / "images").iterdir():
        Image.open(path).rotate(90).save(path)


CHANGES = {
    "names": dict.fromkeys(("train", "val", "test"), renamed),
    "labels": {"test": relabelled},
    "pixels": {},
    "fewer": {"test": fewer},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_of_other_data_is_not_reused(arguments, run, altered, tmp_path, change):
    none = {"ATTACK__TEST__LIST": "[{'EPS': '4', 'STEPS': 1}]", "TEST__PROBES": 0}
    assert run(arguments("ZeroshotCLIP", **none))[0] == 0
    before = (tmp_path / "run/record.json").read_bytes()
    root = altered(**CHANGES[change])
    if change == "pixels":
        repaint(root)
    for more in ([], ["--eval-only", "--model-dir", str(tmp_path / "run")], ["--dry-run"]):
        code, out, err = run(arguments("ZeroshotCLIP", *more, root=root, **none))
        assert "holds a run on other data" in only_error(code, err) and "skipped" not in out
    # a copy elsewhere is the same data
    code, out, _ = run(arguments("ZeroshotCLIP", root=altered(), **none))
    assert code == 0 and "skipped" in out and "note" not in out
    code, out, _ = run(arguments("ZeroshotCLIP", root=tmp_path / "nowhere", **none))
    assert code == 0 and "skipped" in out and "not here to be compared" in out
    assert (tmp_path / "run/record.json").read_bytes() == before
    # an older record says how much it tested
    record = json.loads(before) | {"data_sha256": None, "set_sha256": None}
    (tmp_path / "run/record.json").write_text(json.dumps(record))
    code, _, err = run(arguments("ZeroshotCLIP", root=root, **none))
    assert code == (2 if change == "fewer" else 0), err


def test_a_training_is_not_continued_on_other_data(arguments, run, altered, tmp_path, monkeypatch):
    save = advpt.AdvPT.save_model

    def stop(self, *args, **keys):
        save(self, *args, **keys)
        raise KeyboardInterrupt

    monkeypatch.setattr(advpt.AdvPT, "save_model", stop)
    assert run(arguments("AdvPT"))[0] == 130
    monkeypatch.setattr(advpt.AdvPT, "save_model", save)
    root, drawn = altered(train=fewer), {"DATASET__CACHE_DIR": tmp_path / "drawn again"}
    argv = arguments("AdvPT", root=root, **drawn)
    assert "trained on other images or classes" in refusal(run(argv))
    code, out, err = run(arguments("AdvPT"))
    assert code == 0 and "Resuming" in out, err
    # finished: the same images are tested, but others were trained on
    assert "holds a run on other data" in refusal(run(argv))


def test_class_specific_contexts_serve_their_own_classes_only(arguments, run, altered, tmp_path):
    assert run(arguments("AdvPT", TRAINER__ADVPT__CSC=True))[0] == 0
    root = altered(**CHANGES["names"])
    load = ["--eval-only", "--model-dir", str(tmp_path / "run")]
    argv = arguments("AdvPT", *load, root=root, out="b", TRAINER__ADVPT__CSC=True)
    sentence = refusal(run(argv))
    assert "red_circle" in sentence and "red_disc" in sentence


def test_resume_goes_on_from_another_folder(arguments, run, tmp_path):
    assert run(arguments("AdvPT", out="first"))[0] == 0
    code, out, _ = run(arguments("AdvPT", "--resume", str(tmp_path / "first"), out="second"))
    assert code == 0 and f"from {tmp_path / 'first'}" in out
    for key, value in {"OPTIM.MAX_EPOCH": "8", "DATASET.NUM_SHOTS": "2"}.items():
        longer = [*arguments("AdvPT", "--resume", str(tmp_path / "first"), out="4th"), key, value]
        sentence = refusal(run(longer))
        assert f"{key} = 4, this one has {value}; --resume continues the same" in sentence
    nowhere = arguments("AdvPT", "--resume", str(tmp_path / "nowhere"), out="third")
    assert "nowhere" in refusal(run(nowhere))


def test_a_deleted_or_torn_checkpoint_does_not_block_resuming(tmp_path):
    from advprompt.engine.checkpoints import newest_checkpoint

    assert newest_checkpoint(tmp_path) is None
    for epoch in (2, 10):
        (tmp_path / f"model.pth.tar-{epoch}").touch()
    assert newest_checkpoint(tmp_path).name == "model.pth.tar-10"
    (tmp_path / "checkpoint").write_text("model.pth.tar-2\n")
    assert newest_checkpoint(tmp_path).name == "model.pth.tar-2"
    for pointer in ("model.pth.tar-99\n", ""):
        (tmp_path / "checkpoint").write_text(pointer)
        assert newest_checkpoint(tmp_path).name == "model.pth.tar-10"


@pytest.mark.slow
def test_a_killed_run_resumes(arguments, tmp_path):
    argv = arguments("AdvPT", OPTIM__MAX_EPOCH=400, TRAIN__CHECKPOINT_FREQ=1)
    command = [sys.executable, str(REPO / "train.py"), *argv]
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL)
    folder, limit = tmp_path / "run" / "prompt_learner", time.monotonic() + 120
    while not (folder / "model.pth.tar-3").exists():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = max(int(p.name.rpartition("-")[2]) for p in folder.glob("model.pth.tar-*"))
    assert reached < 400
    again = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "Resuming prompt_learner" in again.stdout
    assert read_record(tmp_path / "run" / "record.json")["status"] == "completed"


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"DATASET__NAME": "OxfordPet"}, ["'OxfordPet'", "OxfordPets"]),
        ({"MODEL__BACKBONE__NAME": "ViT-B/61"}, ["'ViT-B/61'", "ViT-B/16"]),
        ({"INPUT__TRANSFORMS": "['normalize']"}, ["INPUT.TRANSFORMS", "[0, 1]"]),
        ({"ATTACK__TRAIN__EPS": 0.0157}, ["0.0157", "4"]),
        ({"ATTACK__TEST__LIST": "[{'EPS': 0}]"}, ["EPS 0", "1/255"]),
        ({"ATTACK__TEST__LIST": "[{'EPS': 0.0157}]"}, ["0.0157", "4"]),
        ({"ATTACK__TEST__LIST": "[{'EPSILON': 4}]"}, ["EPSILON", "EPS"]),
        ({"ATTACK__TEST__LIST": "[{'EPS': 4}, {'EPS': '4/255'}]"}, ["twice", "4/255"]),
        ({"ATTACK__TEST__LIST": "[{'TARGET': 'embedding'}]"}, ["'embedding'", "embedding_kl"]),
        (
            {"ATTACK__TRAIN__OBJECTIVE": "ce", "ATTACK__TRAIN__TARGET": "end_to_end"},
            ["ATTACK.TRAIN", "'ce'", "ATTACK.THREAT advpt16"],
        ),
        ({"TRAINER__ADVERSARIAL__PREC": "amp", "USE_CUDA": False}, ["amp", "GPU"]),
        ({"DATASET__NUM_SHOTS": 7}, ["red_circle", "6", "7"]),
        ({"INPUT__SIZE": "(64,64)"}, ["(64, 64)", "(32, 32)"]),
        ({"DATASET__TEMPLATE": "a " * 200 + "{}"}, ["takes 204 tokens", "reads 77"]),
    ],
)
def test_bad_configuration_is_one_sentence(arguments, run, tmp_path, keys, words):
    sentence = refusal(run(arguments("AdvPT", **keys)))
    for word in words:
        assert word in sentence
    assert not (tmp_path / "run" / "record.json").exists()
    assert not (tmp_path / "run" / "config.json").exists()  # the corrected call may use the folder


def test_unknown_trainer_and_missing_config(arguments, run):
    argv = arguments("AdvPT")
    argv[argv.index("--trainer") + 1] = "AdvTP"
    assert "AdvPT" in refusal(run(argv))
    argv = arguments("AdvPT")
    argv[argv.index("--config-file") + 1] = str(REPO / "configs/trainers/AdvPT/vit_b61.yaml")
    assert "vit_b16.yaml" in refusal(run(argv))


def test_missing_data_says_where_it_belongs(arguments, run, altered, tmp_path):
    sentence = refusal(run(arguments("AdvPT", root=tmp_path / "nowhere")))
    assert str(tmp_path / "nowhere" / "oxford_pets") in sentence
    root = altered()
    gone = sorted((root / "oxford_pets" / "images").glob("red_circle_*.png"))
    for path in gone:
        path.unlink()
    sentence = refusal(run(arguments("AdvPT", root=root)))
    assert "images are missing" in sentence and gone[0].name.partition("_")[0] in sentence


@pytest.mark.parametrize(
    ("trainer", "workers", "said"),
    [
        ("AdvPT", 0, "is corrupt"),
        ("AdvIVLP", 0, "replace or remove it"),
        ("AdvIVLP", 1, "replace or remove it"),
    ],
)
def test_a_corrupt_training_image_is_named(
    arguments, white_box, run, altered, tmp_path, trainer, workers, said
):
    root = altered()
    for path in (root / "oxford_pets" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    make = arguments if trainer == "AdvPT" else white_box
    argv = make(trainer, root=root, DATALOADER__NUM_WORKERS=workers)
    sentence = refusal(run(argv))
    assert str(root / "oxford_pets" / "images") in sentence and said in sentence
    assert not (tmp_path / "run" / "config.json").exists()  # nothing was made: not taken


def test_checkpoints_of_others_are_refused(arguments, run, tmp_path):
    assert run(arguments("AdvPT"))[0] == 0
    load = ["--eval-only", "--model-dir", str(tmp_path / "run")]

    other_length = run(arguments("AdvPT", *load, out="a", TRAINER__ADVPT__N_CTX=5))
    assert "'text': 4" in refusal(other_length)
    classes = run(arguments("AdvPT", *load, out="b", TRAINER__ADVPT__CSC=True))
    assert "'csc': True" in refusal(classes)
    place = run(arguments("AdvPT", *load, out="p", TRAINER__ADVPT__CLASS_TOKEN_POSITION="front"))
    assert "'position': 'front'" in refusal(place)
    none = run(arguments("AdvPT", *load, "--load-epoch", "77", out="c"))
    assert "model.pth.tar-77" in refusal(none)

    path = tmp_path / "run" / "prompt_learner" / "model.pth.tar-4"
    state = torch.load(path, weights_only=True)
    state["advprompt"]["trainer"] = "CAPT"
    torch.save(state, path)
    assert "'CAPT'" in refusal(run(arguments("AdvPT", *load, out="d")))
    torch.save({"weights": torch.zeros(3)}, path)
    assert "state_dict" in refusal(run(arguments("AdvPT", *load, out="e")))
    path.write_bytes(path.read_bytes()[:100])
    assert "truncated" in refusal(run(arguments("AdvPT", *load, out="f")))


def test_a_checkpoint_that_would_execute_code_is_refused(arguments, run, tmp_path):
    assert run(arguments("AdvPT"))[0] == 0
    path = tmp_path / "run" / "prompt_learner" / "model.pth.tar-4"
    torch.save({"state_dict": {"ctx": Payload(tmp_path / "executed")}}, path)
    load = ["--eval-only", "--model-dir", str(tmp_path / "run")]
    assert "could execute code" in refusal(run(arguments("AdvPT", *load, out="x")))
    path.write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    assert "mkdir" in refusal(run(arguments("AdvPT", *load, out="y")))
    assert not (tmp_path / "executed").exists()
    path.write_text('{"no": "pickle"}')
    assert "no checkpoint" in refusal(run(arguments("AdvPT", *load, out="z")))


def test_a_damaged_bank_is_named(arguments, run, tmp_path):
    assert run(arguments("AdvPT"))[0] == 0
    for path in (tmp_path / "banks").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-5])
    assert str(tmp_path / "banks") in refusal(run(arguments("AdvPT", out="again")))


def test_another_configuration_does_not_overwrite_a_run(arguments, run, tmp_path):
    assert run(arguments("AdvPT"))[0] == 0
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("[!.]*") if p.is_file()}
    sentence = refusal(run(arguments("AdvPT", OPTIM__MAX_EPOCH=5)))
    assert "OPTIM.MAX_EPOCH" in sentence and "5" in sentence
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("[!.]*") if p.is_file()}
    assert files == after


def test_an_output_folder_that_is_a_file(arguments, run, tmp_path):
    (tmp_path / "run").write_text("mine")
    assert str(tmp_path / "run") in refusal(run(arguments("AdvPT")))
    assert (tmp_path / "run").read_text() == "mine"


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    from advprompt.engine.checkpoints import load_checkpoint, save_checkpoint
    from advprompt.utils.errors import UserError

    path = tmp_path / "model.pth.tar-1"
    save_checkpoint(path, {"state_dict": {"text_prompts": torch.ones(2)}})

    write = type(path).write_bytes

    def full(place, content):
        write(place, bytes(content)[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(UserError, match=r"No space left on device.* unchanged"):
        save_checkpoint(path, {"state_dict": {"text_prompts": torch.zeros(2)}})
    assert torch.equal(load_checkpoint(path)["state_dict"]["text_prompts"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_data_set_may_say_which_augmentation_keeps_its_labels(arguments, tmp_path):
    from advprompt.cli import train

    yaml = tmp_path / "own.yaml"
    yaml.write_text("DATASET:\n  NAME: Shapes\n  TRANSFORMS: [random_translation]\n")

    def transforms(*extra, file=yaml):
        words = arguments("AdvPT")
        words[words.index("--dataset-config-file") + 1] = str(file)
        return train.setup_cfg(train.parser().parse_args([*words, *extra])).INPUT.TRANSFORMS

    usual = ["random_resized_crop", "random_flip"]
    assert list(transforms(file=REPO / "configs/datasets/oxford_pets.yaml")) == usual
    assert list(transforms()) == ["random_translation"]
    assert list(transforms("INPUT.TRANSFORMS", "['random_flip']")) == ["random_flip"]
