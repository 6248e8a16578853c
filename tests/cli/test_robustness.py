"""``advprompt robustness``: finished runs under other threat models."""

import json
from pathlib import Path

import pytest
import torch

from advprompt import records
from advprompt.cli import robustness
from advprompt.evaluation import evaluator as evaluation
from tests.conftest import REPO, ok, refusal


def read_record(folder):
    return records.read_record(folder / records.FILE_NAME)


@pytest.fixture
def finished(run, white_box, tmp_path):
    ok(run(white_box("AdvIVLP")))
    return tmp_path / "run"


@pytest.fixture
def attack(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "ATTACK:\n  TRAIN:\n    EPS: 99\n  TEST:\n    EPS: 2\n    LIST:\n"
        "      - {NAME: pgd, STEPS: 4}\n      - {NAME: apgd, STEPS: 4}\n"
    )
    return path


@pytest.fixture
def test_of(finished, pets, tool):
    def call(*files, folder=finished, opts=()):
        words = ["--model-dir", folder, "--attack-config-file", *files, "--root", pets, *opts]
        return tool(robustness.main, *words)

    return call


def facts(record):
    """What must not depend on when and in how many pieces a test was made."""
    attacks = [{k: v for k, v in a.items() if k != "seconds"} for a in record["attacks"]]
    return record["clean"], attacks, record["train_threat"], record["prompt_parameters"]


def test_a_finished_run_gets_a_record_per_threat_model(test_of, finished, attack):
    ok(test_of(attack))
    before, record = read_record(finished), read_record(finished / "tests" / "mine")
    made = [(a["name"], a["eps"], a["steps"]) for a in record["attacks"]]
    assert made == [("pgd", "2/255", 4), ("apgd", "2/255", 4)]
    for key in ("trainer", "shots", "seed", "epochs", "train_threat", "clean", "weights_sha256"):
        assert record[key] == before[key], key
    assert record["train_threat"]["eps"] == "4/255"  # not the attack file's
    assert "skipped" in test_of(attack)[1]


def test_an_interrupted_test_gives_the_same_record(test_of, finished, attack, monkeypatch):
    assert test_of(attack)[0] == 0
    whole = read_record(finished / "tests" / "mine")
    (finished / "tests").rename(finished / "first")
    real, calls = evaluation.Evaluation.run_attack, []

    def killed(self, *args, **keys):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args, **keys)

    monkeypatch.setattr(evaluation, "SAVE_SECONDS", -1)
    monkeypatch.setattr(evaluation, "CPU_BATCH", 2)
    monkeypatch.setattr(evaluation.Evaluation, "run_attack", killed)
    assert test_of(attack)[0] == 130
    assert not (finished / "tests" / "mine" / "record.json").exists()
    assert list((finished / "tests" / "mine" / "unfinished").glob("*.json"))
    monkeypatch.setattr(evaluation.Evaluation, "run_attack", real)
    assert test_of(attack)[0] == 0
    assert facts(read_record(finished / "tests" / "mine")) == facts(whole)


def test_every_shipped_threat_model_can_be_asked_for(finished, pets):
    files = sorted((REPO / "configs/attacks").glob("*.yaml"))
    assert len(files) >= 9
    for file in files:
        cfg, model = robustness.settings(str(finished), str(file), str(pets), [])
        assert (cfg.OUTPUT_DIR, model) == ("", str(finished))
        assert cfg.ATTACK.TRAIN.EPS == "4/255" and cfg.OPTIM.MAX_EPOCH == 1


@pytest.mark.slow
def test_every_shipped_threat_model_runs(test_of, finished, pets):
    files = sorted((REPO / "configs/attacks").glob("*.yaml"))
    files = [file for file in files if file.stem != "rap16"]  # a test of its own, below
    out = ok(test_of(*files, opts=["--opts", "TEST.SUBSET", "4"]))
    made = [read_record(folder) for folder in (finished / "tests").iterdir()]
    assert all(r["subset"] == 4 for r in made)
    assert len(made) + out.count("skipped: ") == len(files)  # nap4 is tested as linf4 is


@pytest.mark.slow
def test_the_shipped_black_box_runs(test_of, finished, tmp_path, monkeypatch):
    """rap16 as it is but for 2 of its 400 steps; ResNet-50 from the library's cache, untrained."""
    from torchvision.models import ResNet50_Weights, resnet50

    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(resnet50().state_dict(), cache / Path(ResNet50_Weights.IMAGENET1K_V1.url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    shipped = (REPO / "configs/attacks/rap16.yaml").read_text()
    short = shipped.replace('surrogate: "', 'late_start: 1, surrogate: "')
    short = short.replace('{NAME: rap, EPS: "16/255",', '{NAME: rap, EPS: "16/255", STEPS: 2,')
    assert "STEPS: 2" in short and "late_start: 1" in short
    file = tmp_path / "rap16.yaml"
    file.write_text(short.replace("STEPS: 100", "STEPS: 2"))
    ok(test_of(file, opts=["--opts", "TEST.SUBSET", "2"]))
    record = read_record(finished / "tests" / "rap16_TEST.SUBSET-2")
    rap, white = record["attacks"]
    assert rap["target"] == "surrogate" and rap["kwargs"]["surrogate"] == "torchvision:resnet50"
    assert rap["checks"]["max_linf"] > 15 / 255 and white["target"] == "end_to_end"


def test_mistakes_are_found_before_anything_runs(test_of, finished, attack, tmp_path):
    assert "holds no run" in refusal(test_of(attack, folder=tmp_path))
    for opts in (["OPTIM.LR", "1"], ["ATTACK.TRAIN.EPS", "4", "TRAIN.PRINT_FREQ", "1"]):
        error = refusal(test_of(attack, opts=["--opts", *opts]))
        assert f"{' and '.join(opts[::2])} would change nothing" in error
    missing = tmp_path / "mien.yaml"
    assert "mine.yaml" in refusal(test_of(attack, missing))
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("ATTACK:\n  TEST:\n    LIST:\n      - {NAME: pgdd}\n")
    assert "pgdd" in refusal(test_of(attack, wrong))
    assert not (finished / "tests").exists()
    (finished / "config.json").write_text(json.dumps({"TRAINER.NAME": "AdvIVLP"})[:-3])
    assert "config.json" in refusal(test_of(attack))
