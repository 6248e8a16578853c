"""tools.explain: the words nearest to learned text vectors, of finished runs."""

import json

import pytest
import torch

from advprompt.backbone import load_clip
from advprompt.cli import explain
from advprompt.cli.main import dispatch
from advprompt.utils.entry import run_tool
from tests.conftest import only_error, weights


@pytest.fixture
def told(tool, tmp_path):
    return lambda *words, folder=tmp_path / "run": tool(explain.main, folder, *words)


def test_vectors_that_are_words_are_their_own_nearest(run, arguments, told, toy_file):
    words = {"TRAINER__ADVPT__CTX_INIT": "a photo of cat"}
    assert run(arguments("AdvPT", OPTIM__LR=0.0, OPTIM__WARMUP_EPOCH=0, **words))[0] == 0
    code, out, err = told("--format", "json", "--top", 3)
    assert code == 0, err
    found = json.loads(out)
    assert [v["words"][0] for v in found["vectors"]] == ["a", "photo", "of", "cat"]
    assert all(v["distances"][0] == 0 < v["distances"][1] for v in found["vectors"])
    assert [v["number"] for v in found["vectors"]] == [1, 2, 3, 4]
    assert found["trainer"] == "AdvPT" and found["weights_sha256"]


def test_distances_are_those_of_brute_force(run, arguments, told, tmp_path, toy_file):
    assert run(arguments("AdvPT"))[0] == 0
    found = json.loads(told("--format", "json", "--top", 4)[1])["vectors"]
    (ctx,) = weights(tmp_path / "run")["state_dict"]["text_prompts"]
    table = load_clip(f"file:{toy_file}").model.token_embedding.weight
    for vector, entry in zip(ctx, found, strict=True):
        distances = (table - vector).pow(2).sum(1).sqrt()
        wanted = distances.sort().values[:4].tolist()
        assert entry["distances"] == pytest.approx(wanted, abs=2e-4)
    first = json.loads(told("--format", "json", "--load-epoch", 2)[1])["vectors"]
    assert first[0]["distances"] != found[0]["distances"]


def test_terminal_and_markdown(run, arguments, told, tmp_path):
    assert run(arguments("AdvPT"))[0] == 0
    code, out, _ = told("--top", 2)
    assert code == 0 and "nearest 2" in out and "nearest 3" not in out and "Euclidean" in out
    assert "layer" not in out.splitlines()[0] and "class" not in out.splitlines()[0]
    target = tmp_path / "words.md"
    assert told("--format", "markdown", "--out", target)[0] == 0
    assert target.read_text().startswith("|") and target.read_text().count("\n|") >= 5
    assert run_tool(dispatch, ["explain", str(tmp_path / "run")]) == 0


def test_class_specific_vectors_name_their_class(run, arguments, told):
    assert run(arguments("AdvPT", TRAINER__ADVPT__CSC=True, TRAINER__ADVPT__N_CTX=2))[0] == 0
    found = json.loads(told("--format", "json")[1])["vectors"]
    names = ("red_circle", "green_square", "blue_arrow")
    assert [(v["class_name"], v["number"]) for v in found] == [
        (n, i) for n in names for i in (1, 2)
    ]
    assert "class" in told()[1].splitlines()[0]


@pytest.mark.parametrize("trainer", ["NAPTuning", "AdvMaPLe", "AdvIVLP", "FAP", "APD"])
def test_deep_prompts_are_told_layer_by_layer(trainer, build, tmp_path, told):
    from advprompt import records
    from advprompt.engine import run_folder
    from advprompt.utils.io import write_json

    keys = {"INPUT__TRANSFORMS": "['center_crop']"}
    made = build(trainer, **keys)
    folder = tmp_path / "run"
    made.save_model(0, str(folder))
    write_json(folder / run_folder.CONFIG_FILE, records.flat_config(made.cfg))
    code, out, err = told("--format", "json")
    assert code == 0, err
    found = json.loads(out)["vectors"]
    with torch.no_grad():
        wanted = [group.detach() for group in made.model.text_vectors()]
    assert [v["layer"] for v in found] == [i for i, group in enumerate(wanted) for _ in group]
    norms = [float(vector.norm()) for group in wanted for vector in group]
    assert [v["norm"] for v in found] == pytest.approx(norms, abs=2e-4)
    assert len(wanted) > 1 and "layer" in told()[1].splitlines()[0]


def test_mistakes_are_one_sentence(run, white_box, arguments, told, tmp_path):
    assert "holds no run" in only_error(*told(folder=tmp_path)[::2])
    assert run(arguments("ZeroshotCLIP", out="zero"))[0] == 0
    assert "no learned text vectors" in only_error(*told(folder=tmp_path / "zero")[::2])
    assert run(white_box("TeCoA", out="tecoa"))[0] == 0
    assert "no learned text vectors" in only_error(*told(folder=tmp_path / "tecoa")[::2])
    assert run(arguments("AdvPT"))[0] == 0
    for top in (0, 10**6):
        assert f"--top is {top}" in only_error(*told("--top", top)[::2])
    assert "model.pth.tar-99" in only_error(*told("--load-epoch", 99)[::2])
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"MODEL.BACKBONE.NAME": "tiny"}))
    assert "other weights" in only_error(*told()[::2])
