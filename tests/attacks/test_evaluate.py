"""``advprompt.evaluate``: any model, any images, one record."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import advprompt
from advprompt import UserError
from advprompt.backbone.adapter import CLIP_MEAN
from advprompt.evaluation.models import ModelVictim
from advprompt.evaluation.samples import PixelList
from advprompt.records import read_record

LINF = {"ATTACK.TEST.EPS": 8, "ATTACK.TEST.ALPHA": 2, "ATTACK.TEST.STEPS": 10}


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
    return nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(128, 4))


@pytest.fixture
def images():
    return torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels(model, images):
    with torch.no_grad():
        return model.eval()(images).argmax(1)


def by_hand(model, images, labels):
    """PGD-10 at 8/255 from the images themselves."""
    delta = torch.zeros_like(images)
    for _ in range(10):
        delta.requires_grad_()
        loss = nn.functional.cross_entropy(model((images + delta).clamp(0, 1)), labels)
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = (delta.detach() + 2 / 255 * gradient.sign()).clamp(-8 / 255, 8 / 255)
        delta = (images + delta).clamp(0, 1) - images
    return int((model(images + delta).argmax(1) == labels).sum())


def test_a_record_holds_what_pgd_by_hand_finds(model, images, labels, tmp_path):
    model.train()
    settings = LINF | {"ATTACK.TEST.START": "zero", "ATTACK.TEST.DROP": False}
    record = advprompt.evaluate(
        model, images, labels, threat="linf1", folder=tmp_path / "r", settings=settings
    )
    assert model.training and model[4].training  # as it was found
    model.eval()
    (attack,) = record["attacks"]
    assert record["clean"] == {"n": 24, "correct": 24}
    assert attack["correct"] == by_hand(model, images, labels) and 0 < attack["correct"] < 24
    assert read_record(tmp_path / "r" / "record.json")["attacks"] == record["attacks"]
    assert record["shots"] is None and record["trainer"] == "Sequential" and record["classes"] == 4


def test_normalisation_is_part_of_the_attacked_model(model, images, labels, tmp_path):
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.4, 0.3)
    shape = (1, 3, 1, 1)
    inner = lambda x: model(x * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape))  # noqa: E731
    settings = {"settings": LINF, "threat": "linf1"}
    plain = advprompt.evaluate(model, images, labels, **settings)
    same = advprompt.evaluate(inner, images, labels, normalize=(mean, std), **settings)
    assert same["attacks"][0]["correct"] == plain["attacks"][0]["correct"]
    assert same["prompts_sha256"] != plain["prompts_sha256"]


def test_pairs_count_as_the_same_images(model, images, labels):
    settings = {"settings": LINF, "threat": "linf1"}
    plain = advprompt.evaluate(model, images, labels, **settings)
    pairs = advprompt.evaluate(model, TensorDataset(images, labels), **settings)
    loader = torch.utils.data.DataLoader(TensorDataset(images, labels), batch_size=7, shuffle=True)
    again = advprompt.evaluate(model, loader, **settings)
    for record in (pairs, again):
        assert record["data_sha256"] == plain["data_sha256"]
        assert record["attacks"][0]["correct"] == plain["attacks"][0]["correct"]


def test_a_finished_record_is_returned_and_another_model_is_refused(
    model, images, labels, tmp_path, capsys
):
    settings = {"settings": LINF, "threat": "linf1", "folder": tmp_path / "r"}
    first = advprompt.evaluate(model, images, labels, **settings)
    assert advprompt.evaluate(model, images, labels, **settings) == first
    assert "skipped" in capsys.readouterr().out
    with torch.no_grad():
        model[-1].bias += 0.1
    with pytest.raises(UserError, match="holds the record of another model"):
        advprompt.evaluate(model, images, labels, **settings)
    with torch.no_grad():
        model[-1].bias -= 0.1


WRONG = {
    "probabilities": (lambda m: lambda x: m(x).softmax(1), "returns probabilities"),
    "tuple": (lambda m: lambda x: (m(x), 1), "returns tuple"),
    "features": (lambda m: lambda x: m[:4](x), r"shape \(4, 128\), expected logits \(4, 4\)"),
    "detached": (lambda m: lambda x: m(x).detach(), "no gradient leads from the logits"),
    "another size": (lambda m: lambda x: m[-1](x.flatten(1)), "cannot take pixels of shape"),
    "detached pixels": (lambda m: lambda x: m(x.detach()), "no gradient leads from the logits"),
    "half inside": (
        lambda m: (lambda n: lambda x: n(x))(m.bfloat16()),
        "computes in torch.bfloat16",
    ),
    "half": (lambda m: m.bfloat16(), "computes in torch.bfloat16"),
    "nothing": (lambda m: 5, "the model is 5"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_model_that_gives_no_logits_is_named(kind, model, images, labels):
    make, message = WRONG[kind]
    with pytest.raises(UserError, match=message):
        advprompt.evaluate(make(model), images, labels, classnames="abcd", threat="linf1")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y: (x * 2 - 1, y), r"pixels from -.* expected \[0, 1\]; leave Normalize out"),
        (lambda x, y: (-1e-7 + 0 * x, y), r"from -1e-07 .*expected \[0, 1\]"),
        (lambda x, y: (1 + 1e-6 + 0 * x, y), r"from 1 to 1, expected \[0, 1\]"),
        (lambda x, y: ((x * 255).byte(), y), "torch.uint8, expected floats"),
        (lambda x, y: (x[:, :1], y), r"is \(1, 16, 16\), expected a tensor \(3, H, W\)"),
        (lambda x, y: (x, y[:3]), "24 images and 3 labels"),
        (lambda x, y: (x, y + 4), "is not one of the 4 classes"),
        (lambda x, y: (x[:0], y[:0]), "there are no images"),
        (lambda x, y: ("nowhere", None), "no data set is called 'nowhere'"),
    ],
)
def test_images_of_another_form_are_named(change, message, model, images, labels):
    with pytest.raises(UserError, match=message):
        advprompt.evaluate(model, *change(images, labels), threat="linf1")
    assert PixelList([(torch.full((3, 2, 2), i), i) for i in (0.0, 1.0)]).labels == [0, 1]


def test_settings_of_a_training_are_refused(model, images, labels):
    own = {"settings": {"TRAIN.PRINT_FREQ": 2, "ATTACK.TRAIN.EPS": "4"}, "threat": "linf1"}
    with pytest.raises(UserError, match="TRAIN.PRINT_FREQ and ATTACK.TRAIN.EPS would change noth"):
        advprompt.evaluate(model, images, labels, **own)


def asked(model, classnames="abcd", *, gradients=True, **keys):
    victim = ModelVictim(model, classnames, **keys)
    victim.check(torch.linspace(0, 1, 3 * 3 * 16 * 16).view(3, 3, 16, 16), gradients=gradients)
    return victim


def answering(*rows):
    """A function that always gives these logits, with a gradient."""
    return lambda x: torch.tensor(rows[: len(x)]) + 0 * x.flatten(1)[:, :1]


@pytest.mark.parametrize(
    ("rows", "fine"),
    [
        ([[0.0, 1.0]] * 3, False),
        ([[0.5, 0.4991]] * 3, False),
        ([[0.5, 0.5009]] * 3, False),
        ([[0.5, 0.4989]] * 3, True),
        ([[0.5, 0.5011]] * 3, True),
        ([[1.5, -0.5]] * 3, True),
        ([[0.5, 0.5], [0.5, 0.5], [0.5, 0.6]], True),  # two of them by chance
        ([[1.0]] * 3, True),  # of one class, every row would be
    ],
)
def test_probabilities_are_rows_that_sum_to_one(rows, fine):
    if fine:
        assert asked(answering(*rows), "ab"[: len(rows[0])]).name == "lambda"
    else:
        with pytest.raises(UserError, match="returns probabilities"):
            asked(answering(*rows), "ab")


NORMALIZE = [5, ((0, 0), (1, 1)), ((0, 0, 0), (1, 0, 1)), ((0, 0, 0), (1, 1, -1))]
NORMALIZE += [((0, float("inf"), 0), (1, 1, 1)), ((0, 0, 0),), "x"]


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_statistics_of_another_form_are_refused(normalize):
    with pytest.raises(UserError, match=r"normalize is .*expected \(mean, std\)"):
        ModelVictim(answering([0.0, 9.0]), "ab", normalize=normalize)


def test_pixels_are_normalised_as_asked():
    seen = []
    plain = ModelVictim(seen.append, "ab")
    other = ModelVictim(seen.append, "ab", normalize=((0.1, 0.2, 0.3), (0.5, 0.25, 1)))
    for victim in (plain, other):
        victim.logits(torch.full((1, 3, 1, 1), 0.6))
    assert seen[0].flatten().tolist() == pytest.approx([0.6, 0.6, 0.6])
    assert seen[1].flatten().tolist() == pytest.approx([1.0, 1.6, 0.3])


def test_what_an_answer_tells_and_what_is_not_asked_of_it():
    assert asked(answering(*[[0.0, 9.0, 1.0]] * 3), "").classnames == ["0", "1", "2"]
    assert asked(lambda x: torch.zeros(len(x), 4), gradients=False)  # for Square alone
    with pytest.raises(UserError, match="returns torch.int64, expected logits"):
        asked(lambda x: torch.zeros(len(x), 4, dtype=torch.long))
    with pytest.raises(UserError, match="returns dict of logits, loss, expected a tensor"):
        asked(lambda x: {"logits": x, "loss": 0})
    with pytest.raises(UserError, match=r"cannot take .*\(first x{114}\); give images"):

        def fails(x):
            raise ValueError("\n  first " + "x" * 200 + "\nsecond")

        asked(fails)
    assert ModelVictim(nn.Linear(2, 2), "ab", name="mine").name == "mine"


def test_the_digest_of_a_function_is_that_of_its_answers():
    one, near = [1.0, 2.0], [1.0000001, 2.0]
    digests = [asked(answering(*[row] * 3), "ab").digest() for row in (one, one, near)]
    assert digests[0] == digests[1] != digests[2]
    shifted = asked(answering(*[one] * 3), "ab", normalize=((0, 0, 0.1), (1, 1, 1)))
    assert shifted.digest() != digests[0]
    layers = [nn.Sequential(nn.Flatten(), nn.Linear(768, 4)) for _ in range(2)]
    assert asked(layers[0]).digest() == asked(layers[0]).digest() != asked(layers[1]).digest()


# --- what users do --------------------------------------------------------------------------------

PGD = {"settings": LINF, "threat": "linf1"}


def test_modules_that_a_function_calls_are_in_evaluation_mode_and_in_the_digest(
    model, images, labels
):
    model.train()
    plain = advprompt.evaluate(model, images, labels, **PGD)
    inside = advprompt.evaluate(lambda x: model(x), images, labels, **PGD)
    assert model[4].training
    assert inside["attacks"][0]["correct"] == plain["attacks"][0]["correct"]
    with torch.no_grad():
        model[-1].bias += 1e-6  # which no rounded answer shows
    other = advprompt.evaluate(lambda x: model(x), images, labels, **PGD)
    assert other["prompts_sha256"] != inside["prompts_sha256"]


def test_an_interrupted_evaluation_resumes(model, images, labels, tmp_path):
    calls, limit = [], 30

    def stopping(x):
        calls.append(len(x))
        if len(calls) > limit:
            raise RuntimeError("out of memory")
        return model(x)

    model.eval()
    settings = LINF | {"TEST.PICTURE": 0}
    given = PGD | {"folder": tmp_path / "r", "batch_size": 6, "settings": settings}
    with pytest.raises(RuntimeError, match="out of memory"):
        advprompt.evaluate(stopping, images, labels, **given)
    kept = json.loads(next((tmp_path / "r/unfinished").glob("*.json")).read_text())
    done = sum(right is not None for right in kept["right"])
    assert 0 < done < 24
    limit, first = 10**6, len(calls)
    record = advprompt.evaluate(stopping, images, labels, **given)
    resumed = len(calls) - first
    whole = advprompt.evaluate(model, images, labels, **PGD, batch_size=6)
    assert record["attacks"][0]["correct"] == whole["attacks"][0]["correct"]
    calls.clear()
    advprompt.evaluate(stopping, images, labels, **given | {"folder": None})
    assert resumed < len(calls)


def test_a_random_model_gets_autoattacks_version_for_it(model, images, labels, capsys):
    model.train()  # a module in a list is not found, so that its dropout stays on
    few = {"settings": {"ATTACK.TEST.LIST": [{"NAME": "autoattack", "STEPS": 2}]}}
    hidden = [model]
    advprompt.evaluate(lambda x: hidden[0](x), images[:8], labels[:8], threat="linf1_aa", **few)
    assert "AutoAttack's version for random models runs" in capsys.readouterr().out


def test_without_a_folder_no_path_is_printed(model, images, labels, capsys):
    advprompt.evaluate(model, images, labels, **PGD)
    assert "record:" not in capsys.readouterr().out


def test_the_data_folder_is_that_of_the_environment(model, pets, monkeypatch):
    monkeypatch.setenv("DATA", str(pets))
    small = nn.Sequential(*model[:4], nn.Linear(128, 3))
    record = advprompt.evaluate(small, "oxford_pets", **PGD, size=16)
    assert record["dataset"] == "OxfordPets" and record["clean"]["n"] == 12


def test_our_trainer_a_run_its_export_and_a_model_stand_in_one_table(
    white_box, pets, toy_file, tmp_path, monkeypatch
):
    from advprompt.cli import export, train
    from advprompt.report.tables import build_tables

    train.main(white_box("AdvCoOp", TRAINER__ADVCOOP__N_CTX=4))
    run = tmp_path / "run"
    own = read_record(run / "record.json")
    monkeypatch.setenv("DATA", str(pets))
    threat = tmp_path / "pgd.yaml"
    threat.write_text("ATTACK: {TEST: {LIST: [{EPS: '4', STEPS: 2}]}}\n")
    tested = advprompt.evaluate(run, "oxford_pets", threat=threat)
    for key in ("clean", "shots", "epochs", "train_threat", "weights_sha256", "data_sha256"):
        assert tested[key] == own[key], key
    assert tested["attacks"][0]["correct"] == own["attacks"][0]["correct"]
    checkpoint = next((run / "prompt_learner").glob("model.pth.tar-*"))
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(advprompt.load(run)(pixels), advprompt.load(checkpoint)(pixels))

    loaded = advprompt.load(run)
    zero = advprompt.zero_shot(loaded.clip, loaded.classnames)
    known = {"shots": 16, "epochs": 3, "train_threat": "linf4", "backbone": f"file:{toy_file}"}
    other = advprompt.evaluate(zero, "oxford_pets", threat=threat, **known)
    assert other["train_threat"]["eps"] == "4/255"
    (table,) = build_tables({Path(str(i)): r for i, r in enumerate((own, tested, other))})
    assert {row.trainer for row in table.rows} == {"AdvCoOp", "ZeroShot"}
    (alone,) = build_tables({Path("0"): advprompt.evaluate(zero, "oxford_pets", threat=threat)})
    assert any("does not state how its model was trained" in note for note in alone.notes)

    export.main([str(run), "--out", str(tmp_path / "zoo")])
    model = advprompt.load(tmp_path / "zoo", weights_dir=toy_file.parent)
    again = advprompt.evaluate(model, "oxford_pets", threat=threat)
    assert again["attacks"][0]["correct"] == own["attacks"][0]["correct"]
    transfer = {"ATTACK.TEST.LIST": [{"TARGET": "embedding", "OBJECTIVE": "embedding_kl"}]}
    transfer |= {"ATTACK.TEST.STEPS": 1, "ATTACK.TEST.EPS": 4}
    found = advprompt.evaluate(model, "oxford_pets", threat=threat, settings=transfer)
    assert found["attacks"][0]["target"] == "embedding"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"shots": 16}, "shots is given without epochs, train_threat"),
        ({"shot": 16}, "evaluate takes no 'shot'"),
        ({"settings": {"TEST.SUBSET": 3}}, "give fewer images instead"),
    ],
)
def test_what_is_said_of_the_training_is_whole(arguments, message, model, images, labels):
    with pytest.raises(UserError, match=message):
        advprompt.evaluate(model, images, labels, **PGD | arguments)


def test_another_order_of_the_classes_is_named(model, images, labels):
    names = "abcd"
    present = labels.unique(return_counts=True)
    many = torch.cat([images[labels == y][:1].expand(6, -1, -1, -1) for y in present[0]])
    many = (many + 1e-3 * torch.arange(len(many)).view(-1, 1, 1, 1) / len(many)).clamp(0, 1)
    moved = ((model.eval()(many).argmax(1) + 1) % 4).tolist()
    with pytest.raises(UserError, match="in another order of the classes: images of"):
        advprompt.evaluate(model, many, moved, classnames=names, **PGD)


# --- image-text models ----------------------------------------------------------------------------

NAMES = "red circle, green square, blue arrow"
VISION = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32}


@pytest.fixture
def texts():
    import open_clip

    return open_clip.tokenize([f"a photo of a {name}." for name in NAMES.split(", ")])


@pytest.mark.parametrize("bias", [None, -10.0])
def test_open_clip_models_answer_as_their_own_forward(bias, texts):
    from open_clip.model import CustomTextCLIP

    text = {"layers": 2, "width": 64, "heads": 2}
    model = CustomTextCLIP(32, VISION, text, init_logit_bias=bias).eval()
    classifier = advprompt.zero_shot(model, NAMES)
    pixels = torch.rand(4, 3, 32, 32)
    image, text, scale, *more = model((pixels - classifier.mean) / classifier.std, texts)
    expected = scale * image @ text.T + (more[0] if more else 0)
    assert (classifier(pixels) - expected).abs().max() < 1e-5
    record = advprompt.evaluate(classifier, pixels, classifier(pixels).argmax(1), **PGD)
    assert record["clean"]["correct"] == 4 and record["classes"] == 3
    with pytest.raises(UserError, match=r"an image-text model.*advprompt.zero_shot"):
        advprompt.evaluate(model, pixels, [0, 1, 2, 0])


def test_a_models_own_tokenizer_and_size_are_found(texts):
    from open_clip.model import CLIP

    text = {"layers": 1, "width": 64, "heads": 2}
    model = CLIP(32, VISION, text).eval()  # whose context length is its own, not its text tower's
    classifier = advprompt.zero_shot(model, NAMES)
    expected = nn.functional.normalize(model.encode_text(texts), dim=-1)
    assert (classifier.texts - expected).abs().max() < 1e-6 and classifier.resolution == 32

    class Bare(nn.Module):  # says nothing of its images
        encode_image, encode_text = (
            staticmethod(model.encode_image),
            staticmethod(model.encode_text),
        )
        logit_scale = torch.tensor(1.0)

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    assert advprompt.zero_shot(Bare(), NAMES, tokenizer=lambda t: texts).resolution == 224


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_transformers_models_answer_as_their_own_forward(kind, texts):
    transformers = pytest.importorskip("transformers")
    shared = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    length = 77 if kind == "CLIP" else 64
    text = shared | {"vocab_size": 49408, "max_position_embeddings": length, "projection_size": 64}
    vision = shared | {"image_size": 32, "patch_size": 8}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    rows = {"input_ids": texts[:, :length]}
    if kind == "CLIP":
        rows["attention_mask"] = (texts > 0).long()
    else:
        torch.nn.init.constant_(model.logit_bias, -3.0)
    with pytest.raises(UserError, match="tokenizer of .*Model is not known; give tokenizer="):
        advprompt.zero_shot(model, NAMES)
    classifier = advprompt.zero_shot(model, NAMES, tokenizer=lambda **_: rows)
    pixels = torch.rand(4, 3, 32, 32)
    seen = (pixels - classifier.mean) / classifier.std
    assert classifier.mean.flatten()[0].item() == pytest.approx(
        0.4815 if length == 77 else 0.5, 1e-3
    )
    expected = model(**rows, pixel_values=seen).logits_per_image
    assert (classifier(pixels) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_are_tokenised_as_transformers_models_were_trained(kind, tmp_path):
    asked = []

    def tokenizer(**given):
        asked.append(given)
        ids = torch.arange(len(given["text"]))[:, None]
        return {"input_ids": ids, "attention_mask": ids + 1, "other": ids}

    class Model(nn.Linear):  # of transformers' form
        config = SimpleNamespace(
            text_config=SimpleNamespace(max_position_embeddings=9),
            vision_config=SimpleNamespace(image_size=8),
            model_type=kind,
        )
        logit_scale = torch.tensor(0.0)

        def get_text_features(self, input_ids, attention_mask=None):
            assert (attention_mask is None) == (kind == "siglip")
            return self.weight[input_ids[:, 0]]

        def get_image_features(self, pixel_values):
            return SimpleNamespace(pooler_output=pixel_values.mean((2, 3)))

    model = Model(3, 3)
    classifier = advprompt.zero_shot(model, "a, b, c", tokenizer=tokenizer)
    assert asked[0].pop("text") == [f"a photo of a {name}." for name in "abc"]
    same = {"truncation": True, "max_length": 9, "return_tensors": "pt"}
    assert asked == [same | {"padding": "max_length" if kind == "siglip" else True}]
    mean = classifier.mean.flatten().tolist()
    assert mean == pytest.approx([0.5] * 3 if kind == "siglip" else CLIP_MEAN)
    texts, shape = (
        nn.functional.normalize(model.weight, dim=-1),
        classifier(torch.rand(2, 3, 8, 8)).shape,
    )
    assert torch.equal(classifier.texts, texts) and shape == (2, 3) and classifier.resolution == 8


@pytest.mark.parametrize(
    "names, template, message",
    [
        ("", "a {}", "classnames is ''"),
        ("a, A", "a {}", "classes 'a' and 'A' have one text"),
        (NAMES, "a photo", r"the template 'a photo' has no \{\}"),
    ],
)
def test_wrong_names_and_templates_are_named(names, template, message, toy_file):
    from advprompt.backbone import load_clip

    with pytest.raises(UserError, match=message):
        advprompt.zero_shot(load_clip(f"file:{toy_file}"), names, template)
    with pytest.raises(UserError, match="Linear is no image-text model"):
        advprompt.zero_shot(nn.Linear(2, 2), NAMES)


# --- classify -------------------------------------------------------------------------------------


def test_classify_prints_the_top_classes_of_paths_and_folders(white_box, pets, tmp_path, capsys):
    import numpy as np
    from PIL import Image

    from advprompt.cli import classify, train

    train.main(white_box("ZeroshotCLIP"))
    run, folder = tmp_path / "run", pets / "oxford_pets" / "images"
    first = sorted(folder.iterdir())[0]
    capsys.readouterr()
    classify.main([str(run), str(first), str(folder), "--top", "2", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(list(folder.iterdir())) and lines[0] == lines[1]
    model = advprompt.load(run)
    (name,) = model.predict(first)
    assert lines[0].startswith(f"{first}: {name} ") and lines[0].count("%") == 2
    array = np.asarray(Image.open(first).convert("RGB"))
    assert torch.equal(model.logits(array), model.logits(str(first)))
    assert model.logits([array, first]).argmax(1).tolist() == [model.logits(first).argmax()] * 2
    with pytest.raises(UserError, match=r"array of float32 of shape \(40, 40, 3\)"):
        model.predict(array.astype("float32"))
    with pytest.raises(UserError, match="nowhere.png' does not exist"):
        classify.main([str(run), "nowhere.png"])
    with pytest.raises(UserError, match="--top is 0"):
        classify.main([str(run), str(first), "--top", "0"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no images"):
        classify.main([str(run), str(tmp_path / "empty")])


def test_weights_of_an_unknown_backbone_are_unknown(model, images, labels, tmp_path):
    from advprompt.report.render import render

    for name in ("a", "b"):
        record = advprompt.evaluate(model, images, labels, **PGD, name=name, folder=tmp_path / name)
        assert record["weights_sha256"] is None and record["prompts_sha256"]
    named = advprompt.evaluate(model, images, labels, **PGD, backbone="ViT-H/99")
    assert named["weights_sha256"] is None  # it is not on this machine
    text, _ = render([str(tmp_path)], "markdown")
    assert "weights sha256 unknown" in text and "| a " in text and "| b " in text
