"""RAP: the attack on toy models, its surrogates, and the way from a config to the record."""

import json
from dataclasses import replace

import pytest
import torch
import victim
from hypothesis import given, settings
from hypothesis import strategies as st
from victim import distance, is_right, pixels, problem

from advprompt import losses
from advprompt.attacks import RAP, AttackSpec, NotFinite, load_surrogate, specs_from_cfg
from advprompt.attacks.catalogue import rap_settings
from advprompt.attacks.surrogates import check_surrogate
from advprompt.backbone import text_features
from advprompt.records import read_record
from advprompt.report.threats import attack_headings, describe
from advprompt.utils.errors import UserError
from tests.conftest import only_error
from tests.toy import toy_clip

SETTINGS = {"late_start": 2, "inner_steps": 3, "inner_eps": "4/255", "surrogate": "clip"}
PROMPTS = ["a red circle", "a green square", "a blue arrow"]


def spec(**changes) -> AttackSpec:
    changes = {"kwargs": SETTINGS} | changes
    return AttackSpec(
        **(
            {
                "name": "rap",
                "eps": 8 / 255,
                "alpha": 2 / 255,
                "steps": 6,
                "restarts": 1,
                "start": "uniform",
                "objective": "logit",
                "target": "surrogate",
            }
            | changes
        )
    )


def rap(logits, labels, **changes) -> RAP:
    threat = spec(**changes)
    return RAP(logits, labels, threat, threat.kwargs)


def settings_of(**changes) -> dict:
    return {"kwargs": SETTINGS | changes}


# --- the attack ----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    eps=st.integers(0, 64),
    alpha=st.sampled_from([1, 3, 90]),
    steps=st.integers(3, 5),
    restarts=st.integers(1, 2),
    inner=st.sampled_from(["0", "4/255", "200/255"]),
    resize=st.sampled_from([0.01, 0.5, 1.0]),
    objective=st.sampled_from(["logit", "ce"]),
)
def test_the_ball_and_the_range_are_kept(eps, alpha, steps, restarts, inner, resize, objective):
    logits, clean, labels = problem(3)
    result = rap(
        logits,
        labels,
        eps=eps / 255,
        alpha=alpha / 255,
        steps=steps,
        restarts=restarts,
        objective=objective,
        **settings_of(inner_eps=inner, resize=resize),
    ).run(clean, range(3))
    assert result.images.min() >= 0 and result.images.max() <= 1
    assert (distance(result.images, clean, "linf") <= eps / 255 + 1e-6).all()
    assert result.max_linf == pytest.approx(float((result.images - clean).abs().max()))


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(6)), cut=st.integers(1, 5), restarts=st.integers(1, 2))
def test_neither_batch_size_nor_order_matters(order, cut, restarts):
    logits, clean, labels = problem(6)
    seeds = [101 * i + 7 for i in range(6)]
    whole = rap(logits, labels, restarts=restarts).run(clean, seeds)
    for part in (order[:cut], order[cut:]):
        attack = rap(logits, labels[part], restarts=restarts)
        again = attack.run(clean[part], [seeds[i] for i in part])
        torch.testing.assert_close(again.images, whole.images[part], atol=1e-6, rtol=0)
        torch.testing.assert_close(again.loss_last, whole.loss_last[part])


def test_seeds_decide():
    logits, clean, labels = problem(4)
    first, same, other = (rap(logits, labels).run(clean, [s] * 4).images for s in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_the_losses_are_those_of_the_images():
    logits, clean, labels = problem(5)
    for late in (0, 2):
        attack = rap(logits, labels, start="zero", **settings_of(late_start=late))
        result = attack.run(clean, range(5))
        with torch.no_grad():
            first, last = (
                -logits(x).gather(1, labels[:, None])[:, 0].float() for x in (clean, result.images)
            )
        torch.testing.assert_close(result.loss_first, first)
        torch.testing.assert_close(result.loss_last, last)
        assert (last > first).all() and not result.zero_grad.any()


def test_it_breaks_the_model_that_it_is_made_on():
    logits, clean, labels = problem(20)
    before = is_right(logits, clean, labels).sum()
    noise = 16 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).sign()
    assert is_right(logits, (clean + noise).clamp(0, 1), labels).sum() > 0.75 * before
    for objective in ("logit", "ce"):
        attack = rap(logits, labels, eps=16 / 255, steps=20, objective=objective)
        images = attack.run(clean, range(20)).images
        assert is_right(logits, images, labels).sum() <= before / 2, objective


def test_the_reverse_perturbation_starts_late_and_descends(monkeypatch):
    logits, clean, labels = problem(6)
    attack, found, real = rap(logits, labels, steps=5), [], RAP.reverse

    def watched(self, images):
        moved = real(self, images)
        found.append((self.step, images.clone(), moved))
        return moved

    monkeypatch.setattr(RAP, "reverse", watched)
    attack.run(clean, range(6))
    assert [step for step, _, _ in found] == [3, 4, 5]  # two steps without
    for _, images, moved in found:
        assert moved.abs().max() <= 4 / 255 + 1e-6 and not moved.requires_grad
        assert (images + moved).min() >= 0 and (images + moved).max() <= 1 + 1e-6
        with torch.no_grad():
            before, after = (
                losses.cross_entropy(logits(x), labels) for x in (images, images + moved)
            )
        assert (after < before).all()


def test_without_a_reverse_perturbation_and_diversity_it_is_pgd():
    """Late start as late as it gets and radius 0: the sign of the plain gradient at every step."""
    logits, clean, labels = problem(4)
    plain = settings_of(inner_eps=0, probability=0.0, late_start=0)
    result = rap(logits, labels, start="zero", steps=3, **plain).run(clean, range(4))
    images = clean.clone()
    for _ in range(3):
        images.requires_grad_(True)
        own = logits(images).gather(1, labels[:, None]).sum()
        (grad,) = torch.autograd.grad(own, images)
        images = (images.detach() - 2 / 255 * grad.sign()).clamp(clean - 8 / 255, clean + 8 / 255)
        images = images.clamp(0, 1)
    torch.testing.assert_close(result.images, images, atol=1e-6, rtol=0)


def test_the_gradient_is_taken_at_the_reversely_perturbed_image():
    logits, clean, labels = problem(4)
    asked = []

    def watched(x):
        if torch.is_grad_enabled() and x.requires_grad:
            asked.append(x.detach().clone())
        return logits(x)

    attack = rap(
        watched,
        labels,
        start="zero",
        steps=1,
        **settings_of(late_start=0, probability=0.0, inner_steps=2),
    )
    result = attack.run(clean, range(4))
    # two inner steps, then the step of the attack itself, away from the clean image
    assert len(asked) == 3
    away = distance(asked[2], clean, "linf")
    assert (away > 1 / 255).all() and (away <= 4 / 255 + 1e-6).all()
    there = asked[2].requires_grad_(True)
    (grad,) = torch.autograd.grad(logits(there).gather(1, labels[:, None]).sum(), there)
    step = (clean - 2 / 255 * grad.sign()).clamp(0, 1)
    torch.testing.assert_close(result.images, step, atol=1e-6, rtol=0)


def test_without_labels_it_leads_away_from_the_surrogates_own_answers():
    logits, clean, _ = problem(5)
    with torch.no_grad():
        own = logits(clean).argmax(1)
    torch.testing.assert_close(
        rap(logits, None).run(clean, range(5)).images, rap(logits, own).run(clean, range(5)).images
    )


@pytest.mark.parametrize("training", [False, True])
def test_nothing_leaks(training):
    victim.check_nothing_leaks(lambda x, y, s: RAP(x, y, s, SETTINGS), spec(), training)


def test_it_works_in_all_surroundings():
    victim.check_ambient_modes(lambda x, y, s: RAP(x, y, s, SETTINGS), spec())
    logits, clean, _ = problem(3)
    plain = rap(logits, None).run(clean, range(3)).images
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rap(logits, None).run(clean + 0, range(3)).images, plain)


def test_wrong_input_is_named():
    logits, clean, labels = problem(3)
    with pytest.raises(UserError, match="range from"):
        rap(logits, labels).run(clean * 2, range(3))
    with pytest.raises(NotFinite):
        rap(lambda x: logits(x) / 0, labels).run(clean, range(3))


# --- settings ------------------------------------------------------------------------------------


NODE = {
    "NAME": "pgd",
    "EPS": "16",
    "ALPHA": "1",
    "STEPS": 50,
    "RESTARTS": 2,
    "START": "zero",
    "OBJECTIVE": "ce",
    "TARGET": "end_to_end",
    "DROP": True,
}


def read(**entry) -> AttackSpec:
    return specs_from_cfg(NODE | {"LIST": [{"NAME": "rap"} | entry]})[0]


def test_an_entry_has_the_papers_settings():
    threat = read()
    assert (threat.steps, threat.restarts, threat.start) == (400, 1, "uniform")
    assert (threat.target, threat.objective, threat.drop) == ("surrogate", "logit", False)
    assert threat.eps == pytest.approx(16 / 255) and threat.alpha == pytest.approx(2 / 255)
    assert threat.kwargs == {
        "surrogate": "torchvision:resnet50",
        "labels": "auto",
        "late_start": 100,
        "inner_steps": 8,
        "inner_eps": "16/255",
        "probability": 0.7,
        "resize": 0.5,
    }
    assert AttackSpec.from_cfg(json.loads(json.dumps(threat.describe()))) == threat
    assert replace(threat, steps=200).steps == 200


def test_words_for_the_report():
    entry = read(KWARGS={"surrogate": "clip"}).describe()
    assert attack_headings([entry]) == ["black-box RAP 16/255 (MaxLogit)"]
    assert "surrogate clip" in describe(entry) and "late_start 100" in describe(entry)
    both = [entry, read(KWARGS={"surrogate": "clip", "late_start": 0}).describe()]
    assert len(set(attack_headings(both))) == 2


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"TARGET": "end_to_end"}, "'rap' has target 'end_to_end'"),
        ({"NAME": "pgd", "TARGET": "surrogate", "START": "uniform"}, "goes with rap alone"),
        ({"NAME": "apgd", "TARGET": "surrogate"}, "goes with rap alone"),
        ({"OBJECTIVE": "margin"}, "objective 'margin' is unknown"),
        ({"NAME": "pgd", "OBJECTIVE": "logit", "START": "uniform"}, "objective 'logit' is unknown"),
        ({"NORM": "l2"}, "keeps to a ball in linf"),
        ({"STEPS": 100}, "after 100 steps but has 100"),
        ({"DROP": True}, "drop scores every iterate"),
        ({"START": "zero", "RESTARTS": 2}, "all 2 restarts the same"),
        ({"KWARGS": {"late_strat": 1}}, "late_start"),
        ({"KWARGS": {"late_start": -1}}, "late_start is -1"),
        ({"KWARGS": {"inner_steps": 0}}, "integer >= 1"),
        ({"KWARGS": {"inner_eps": 0.05}}, "looks like a fraction of 1"),
        ({"KWARGS": {"probability": 2}}, "from 0 to 1"),
        ({"KWARGS": {"labels": True}}, "labels is True"),
        ({"KWARGS": {"surrogate": "torchvison:resnet50"}}, "torchvision:NAME"),
        ({"KWARGS": {"surrogate": "torchvision:resnet5O"}}, "resnet50"),
        ({"KWARGS": {"surrogate": "torchvision:resnet50/IMAGENET1K_V3"}}, "IMAGENET1K_V2"),
        ({"KWARGS": {"surrogate": "torchvision:resnet50?weights=/no/such.pt"}}, "does not exist"),
        ({"KWARGS": {"surrogate": "torchvision:fcn_resnet50"}}, "no classifier"),
        ({"KWARGS": {"surrogate": "open_clip:ViT-B-33/openai"}}, "no architecture"),
        ({"KWARGS": {"surrogate": "open_clip:ViT-B-32/opanai"}}, "openai"),
        ({"KWARGS": {"surrogate": "clip:ViT-B/32"}}, "is unknown"),
        ({"KWARGS": {"surrogate": ""}}, "is unknown"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(entry, words):
    with pytest.raises(UserError, match=words):
        read(**entry)


# --- surrogates ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A randomly initialised ResNet-18 with K outputs as a file: ``resnet(K)``, its name."""
    from torchvision.models import resnet18

    def make(classes: int) -> str:
        path = tmp_path_factory.mktemp("resnet") / f"resnet18_{classes}.pt"
        with torch.random.fork_rng():
            torch.manual_seed(1)
            torch.save(resnet18(num_classes=classes).state_dict(), path)
        return f"torchvision:resnet18?weights={path}"

    return make


def test_a_classifier_of_the_data_sets_classes(resnet):
    found = load_surrogate(resnet(3), prompts=PROMPTS)
    assert (found.classes, found.of_dataset, found.size) == (3, True, 224)
    from torchvision.models import resnet18
    from torchvision.transforms.functional import normalize

    model = resnet18(num_classes=3).eval()
    path = resnet(3).partition("=")[2]
    model.load_state_dict(torch.load(path, weights_only=True))
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = model(normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        torch.testing.assert_close(found(images), expected)
    small = torch.rand(2, 3, 32, 32, requires_grad=True)
    (grad,) = torch.autograd.grad(found(small).sum(), small)
    assert grad.abs().flatten(1).amax(1).min() > 0
    assert found.knows("auto", 3) and found.knows("dataset", 3) and not found.knows("surrogate", 3)


def test_a_classifier_of_other_classes_leads_away_from_its_own_answers(resnet):
    found = load_surrogate(resnet(1000), prompts=PROMPTS)
    assert (found.classes, found.of_dataset) == (1000, False) and not found.knows("auto", 3)
    with pytest.raises(UserError, match="1000 classes and the data set 3"):
        found.knows("dataset", 3)


def test_foreign_and_dangerous_files_are_refused(resnet, tmp_path):
    wrong = resnet(3).replace("resnet18?", "resnet50?")
    with pytest.raises(UserError, match="of another network"):
        load_surrogate(wrong, prompts=PROMPTS)
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=3), tmp_path / "whole.pt")
    with pytest.raises(UserError, match="could run code"):
        load_surrogate(f"torchvision:resnet18?weights={tmp_path / 'whole.pt'}", prompts=PROMPTS)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(UserError, match="no checkpoint"):
        load_surrogate(f"torchvision:resnet18?weights={tmp_path / 'text.pt'}", prompts=PROMPTS)


def test_weights_of_torchvision_are_read_without_running_them(resnet, monkeypatch):
    import torchvision.models as models

    state = torch.load(resnet(1000).partition("=")[2], weights_only=True)
    asked = []
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url",
        lambda url, **options: asked.append((url, options)) or state,
    )
    found = load_surrogate("torchvision:resnet18", prompts=PROMPTS)
    assert not found.of_dataset and found.classes == 1000
    ((url, options),) = asked
    assert url == models.ResNet18_Weights.IMAGENET1K_V1.url and options["weights_only"] is True

    def offline(url, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"neither found nor fetched .*resnet18\?weights=PATH"):
        load_surrogate("torchvision:resnet18", prompts=PROMPTS)


def test_timm(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        model = timm.create_model("resnet10t", num_classes=3).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "tiny.pt")
    found = load_surrogate(f"timm:resnet10t?weights={tmp_path / 'tiny.pt'}", prompts=PROMPTS)
    shown = timm.data.resolve_model_data_config(model)
    images = torch.rand(2, *shown["input_size"])
    mean, std = (torch.tensor(shown[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(found(images), model((images - mean) / std))
    assert found.of_dataset and found.size == shown["input_size"][-1]
    with pytest.raises(UserError, match="gives features, no classes"):
        state = timm.create_model("resnet10t", num_classes=0).state_dict()
        torch.save(state, tmp_path / "headless.pt")
        monkeypatch.setattr(
            timm,
            "create_model",
            lambda name, create=timm.create_model, **_: create(name, num_classes=0),
        )
        load_surrogate(f"timm:resnet10t?weights={tmp_path / 'headless.pt'}", prompts=PROMPTS)
    with pytest.raises(UserError, match="timm has no model"):
        check_surrogate("timm:resnet10tt")
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        check_surrogate("timm:resnet10t")


def test_a_clip_classifies_by_the_handmade_prompt(toy_file):
    clip = toy_clip()
    found = load_surrogate("clip", prompts=PROMPTS, clip=clip)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = torch.nn.functional.normalize(clip.encode_image(images), dim=-1)
        expected = clip.logit_scale * features @ text_features(clip, PROMPTS).t()
        torch.testing.assert_close(found(images), expected)
        assert found(torch.rand(2, 3, 40, 48)).shape == (2, 3)
    assert found.of_dataset and found.sha256 != clip.sha256
    other = load_surrogate("clip", prompts=PROMPTS[::-1], clip=clip)
    assert other.sha256 != found.sha256


def test_clips_of_open_clip(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "advprompt.attacks.surrogates.load_clip",
        lambda name, device: asked.append(name) or toy_clip(),
    )
    (tmp_path / "own.pt").write_bytes(b"")
    load_surrogate("open_clip:RN50-quickgelu/yfcc15m", prompts=PROMPTS)
    load_surrogate(f"open_clip:RN50?weights={tmp_path / 'own.pt'}", prompts=PROMPTS)
    assert asked == ["open_clip:RN50-quickgelu/yfcc15m", f"file:{tmp_path / 'own.pt'}?arch=RN50"]


# --- from a config to the record -----------------------------------------------------------------


def entry(surrogate: str, **settings) -> str:
    kwargs = {"surrogate": surrogate, "late_start": 1, "inner_steps": 2} | settings
    return repr({"NAME": "rap", "EPS": 16, "STEPS": 2, "KWARGS": kwargs})


def test_end_to_end(run, white_box, resnet, tmp_path):
    white = "{'EPS': 16, 'STEPS': 4}"
    names = ["clip", resnet(3), resnet(1000)]
    attacks = f"[{', '.join([*map(entry, names), white])}]"
    code, out, err = run(white_box("AdvIVLP", ATTACK__TEST__LIST=attacks, TEST__SUBSET=4))
    assert code == 0, err
    record = read_record(tmp_path / "run" / "record.json")
    made = record["attacks"][:3]
    assert [a["target"] for a in made] == ["surrogate"] * 3 and "surrogate rap-2 (logit)" in out
    assert [a["kwargs"]["surrogate"] for a in made] == names
    assert len({a["surrogate_sha256"] for a in made}) == 3
    for attack in made:
        assert 0 < attack["checks"]["max_linf"] <= 16 / 255 + 1e-6 and attack["checks"]["in_range"]
        assert attack["correct"] <= record["clean"]["correct"]
        assert "noise_right" not in attack["checks"]  # the model is not questioned about another's


def test_a_finished_run_and_a_surrogate_that_is_not_there(run, white_box, pets, tmp_path, capsys):
    from advprompt.cli import robustness
    from advprompt.utils.entry import run_tool

    assert run(white_box("AdvIVLP"))[0] == 0
    for name, surrogate in (("good", "clip"), ("bad", "torchvision:resnet51")):
        text = f"ATTACK:\n  TEST:\n    LIST:\n      - {entry(surrogate)}\n"
        (tmp_path / f"{name}.yaml").write_text(text)

    def test_under(name):
        words = ["--model-dir", str(tmp_path / "run"), "--root", str(pets)]
        file = str(tmp_path / f"{name}.yaml")
        code = run_tool(robustness.main, [*words, "--attack-config-file", file])
        return code, capsys.readouterr().err

    assert "no classifier 'resnet51'" in only_error(*test_under("bad"))
    assert not (tmp_path / "run" / "robustness").exists()
    assert test_under("good")[0] == 0
    record = read_record(tmp_path / "run" / "robustness" / "good" / "record.json")
    assert record["attacks"][0]["name"] == "rap"


def test_defaults_need_no_kwargs():
    assert rap_settings({}) == read().kwargs
    assert pixels(1).shape == (1, 3, 8, 8)
