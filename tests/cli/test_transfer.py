"""advprompt transfer: images made against one run, shown to the others."""

import json
import shutil

import pytest
from PIL import Image

from advprompt import records
from advprompt.cli import transfer
from advprompt.cli.main import dispatch
from advprompt.evaluation import evaluator as evaluation
from advprompt.evaluation import transfer as matrices
from advprompt.utils.entry import run_tool
from tests.conftest import ok, refusal

ATTACK = "ATTACK: {TEST: {EPS: 0.5, ALPHA: 0.25/255, STEPS: 3, LIST: %s}}"


@pytest.fixture
def finished(run, white_box, tmp_path):
    """Three runs, whose own test is the attack of ``attack``."""
    keys = {"ATTACK__TEST__LIST": "[{'EPS': '0.5', 'ALPHA': '0.25/255', 'STEPS': 3}]"}
    for name in ("AdvCoOp", "AdvIVLP", "ZeroshotCLIP"):
        ok(run(white_box(name, out=name, **keys)))
    return [tmp_path / name for name in ("AdvCoOp", "AdvIVLP", "ZeroshotCLIP")]


@pytest.fixture
def attack(tmp_path):
    path = tmp_path / "attack.yaml"
    path.write_text(ATTACK % "[]")
    return path


@pytest.fixture
def matrix(attack, pets, tool, tmp_path):
    def call(folders, *words, file=attack, out="m.json", root=pets):
        words = [*folders, "--attack-config-file", file, *words, "--root", root]
        return tool(transfer.main, *words, "--out", tmp_path / out)

    return call


def own_test(folder):
    record = records.read_record(folder / records.FILE_NAME)
    return record["clean"]["correct"], record["attacks"][0]["correct"]


def counts(path):
    record = json.loads(path.read_text())
    return [[row["correct"] for row in table["rows"]] for table in record["tables"]]


def test_the_diagonal_is_the_white_box_test(matrix, finished, tmp_path):
    out = ok(matrix(finished))
    record = json.loads((tmp_path / "m.json").read_text())
    (table,) = record["tables"]
    assert record["status"] == "completed" and record["n"] == 12 and record["schema"] == 1
    for i, folder in enumerate(finished):
        clean, robust = own_test(folder)
        assert record["runs"][i]["clean"]["correct"] == clean
        assert table["rows"][i]["correct"][i] == robust
        assert 0 < (took := table["rows"][i]["seconds"]) < 60 and took == round(took, 3)
        assert table["rows"][i]["checks"]["max_linf"] <= 0.5 / 255 + 1e-6
        for j, tested in enumerate(record["runs"]):
            assert 0 <= table["rows"][i]["correct"][j] <= tested["clean"]["correct"]
    lines = out.splitlines()
    assert lines[3].split()[-3:] == ["AdvCoOp", "AdvIVLP", "ZeroshotCLIP"]
    assert sum("[" in line for line in lines) == 3 and "end-to-end PGD-3 0.5/255" in lines[0]


def test_off_the_diagonal_stand_the_other_runs_answers(matrix, finished, tmp_path, monkeypatch):
    """Recomputed from the kept images: made against run i, scored by a model of run j."""
    images, real = {}, evaluation.Evaluation.run_attack

    def watched(self, spec, where, pixels, **keys):
        result = real(self, spec, where, pixels, **keys)
        images.setdefault(self.victim.name, []).append((self, where, result.images))
        return result

    monkeypatch.setattr(evaluation.Evaluation, "run_attack", watched)
    assert matrix(finished)[0] == 0
    (rows,) = counts(tmp_path / "m.json")
    names = [folder.name for folder in finished]
    tests = {name: found[0][0] for name, found in images.items()}
    for i, made in enumerate(names):
        for j, tested in enumerate(names):
            other, expected = tests[tested], 0
            for test, where, adversarial in images[made]:
                clean = next(x for w, x in test.pixels(where, "again", len(where)))
                right = other.logits(clean).argmax(1) == other.labels[where]
                right &= other.logits(adversarial).argmax(1) == other.labels[where]
                expected += int(right.sum())
            assert rows[i][j] == expected, (made, tested)


def test_a_killed_matrix_resumes_after_its_last_row(matrix, finished, tmp_path, monkeypatch, pets):
    assert matrix(finished, out="whole.json")[0] == 0
    real, made = matrices.make_row, []

    def killed(source, *args):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(source)
        return real(source, *args)

    monkeypatch.setattr(matrices, "make_row", killed)
    assert matrix(finished)[0] == 130
    assert json.loads((tmp_path / "m.json").read_text())["status"] == "running"
    made.clear()
    assert matrix(finished)[0] == 0 and made == [2]
    assert counts(tmp_path / "m.json") == counts(tmp_path / "whole.json")
    made.clear()
    code, out, err = matrix(finished)
    assert code == 0 and made == [] and "skipped" in err and "AdvIVLP" in out
    roots = shutil.copytree(pets, tmp_path / "d")
    assert matrix(finished, root=roots)[0] == 0  # a copy
    for path in roots.rglob("*.png"):
        Image.open(path).rotate(90).save(path)
    assert "other runs, images or attacks" in refusal(matrix(finished, root=roots))


def test_attacks_get_a_table_each_and_composed_ones_run_whole(matrix, finished, tmp_path, attack):
    three = "[{NAME: pgd}, {NAME: apgd, STEPS: 3}, {NAME: pgd, TARGET: frozen_prompt}]"
    attack.write_text(ATTACK % three)
    out = ok(matrix(finished[:2], "--format", "markdown"))
    assert len(counts(tmp_path / "m.json")) == 2  # the frozen-prompt attack is none of them
    assert out.count("### OxfordPets, transfer of ") == 2 and out.count("**") == 8


def test_a_column_below_its_diagonal_is_reported():
    rows = [{"correct": [5, 2]}, {"correct": [6, 3]}]
    (warning,) = matrices.order_warnings(["A", "B"], rows)
    assert warning.startswith("transfer_order: B gets 2 right on images made against A, but 3")


def test_names_tell_runs_apart():
    run = {"trainer": "FAP", "shots": 16, "seed": 1, "folder": "a"}
    assert transfer.names_of([run, run | {"trainer": "APD"}]) == ["FAP", "APD"]
    assert transfer.names_of([run, run | {"seed": 2}]) == ["FAP, seed 1", "FAP, seed 2"]
    assert transfer.names_of([run, run | {"shots": -1}]) == ["FAP, 16 shots", "FAP, all shots"]
    assert transfer.names_of([run, run | {"shots": None}]) == [
        "FAP, 16 shots",
        "FAP, unknown shots",
    ]
    assert transfer.names_of([run, run | {"folder": "b"}]) == ["FAP, a", "FAP, b"]


def test_mistakes(matrix, finished, run, white_box, tmp_path, attack):
    assert "two different run folders" in refusal(matrix(finished[:1]))
    assert "two different run folders" in refusal(matrix(finished[:1] * 2))
    assert "holds no run" in refusal(matrix([finished[0], tmp_path]))
    frozen = tmp_path / "frozen.yaml"
    frozen.write_text("ATTACK: {TEST: {TARGET: frozen_prompt}}")
    assert "end_to_end" in refusal(matrix(finished, file=frozen))
    assert run(white_box("ZeroshotCLIP", out="base", DATASET__SUBSAMPLE_CLASSES="base"))[0] == 0
    assert "differ in classes" in refusal(matrix([finished[0], tmp_path / "base"]))
    defended = matrix(finished, "--opts", "DEFENCE.NAME", "jpeg")
    assert "defence 'jpeg'" in refusal(defended)
    (tmp_path / "m.json").write_text("{}")
    assert "another matrix" in refusal(matrix(finished))
    assert (tmp_path / "m.json").read_text() == "{}"
    words = ["transfer", str(tmp_path), str(finished[0]), "--attack-config-file", str(attack)]
    assert run_tool(dispatch, words) == 2
