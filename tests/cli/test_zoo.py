"""The prompt zoo: exports of every trainer, loading them, and starting a training from one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import advprompt
from advprompt import UserError
from advprompt.cli import export
from advprompt.config.keys import METHODS
from advprompt.engine import exports, run_folder
from advprompt.evaluation.evaluator import Evaluation
from advprompt.evaluation.samples import ImageList
from advprompt.evaluation.victim import TrainerVictim
from advprompt.records import read_record
from advprompt.utils import io
from advprompt.utils.entry import run_tool
from tests.conftest import REPO, ok, only_error, refusal, weights
from tests.toy import toy_state_dict

CASES = {  # every trainer, and what changes how one of them serves
    **{name: (name, {}) for name in METHODS},
    "AdvPT middle": ("AdvPT", {"TRAINER__ADVPT__CLASS_TOKEN_POSITION": "middle"}),
    "AdvPT csc": ("AdvPT", {"TRAINER__ADVPT__CSC": True}),
    "AdvPT words": ("AdvPT", {"TRAINER__ADVPT__CTX_INIT": "a drawing of a"}),
    "CoOp csc": ("CoOp", {"TRAINER__COOP__CSC": True, "TRAINER__COOP__N_CTX": 4}),
    "CAPT vision": ("CAPT", {"TRAINER__CAPT__COUPLING": "vision_to_text"}),
    "NAP refiners": ("NAPTuning", {"TRAINER__NAPTUNING__N_CTX": 0}),
    "APD alone": ("APD", {"TRAINER__APD__TEACHER": "zero_shot"}),
    "TeCoA tower": ("TeCoA", {"TRAINER__TECOA__VARIANT": "finetune"}),
}


@pytest.fixture
def trained(white_box, arguments, capsys):
    """A finished run of ``name`` whose values were drawn, not learned: its trainer."""
    from dassl.engine import build_trainer

    from advprompt.cli import train

    def make(name: str, finish=True, **keys):
        source = arguments if name == "AdvPT" else white_box
        quick = {"ATTACK__TEST__LIST": "[{'EPS': '4', 'STEPS': 1}]", "TEST__PROBES": 0}
        cfg = train.setup_cfg(train.parser().parse_args(source(name, **(quick | keys))))
        trainer = build_trainer(cfg)
        generator = torch.Generator().manual_seed(7)
        for module in trainer._models.values():
            for value in module.parameters():
                value.data += 0.05 * torch.randn(value.shape, generator=generator)
        trainer.save_model(0, cfg.OUTPUT_DIR)
        run_folder.claim(cfg, run_folder.look(cfg))
        if finish:
            trainer.test()
        return trainer

    return make


@pytest.fixture
def exported(capsys, tmp_path):
    """Run advprompt export on tmp_path/run: ``exported("--epoch", 1)``."""

    def call(*words, folder=None, out="zoo"):
        capsys.readouterr()
        where = ["--out", str(tmp_path / out)] if out else []
        argv = [str(folder or tmp_path / "run"), *where, *map(str, words)]
        code = run_tool(export.main, argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def entry(trained, exported, tmp_path, toy_file):
    """An export of CoOp with 4 vectors, and the keywords to load it with."""
    trained("CoOp", TRAINER__COOP__N_CTX=4)
    ok(exported())
    return tmp_path / "zoo", {"weights_dir": toy_file.parent}


def pictures(trainer) -> list[Image.Image]:
    return [Image.open(item.impath) for item in trainer.dm.dataset.test]


# --- what loads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(CASES))
def test_logits_are_those_of_the_runs_own_test(trained, exported, tmp_path, toy_file, case):
    name, keys = CASES[case]
    trainer = trained(name, **keys)
    files = ImageList(trainer.dm.dataset.test, trainer.preprocess)
    victim = TrainerVictim(trainer)
    own = Evaluation(victim, files, folder=tmp_path, cache=tmp_path, batch_size=100)
    with torch.no_grad():
        expected = own.clean()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    ok(exported())
    model = advprompt.load(tmp_path / "zoo", weights_dir=toy_file.parent)
    images = pictures(trainer)
    found = model.logits(images)
    assert found.shape == (12, 3)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert not any(value.requires_grad for value in model.parameters())
    assert model.classnames == list(trainer.classnames)
    right = [model.classnames[i] for i in expected.argmax(1)]
    assert model.predict(images) == right and model.predict(images[0]) == right[:1]

    pixels = model.pixels(images[:2]).requires_grad_(True)
    model(pixels)[:, 0].sum().backward()
    assert pixels.grad.abs().sum() > 0

    record = read_record(tmp_path / "run" / "record.json")
    figures = model.card["figures"]
    assert figures["clean"]["correct"] == record["clean"]["correct"]
    assert figures["attacks"][0]["correct"] == record["attacks"][0]["correct"]


def test_no_data_set_and_no_trainer_is_built(entry, monkeypatch, capsys):
    from dassl import data, engine

    def refuse(*_, **__):
        raise AssertionError("built")

    monkeypatch.setattr(data.DataManager, "__init__", refuse)
    monkeypatch.setattr(engine.TrainerX, "__init__", refuse)
    path, where = entry
    model = advprompt.load(path, **where)
    capsys.readouterr()
    assert model.logits(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    assert advprompt.load(path / exports.WEIGHTS, **where).classnames == model.classnames
    assert capsys.readouterr().out == ""


def test_a_model_of_an_ambient_inference_mode_still_gives_gradients(entry):
    path, where = entry
    with torch.inference_mode():
        model = advprompt.load(path, **where)
    pixels = torch.rand(1, 3, 32, 32, requires_grad=True)
    model.logits(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0


def test_it_may_be_attacked_with_a_library(entry):
    torchattacks = pytest.importorskip("torchattacks")

    path, where = entry
    model = advprompt.load(path, **where)
    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    adversarial = torchattacks.PGD(model, eps=4 / 255, steps=2)(images, labels)
    before, after = (
        torch.nn.functional.cross_entropy(model(x), labels) for x in (images, adversarial)
    )
    assert after > before and (adversarial - images).abs().max() <= 4 / 255 + 1e-6


def test_images_of_any_size_become_the_tests_pixels(entry):
    path, where = entry
    model = advprompt.load(path, **where)
    image = Image.effect_mandelbrot((90, 50), (-2, -1, 1, 1), 20)  # grey, wide
    pixels = model.pixels(image)
    assert pixels.shape == (1, 3, 32, 32) and 0 <= pixels.min() <= pixels.max() <= 1
    twice = model.logits([image, image])
    assert twice.shape == (2, 3)
    torch.testing.assert_close(twice[1:], model.logits(pixels), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.rand(3, 32, 32), "(B, 3, 32, 32)"),
        (torch.rand(1, 3, 40, 40), "(1, 3, 40, 40)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "divide by 255"),
        (torch.rand(1, 3, 32, 32) * 255, "must lie in [0, 1]"),
        (torch.full((1, 3, 32, 32), torch.nan), "must lie in [0, 1]"),
        ("cat.png", "image 'cat.png' is corrupt or no image"),
        ([torch.rand(3, 32, 32)], "Tensor"),
        ([], "is empty"),
    ],
)
def test_other_images_are_refused(entry, images, said):
    path, where = entry
    with pytest.raises(UserError) as error:
        advprompt.load(path, **where).logits(images)
    assert said in str(error.value)


def test_shared_contexts_serve_other_classes(entry):
    path, where = entry
    names = ["a cat", "dog", "yellow_submarine", "tea"]
    model = advprompt.load(path, classnames=names, **where)
    assert model.classnames == names and model.logits(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    assert model.card["data"]["classes"] != names
    for wrong in ("cat", [], [1, 2], [" "]):
        with pytest.raises(UserError, match="classnames is"):
            advprompt.load(path, classnames=wrong, **where)


def test_class_specific_contexts_serve_their_own(trained, exported, tmp_path, toy_file):
    trained("AdvPT", TRAINER__ADVPT__CSC=True)
    assert exported()[0] == 0
    with pytest.raises(UserError, match="class-specific"):
        advprompt.load(tmp_path / "zoo", classnames=["a", "b", "c"], weights_dir=toy_file.parent)


# --- which backbone -----------------------------------------------------------------------------


def test_the_backbone_may_lie_elsewhere_but_not_be_another(entry, tmp_path, toy_file):
    path, where = entry
    shutil.copy(toy_file, tmp_path / "copy.pt")
    torch.save(toy_state_dict(seed=1), tmp_path / "other.pt")
    pixels = torch.rand(1, 3, 32, 32)
    moved = advprompt.load(path, backbone=f"file:{tmp_path / 'copy.pt'}")
    assert torch.equal(moved.logits(pixels), advprompt.load(path, **where).logits(pixels))
    with pytest.raises(UserError) as error:
        advprompt.load(path, backbone=f"file:{tmp_path / 'other.pt'}")
    sha = moved.card["backbone"]["weights_sha256"]
    assert f"{sha[:12]}..." in str(error.value) and "file:toy.pt" in str(error.value)
    assert "other.pt has" in str(error.value)
    with pytest.raises(UserError, match="say where it is with backbone="):
        advprompt.load(path, weights_dir=tmp_path)


def test_no_folder_of_this_machine_is_written_down(entry, toy_file, tmp_path):
    for name in (exports.CARD, exports.PAGE):
        text = (entry[0] / name).read_text(encoding="utf-8")
        assert str(toy_file.parent) not in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("file:/home/me/clip/toy.pt?arch=ViT-B-32", "file:toy.pt?arch=ViT-B-32"),
        (
            "torchvision:resnet50?weights=/home/me/secret/r50.pt",
            "torchvision:resnet50?weights=r50.pt",
        ),
        ("torchvision:resnet50?weights=~/r50.pt", "torchvision:resnet50?weights=r50.pt"),
        ("diffpure, model /data/unet, t 100", "diffpure, model unet, t 100"),
        (r"diffpure, model C:\data\unet, t 100", "diffpure, model unet, t 100"),
        ("open_clip:ViT-B-16/laion2b", "open_clip:ViT-B-16/laion2b"),
        ("PGD-10 4/255 (margin)", "PGD-10 4/255 (margin)"),
    ],
)
def test_names_lose_the_folders_of_a_machine_and_nothing_else(text, left):
    assert exports.portable([{"name": text, "steps": 10}]) == [{"name": left, "steps": 10}]


# --- the card -----------------------------------------------------------------------------------


def test_the_card_says_what_it_is(entry, tmp_path):
    card = io.read_json(entry[0] / exports.CARD)
    record = read_record(tmp_path / "run" / "record.json")
    assert card["method"]["trainer"] == "CoOp" and "2109.01134" in card["method"]["paper"]
    assert card["data"]["classes"] == ["red_circle", "green_square", "blue_arrow"]
    assert card["data"]["template"] == "a photo of a {}, a type of pet."
    assert (card["training"]["shots"], card["training"]["seed"]) == (4, 1)
    assert card["training"]["threat"] is None
    assert card["training"]["settings"]["OPTIM.LR"] == record["config"]["OPTIM.LR"]
    assert card["backbone"]["weights_sha256"] == record["weights_sha256"]
    assert card["input"]["size"] == [32, 32] and card["input"]["interpolation"] == "bicubic"
    assert card["prompts"]["values"] == 4 * 64
    assert card["versions"] == record["versions"] and card["git_commit"] == record["git_commit"]
    (attack,) = card["figures"]["attacks"]
    assert "4/255" in attack["in_words"] and "white box" in attack["in_words"]
    page = (entry[0] / exports.PAGE).read_text(encoding="utf-8")
    for text in (
        "backbone itself is not included",
        "end-to-end PGD-1 4/255",
        "advprompt.load",
        "clean images only",
        "not stated",
        "red_circle, green_square",
    ):
        assert text in page, text


def test_a_changed_tower_is_said_to_be_there(trained, exported, tmp_path):
    trained("TeCoA", TRAINER__TECOA__VARIANT="finetune")
    assert exported("--licence", "CC BY 4.0")[0] == 0
    card = io.read_json(tmp_path / "zoo" / exports.CARD)
    assert "image tower, which the training changed, is included" in card["backbone"]["note"]
    assert all(name.startswith("visual.") for name in card["prompts"]["shapes"])
    assert card["licence"] == "CC BY 4.0" and "PGD" in card["training"]["threat_in_words"]


def test_another_epoch_has_no_figures(trained, exported, tmp_path, toy_file):
    trainer = trained("CoOp")
    with torch.no_grad():
        trainer.model.text_prompts += 1
    pointer = tmp_path / "run" / "prompt_learner" / "checkpoint"
    newest = pointer.read_text()
    trainer.save_model(1, tmp_path / "run")
    pointer.write_text(newest)
    assert exported("--epoch", 2, out="second")[0] == 0
    assert exported("--epoch", 1, out="first")[0] == 0
    first, second = (io.read_json(tmp_path / x / exports.CARD) for x in ("first", "second"))
    assert first["figures"] and second["figures"] is None and second["training"]["epoch"] == 2
    assert "another epoch" in (tmp_path / "second" / exports.PAGE).read_text()
    a, b = (advprompt.load(tmp_path / x, weights_dir=toy_file.parent) for x in ("first", "second"))
    assert not torch.equal(a.texts, b.texts)


def test_figures_of_a_model_that_was_changed_since_are_refused(trained, exported):
    trainer = trained("CoOp")
    with torch.no_grad():
        trainer.model.text_prompts += 0.1
    trainer.save_model(0, trainer.output_dir)
    assert "record of another model" in refusal(exported())


def test_a_record_of_something_else_is_not_put_on_a_card(trained, exported, tmp_path):
    trained("CoOp")
    path, model = tmp_path / "run/record.json", tmp_path / "run/model.json"
    record, other = io.read_json(path), "cd" * 32
    for key, value in {
        "trainer": "AdvPT",
        "classes": 2,
        "data_sha256": other,
        "weights_sha256": other,
        "prompts_sha256": other,
    }.items():
        io.write_json(path, record | {key: value})
        assert "record" in refusal(exported())
    io.write_json(path, record)
    io.write_json(model, io.read_json(model) | {"data_sha256": other})
    assert "is of data" in refusal(exported())
    assert not (tmp_path / "zoo").exists()


def test_the_training_of_a_foreign_checkpoint_is_unknown_on_its_card(
    trained, run, white_box, exported, tmp_path
):
    trained("CoOp", finish=False)
    (path,) = (tmp_path / "run").rglob("model.pth.tar-1")
    foreign = tmp_path / "foreign/prompt_learner" / path.name
    foreign.parent.mkdir(parents=True)
    state = torch.load(path, weights_only=True)
    torch.save(
        {"state_dict": {"ctx": state["state_dict"]["text_prompts"][0]}, "epoch": 50}, foreign
    )
    argv = white_box("CoOp", "--eval-only", "--model-dir", str(tmp_path / "foreign"), out="test")
    assert run(argv)[0] == 0
    assert exported(folder=tmp_path / "test")[0] == 0
    card = io.read_json(tmp_path / "zoo" / exports.CARD)
    facts = [card["training"][key] for key in ("shots", "epochs", "threat", "seed")]
    assert facts == [None, None, None, -1] and card["training"]["settings"] == {}
    assert card["data"]["trained_on"] == "unknown" and card["data"]["trained_split"] is None
    page = (tmp_path / "zoo" / exports.PAGE).read_text()
    rows = {"trained on": "unknown", "shots per class": "unknown", "seed": "unknown"}
    rows |= {"epoch": "50 of unknown", "threat model in training": "unknown"}
    assert all(f"| {name} | {said} |" in page for name, said in rows.items()), page


def test_a_run_that_only_tested(trained, run, white_box, exported, tmp_path):
    trained("CoOp", DATASET__SUBSAMPLE_CLASSES="base")
    words = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    argv = white_box("CoOp", *words, out="new", DATASET__SUBSAMPLE_CLASSES="new", seed=3)
    assert run(argv)[0] == 0
    assert exported(folder=tmp_path / "new")[0] == 0
    card = io.read_json(tmp_path / "zoo" / exports.CARD)
    assert card["data"]["classes"] == ["blue_arrow"] and card["figures"]["split"] == "new"
    assert card["data"]["trained_split"] == "base" and card["training"]["seed"] == 1
    page = (tmp_path / "zoo" / exports.PAGE).read_text()
    assert "| trained on | OxfordPets, base classes |" in page
    # a test of a model that was changed since is not reused
    (path,) = (tmp_path / "run").rglob("model.pth.tar-1")
    state = torch.load(path, weights_only=True)
    state["state_dict"]["text_prompts"] += 0.1
    torch.save(state, path)
    assert "record of another model" in refusal(run(argv))


def test_the_default_folder_and_the_console_command(trained, capsys, tmp_path, monkeypatch):
    from advprompt.cli.main import dispatch

    trained("CoOp")
    monkeypatch.chdir(tmp_path)
    assert run_tool(dispatch, ["export", "run"]) == 0
    assert (tmp_path / "zoo" / "coop_oxfordpets_toy_4shots_seed1" / exports.WEIGHTS).is_file()
    assert "note: the card states no licence" in capsys.readouterr().out


# --- refused, without a trace ---------------------------------------------------------------------


def test_unfinished_runs_are_refused_unless_asked_for(trained, exported, tmp_path):
    trained("CoOp", finish=False)
    assert "is not finished" in refusal(exported()) and not (tmp_path / "zoo").exists()
    assert exported("--unfinished")[0] == 0
    assert io.read_json(tmp_path / "zoo" / exports.CARD)["figures"] is None


def test_nothing_is_overwritten(entry, exported, tmp_path):
    before = {p.name: p.read_bytes() for p in entry[0].iterdir()}
    code, out, _ = exported()
    assert code == 0 and out.startswith("unchanged")
    assert "not overwritten" in refusal(exported("--licence", "MIT"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    assert "not overwritten" in refusal(exported(out="full"))
    assert {p.name: p.read_bytes() for p in entry[0].iterdir()} == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_another_export_was_faster(entry, exported, tmp_path, monkeypatch):
    write = exports.io.write_json

    def slow(path, card):
        monkeypatch.setattr(exports.io, "write_json", write)
        assert exported(out="both")[1].startswith("wrote")  # meanwhile
        write(path, card)

    monkeypatch.setattr(exports.io, "write_json", slow)
    code, out, err = exported(out="both")
    assert code == 0 and out.startswith("unchanged"), err
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_folder_that_is_no_run(exported, tmp_path):
    assert "holds no run" in refusal(exported(folder=tmp_path / "nothing"))


def test_figures_of_own_image_features_are_not_those_of_an_export(trained, exported, monkeypatch):
    trained("CoOp")
    own = METHODS["CoOp"]
    monkeypatch.setattr(own, "image_features", lambda self, x: self.clip.encode_image(1 - x))
    assert "CoOp has image features of its own" in refusal(exported())


def test_an_epoch_that_is_not_there(trained, exported, tmp_path):
    trained("CoOp")
    code, _, err = exported("--epoch", 9)
    assert "model.pth.tar-9" in only_error(code, err) and "there are: model.pth.tar-1" in err


def test_an_older_zero_shot_run_needs_its_data(trained, exported, tmp_path, pets, toy_file):
    trained("ZeroshotCLIP")
    (tmp_path / "run" / "model.json").unlink()
    assert "--root" in refusal(exported())
    assert exported("--root", pets)[0] == 0
    model = advprompt.load(tmp_path / "zoo", weights_dir=toy_file.parent)
    assert model.classnames[0] == "red_circle"


def rewrite(path: Path, change, *, seal=True) -> None:
    """Change the card and the values of an export, with fitting checksums if ``seal``."""
    tensors, metadata = io.load_tensors(path / exports.WEIGHTS)
    card = metadata["card"]
    change(card, tensors)
    digest = io.json_digest(card) if seal else metadata["card_sha256"]
    io.save_tensors(path / exports.WEIGHTS, tensors, {"card": card, "card_sha256": digest})
    (path / exports.CARD).unlink()


def flip(path: Path) -> None:
    file = path / exports.WEIGHTS
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def put(**changes):
    """A change of the card: ``put(prompts__spec__text=5)``."""

    def change(card, tensors):
        for key, value in changes.items():
            *parts, last = key.split("__")
            node = card
            for part in parts:
                node = node[part]
            node[last] = value

    return lambda path: rewrite(path, change)


DAMAGE = {
    "a flipped bit": (flip, "fails its checksum"),
    "half of the file": (
        lambda p: os.truncate(p / exports.WEIGHTS, (p / exports.WEIGHTS).stat().st_size // 2),
        "damaged",
    ),
    "a pickle": (lambda p: torch.save({"a": torch.ones(1)}, p / exports.WEIGHTS), "damaged"),
    "another project's": (
        lambda p: save_file({"a": torch.ones(1)}, p / exports.WEIGHTS, {"format": "pt"}),
        "was not written by this project",
    ),
    "a bank": (lambda p: io.save_tensors(p / exports.WEIGHTS, {"a": torch.ones(1)}), "no card"),
    "nested without end": (
        lambda p: save_file({"a": torch.ones(1)}, p / exports.WEIGHTS, {"card": "[" * 200_000}),
        "was not written by this project",
    ),
    "no file": (lambda p: (p / exports.WEIGHTS).unlink(), "is not an export"),
    "another card beside": (
        lambda p: io.write_json(p / exports.CARD, io.read_json(p / exports.CARD) | {"licence": 1}),
        "is not the card of",
    ),
    "an altered card": (
        lambda p: rewrite(p, lambda card, _: card.update(licence="mine"), seal=False),
        "fails its checksum",
    ),
    "a later format": (put(format=2), "format 2"),
    "no classes": (put(data__classes=[]), "'data.classes'"),
    "a path for a backbone": (put(backbone__name="file:/etc/passwd"), "'backbone.name'"),
    "a path upwards": (put(backbone__name="file:../../x.pt"), "'backbone.name'"),
    "no digest": (put(backbone__weights_sha256="0" * 63), "'backbone.weights_sha256'"),
    "a size as text": (put(input__size=["32", "32"]), "'input.size'"),
    "another size": (put(input__size=[64, 64]), "64x64"),
    "an unhashable interpolation": (put(input__interpolation=[]), "'input.interpolation'"),
    "an unknown prompt setting": (put(prompts__spec__code="x"), "'prompts.spec'"),
    "true for a number": (put(prompts__spec__text=True), "'prompts.spec'"),
    "too few vectors": (put(prompts__spec__text=-4), "-4"),
    "another number of vectors": (put(prompts__spec__text=3), "(1, 4, 64) there and (1, 3, 64)"),
    "vectors without end": (put(prompts__spec__vision=10**9), "fewer values"),
    "refiners without end": (
        put(
            prompts__spec={
                "text": 4,
                "vision_depth": 2,
                "refine_vision": True,
                "refiner_ratio": 10**9,
            }
        ),
        "fewer values",
    ),
    "contexts of classes without end": (
        put(prompts__spec={"text": 4, "csc": True}, data__classes=[f"c{i}" for i in range(9999)]),
        "fewer values",
    ),
    "deeper than the towers": (put(prompts__spec__text_depth=10**9), "goes beyond the 2 blocks"),
    "values that are not finite": (
        lambda p: rewrite(p, lambda _, t: t["text_prompts"].fill_(torch.nan)),
        "not finite",
    ),
    "complex values": (
        lambda p: rewrite(p, lambda _, t: t.update(text_prompts=t["text_prompts"] + 0j)),
        "as torch.complex64, expected one of",
    ),
    "one value more": (
        lambda p: rewrite(p, lambda _, t: t.update({"visual.extra": torch.ones(3)})),
        "belongs to another method",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_and_hostile_exports_are_refused(entry, case):
    path, where = entry
    damage, said = DAMAGE[case]
    damage(path)
    with pytest.raises(UserError) as error:
        advprompt.load(path, **where)
    message = str(error.value)
    assert said in message and "\n" not in message, message


# --- MODEL.INIT_WEIGHTS ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "export") for name in ("AdvPT", "CoOp", "APD", "NAPTuning", "TeCoA")),
        ("APD", "run"),
        ("AdvPT", "checkpoint"),
    ],
)
def test_training_starts_from_an_export_or_a_run(
    trained, exported, run, arguments, white_box, tmp_path, name, kind
):
    start = trained(name)
    wanted = {k: v.clone() for k, v in type(start).deployed(_state(start)).items()}
    assert exported()[0] == 0
    path = {
        "export": tmp_path / "zoo",
        "run": tmp_path / "run",
        "checkpoint": tmp_path / "run" / "prompt_learner" / "model.pth.tar-1",
    }[kind]
    source = arguments if name == "AdvPT" else white_box
    still = {"OPTIM__LR": 0.0, "OPTIM__WARMUP_CONS_LR": 0.0, "OPTIM__MAX_EPOCH": 1}
    argv = source(name, out="next", MODEL__INIT_WEIGHTS=path, **still)
    out = ok(run(argv))
    assert out.count("Starting from") == 1
    found = type(start).deployed(weights(tmp_path / "next", 1)["state_dict"])
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())
    file = exports.weights_file(path)
    record = read_record(tmp_path / "next" / "record.json")
    assert record["config"]["MODEL.INIT_WEIGHTS"] == str(path)
    assert record["config"]["MODEL.INIT_WEIGHTS_SHA256"] == io.sha256_file(file)
    assert run(argv)[1].startswith("skipped")


def _state(trainer) -> dict:
    (module,) = trainer._models.values()
    return module.state_dict()


def test_another_file_under_the_same_path_is_another_run(entry, run, white_box, tmp_path):
    keys = {"TRAINER__COOP__N_CTX": 4, "MODEL__INIT_WEIGHTS": entry[0]}
    assert run(white_box("CoOp", out="next", **keys))[0] == 0
    rewrite(entry[0], lambda _, tensors: tensors["text_prompts"].add_(1))
    assert "init_sha256" in refusal(run(white_box("CoOp", out="next", **keys)))


def test_a_test_needs_no_start_any_more(entry, run, white_box, tmp_path):
    keys = {"TRAINER__COOP__N_CTX": 4, "MODEL__INIT_WEIGHTS": entry[0]}
    assert run(white_box("CoOp", out="next", **keys))[0] == 0
    shutil.rmtree(entry[0])
    words = ("--eval-only", "--model-dir", str(tmp_path / "next"))
    ok(run(white_box("CoOp", *words, out="again", **keys)))
    config = read_record(tmp_path / "again" / "record.json")["config"]
    assert len(config["MODEL.INIT_WEIGHTS_SHA256"]) == 64


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("AdvCoOp", {}, "trainer 'CoOp', not 'AdvCoOp'"),
        ("ZeroshotCLIP", {}, "learns nothing"),
        ("CoOp", {"TRAINER__COOP__N_CTX": 5}, "'text': 4"),
        ("CoOp", {"TRAINER__COOP__N_CTX": 4, "TRAINER__COOP__CSC": True}, "'csc': False"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(entry, run, white_box, tmp_path, name, keys, said):
    argv = white_box(name, out="next", MODEL__INIT_WEIGHTS=entry[0], **keys)
    assert said in refusal(run(argv))
    assert not (tmp_path / "next" / "config.json").exists()  # the folder is not taken


def test_a_start_of_another_backbone_or_of_nothing(entry, run, white_box, tmp_path):
    torch.save(toy_state_dict(seed=1), tmp_path / "other.pt")
    keys = {"TRAINER__COOP__N_CTX": 4, "MODEL__INIT_WEIGHTS": entry[0]}
    other = {"MODEL__BACKBONE__NAME": f"file:{tmp_path / 'other.pt'}"}
    code, _, err = run(white_box("CoOp", out="next", **keys, **other))
    sha = io.read_json(entry[0] / exports.CARD)["backbone"]["weights_sha256"]
    assert sha in only_error(code, err) and "backbone weights" in err
    for path in (tmp_path / "nowhere", tmp_path):
        assert "there are no learned prompts" in refusal(
            run(white_box("CoOp", out="next", **(keys | {"MODEL__INIT_WEIGHTS": path})))
        )


# --- as users do it -------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_train_py_to_three_lines(tmp_path, pets):
    """The built-in backbone: train, export, load in a fresh process that has no data."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def call(*words):
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=REPO,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    words = f"""train.py --root {pets} --seed 1 --trainer NAPTuning
        --dataset-config-file configs/datasets/oxford_pets.yaml
        --config-file configs/trainers/NAPTuning/tiny.yaml
        --attack-config-file configs/attacks/linf1.yaml --output-dir {tmp_path / "run"}
        DATASET.NUM_SHOTS 2 DATASET.CACHE_DIR {tmp_path / "cache"} OPTIM.MAX_EPOCH 1
        ATTACK.TEST.STEPS 2 TEST.SUBSET 0 TEST.PICTURE 0 TEST.PROBES 0 DATALOADER.NUM_WORKERS 0"""
    call(*words.split())
    call("-m", "advprompt", "export", tmp_path / "run", "--out", tmp_path / "zoo")
    card = io.read_json(tmp_path / "zoo" / exports.CARD)
    assert card["backbone"]["name"] == "tiny" and card["figures"]["clean"]["n"] == 12
    code = (
        "import sys, torch, advprompt\n"
        "model = advprompt.load(sys.argv[1])\n"
        "print(*model.logits(torch.rand(2, 3, 64, 64)).shape, *model.classnames)\n"
    )
    assert call("-c", code, tmp_path / "zoo").split() == ["2", "3", *card["data"]["classes"]]
