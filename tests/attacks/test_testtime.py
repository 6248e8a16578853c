"""Test-time defences: each method against a plain second computation, and attacks on them."""

from __future__ import annotations

import ast
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import nn

import advprompt
from advprompt.attacks import AttackSpec
from advprompt.defences.base import another_draw, content_seeds
from advprompt.evaluation.evaluator import Evaluation, no_gain
from advprompt.evaluation.samples import ImageList
from advprompt.evaluation.victim import TrainerVictim
from advprompt.prompting import templates
from advprompt.records import load_records, read_record
from advprompt.report.tables import build_tables
from advprompt.report.threats import describe
from advprompt.testtime import METHODS, Behind
from tests.conftest import only_error

VIEWS = {"views": 6, "scale": 0.3, "augmix": True}
SMALL = {"rtpt": {"nearest": 3, "select": 0.5}, "tpt": {"select": 0.5}, "ctpt": {"select": 0.5}}
SMALL |= {"sstpt": {"select": 0.5}, "ttc": {"eps": 8.0, "tau": 0.35}, "et3": {"step": 0.8}}
PGD = AttackSpec("pgd", 8 / 255, 2 / 255, 5, 1, "uniform", "ce", "end_to_end")


@pytest.fixture
def victim_of(build):
    def make(trainer="ZeroshotCLIP", **keys):
        made = build(trainer, **keys)
        made.set_model_mode("eval")
        victim = TrainerVictim(made)
        victim.prepare()
        return victim

    return make


@pytest.fixture
def victim(victim_of):
    return victim_of()


def method_of(name, victim, **values):
    cls = METHODS[name]
    own = {key.lower(): declared.default for key, declared in cls.keys.items()}
    views = VIEWS if hasattr(cls, "views") else {}
    return cls(victim, **own | views | SMALL.get(name, {}) | values)


def images(n: int, seed: int = 0):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def answer(method, pixels, seeds=None):
    with torch.no_grad():
        seeds = content_seeds(pixels) if seeds is None else seeds
        inner = getattr(method, "then", method)
        return method.answer(inner.victim.logits, pixels, seeds)


# --- each method, written a second time ----------------------------------------------------------


class Plain:
    """Views and features of one image, and texts whose words can be moved; nothing is shared."""

    def __init__(self, method, pixels):
        victim, self.method = method.victim, method
        clip, self.scale = victim.clip, victim.clip.logit_scale
        with torch.no_grad():
            if hasattr(method, "views"):
                self.views = method.views(pixels, [7])
                self.z = F.normalize(clip.encode_image(self.views), dim=-1)
        self.ids = clip.tokenize(templates.fill(victim.template, victim.classnames))
        self.embedded = clip.embed_tokens(self.ids).detach().float()
        self.start = self.embedded[0, 1:5].clone()  # "a photo of a"
        self.clip = clip

    def texts(self, words):
        rows = torch.cat([self.embedded[:, :1], words.expand(3, -1, -1), self.embedded[:, 5:]], 1)
        return F.normalize(self.clip.encode_prompts(rows, self.clip.end_of_text(self.ids)), dim=-1)

    def logits(self, words, z=None):
        return self.scale * (self.z if z is None else z) @ self.texts(words).t()

    def tuned(self, loss, lr=5e-3, decay=0.01):
        """The first step of AdamW divides a gradient by its own size."""
        words = self.start.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(words), words)
        return (self.start * (1 - lr * decay) - lr * g / (g.abs() + 1e-8)).detach()

    def confident(self, share=0.5):
        p = self.logits(self.start).softmax(1)
        return (-(p * p.log()).sum(1)).argsort()[: int(share * len(p))]


def entropy(p):
    return -(p * p.clamp(min=1e-30).log()).sum(-1)


def by_tpt(plain):
    best = plain.confident()
    words = plain.tuned(lambda w: entropy(plain.logits(w)[best].softmax(1).mean(0)))
    return plain.logits(words)[0]


def by_ctpt(plain):
    best = plain.confident()

    def loss(w):
        t = plain.texts(w)
        spread = sum((row - t.mean(0)).square().sum().sqrt() for row in t) / len(t)
        return entropy(plain.logits(w)[best].softmax(1).mean(0)) - 50 * spread

    return plain.logits(plain.tuned(loss))[0]


def by_rtpt(plain):
    best = plain.confident()
    words = plain.tuned(lambda w: entropy(plain.logits(w)[best].softmax(1)).mean())
    cosines = plain.z @ plain.z.t()
    near = [sorted(cosines[i, j].item() for j in range(6) if j != i)[-3:] for i in range(6)]
    weights = torch.tensor([sum(values) / 3 / 0.01 for values in near]).softmax(0)
    return sum(w * row for w, row in zip(weights, plain.logits(words), strict=True))


def by_sstpt(plain):
    from advprompt.testtime.sstpt import weakly

    best, z = plain.confident(), plain.z
    weak = F.normalize(plain.clip.encode_image(weakly(plain.views, 7)), dim=-1)
    p, q = plain.logits(plain.start).softmax(1), plain.logits(plain.start, weak).softmax(1)
    middle = (p + q) / 2
    apart = ((p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)) / 2
    far = torch.stack([(2 - 2 * z[i] @ z.t())[torch.arange(6) != i].mean() for i in range(6)])

    def weights(which):
        def spread(x):
            return (x - x.min()) / (x.max() - x.min())

        score = 0.4 * spread(1 / far[which]) + 0.6 * spread(1 / apart[which])
        return (score / 0.25).softmax(0).detach()

    own = weights(best)

    def loss(w):
        now = plain.logits(w)[best].softmax(1)
        total = entropy(now).mean()
        for i in range(len(best)):
            others = [j for j in range(len(best)) if j != i]
            rest = sum(own[j] * now[j] for j in others).detach() / sum(own[j] for j in others)
            total = total + (rest * (rest / now[i]).log()).sum() / len(best)
        return total

    return weights(torch.arange(6)) @ plain.logits(plain.tuned(loss))


def by_ensemble(plain):
    return plain.logits(plain.start).softmax(1).mean(0).log()


def by_mta(plain):
    z, p = plain.z, plain.logits(plain.start).softmax(1)
    squared = (z[:, None] - z[None]).square().sum(-1)
    width = torch.stack([squared[i].sort().values[1:2].mean() / 2 for i in range(6)])  # .3 of 5
    mode, y = z[0], torch.ones(6) / 6
    for _ in range(5):
        density = (-(z - mode).square().sum(1) / (2 * width)).exp()
        for _ in range(5):
            y = ((density + 4 * (p @ p.t() @ y)) / 0.2).softmax(0)
        for _ in range(5):
            weight = (-(z - mode).square().sum(1) / (2 * width)).exp() * y
            mode = F.normalize((weight[:, None] * z).sum(0) / weight.sum(), dim=0)
    return plain.logits(plain.start, mode[None])[0]


def plain_zero(logits, share):
    """Votes of the most confident; the next view that answers with a tied class decides."""
    order = entropy(logits.softmax(1)).argsort().tolist()
    count = int(share * len(order))
    votes = [logits[i].argmax().item() for i in order]
    number = {k: votes[:count].count(k) for k in range(logits.shape[1])}
    tied = [k for k, n in number.items() if n == max(number.values())]
    return next((v for v in votes[count:] if v in tied), tied[0]) if len(tied) > 1 else tied[0]


@pytest.mark.parametrize("name", ["ensemble", "mta", "tpt", "ctpt", "rtpt", "sstpt"])
def test_a_method_is_what_its_paper_writes(victim, name):
    method, pixels = method_of(name, victim), images(1)
    plain = Plain(method, pixels)
    assert torch.allclose(victim.texts, plain.texts(plain.start), atol=1e-5)
    expected = globals()[f"by_{name}"](plain)
    found = answer(method, pixels, [7])[0]
    assert torch.allclose(found, expected, atol=2e-3), (found, expected)
    moved = (expected - plain.logits(plain.start)[0]).abs().max()
    assert moved > 0.02  # logits of order 10: what is compared is not the model alone


def test_zero_votes_and_breaks_ties(victim):
    method, ties = method_of("zero", victim, views=8, select=0.5), 0
    for seed in range(200):
        logits = 3 * torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
        method.views = lambda pixels, seeds: pixels
        found = method.adapted(lambda x, own=logits: own, False, images(1), [0])[0]
        ties += found.topk(2).values.diff().item() == -0.5
        assert found.argmax().item() == plain_zero(logits, 0.5), seed
    assert ties > 20


def test_ttc_is_what_its_paper_writes(victim):
    pixels, f = images(4), victim.clip.encode_image
    noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(5))
    deltas = (pixels + (2 * noise - 1) * 8 / 255).clamp(0, 1) - pixels
    taus = (f(pixels + deltas) - f(pixels)).norm(dim=1) / f(pixels).norm(dim=1)
    threshold, kept = taus.mean().item(), []
    method = method_of("ttc", victim, tau=threshold)
    for x, d, tau in zip(pixels.split(1), deltas.split(1), taus, strict=True):
        path = [d]
        for _ in range(2):
            d = path[-1].clone().requires_grad_()
            (f(x + d) - f(x).detach()).square().sum().backward()
            step = (d.detach() + d.grad.sign() / 255).clamp(-8 / 255, 8 / 255)
            path.append((x + step).clamp(0, 1) - x)
        w = torch.tensor([0.0, 2, 4]).softmax(0)
        kept.append(bool(tau >= threshold))
        d = path[0] if kept[-1] else sum(a * b for a, b in zip(w, path, strict=True))
        found = method.counterattacked(x, [5])
        assert ((found - x - d).abs() > 1e-6).float().mean() < 0.01  # a gradient of about 0
    assert set(kept) == {True, False}  # both cases were compared


def test_et3_is_what_its_paper_writes_and_an_attack_sees_its_derivative(victim):
    method, x = method_of("et3", victim, step=2.0), images(1)
    d = torch.zeros_like(x)
    for _ in range(2):
        d.requires_grad_()
        victim.logits(x + d).logsumexp(1).sum().backward()
        d = d.detach() + 2.0 * d.grad / d.grad.norm()
        d = (x + d.clamp(-5 / 255, 5 / 255)).clamp(0, 1) - x
    assert torch.allclose(answer(method, x), victim.logits(x + d), atol=1e-3)
    soft = method_of("et3", victim, step=0.02)  # within the ball: smooth
    way, pixels = torch.randn(x.shape), x.clone().requires_grad_()
    attacked = soft.answer(victim.logits, pixels, [0], attack=True)
    assert torch.allclose(attacked, answer(soft, x), atol=1e-3)
    (gradient,) = torch.autograd.grad(attacked[0, 0], pixels)
    steps = [answer(soft, x + s * 2e-3 * way / way.norm())[0, 0] for s in (1, -1)]
    slope = (steps[0] - steps[1]) / 4e-3
    assert abs((gradient * way).sum() / way.norm() - slope) < 0.05 * gradient.norm()


def test_quick_gelu_has_a_second_derivative():
    from advprompt.backbone.tower import _QuickGELU

    x = torch.randn(5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(_QuickGELU.apply, (x,))


# --- one image at a time -------------------------------------------------------------------------


STEADY = ("zero", "ctpt")  # other views, perhaps the same votes and the same signs of gradients


@pytest.mark.parametrize("name", METHODS)
def test_an_image_is_answered_alike_alone_and_after_others(victim, name):
    method, pixels = method_of(name, victim), images(5)
    together = answer(method, pixels)
    alone = torch.cat([answer(method, x) for x in pixels.split(1)])
    again = answer(method_of(name, victim), pixels.flip(0)).flip(0)
    assert torch.allclose(together, alone, atol=5e-3) and torch.allclose(again, alone, atol=5e-3)
    other = answer(method, pixels, another_draw(content_seeds(pixels), 1))
    assert torch.allclose(other, together, atol=5e-3) == (not method.random) or name in STEADY


@pytest.mark.parametrize("name", METHODS)
def test_an_attack_gets_a_gradient_and_the_answer_that_is_given(victim, name):
    method, pixels = method_of(name, victim), images(2).requires_grad_()
    logits = method.answer(victim.logits, pixels, [3, 4], attack=True)
    if name != "zero":  # whose votes have a stand-in
        assert torch.allclose(logits, answer(method, pixels.detach(), [3, 4]), atol=5e-3)
    (gradient,) = torch.autograd.grad(logits.square().sum(), pixels)
    assert gradient.isfinite().all() and (gradient != 0).float().mean() > 0.5


ADVPT = {"ATTACK__TRAIN__OBJECTIVE": "embedding_kl", "ATTACK__TRAIN__TARGET": "embedding"}


def test_an_attack_on_mta_follows_the_mean_of_the_views(victim):
    """On drawings the unrolled mode's own gradient left 10 of 12 images right, this one 5."""
    method, pixels = method_of("mta", victim), images(1).requires_grad_()
    mean = F.normalize(victim.features(method.views(pixels, [3])), dim=-1).mean(0, keepdim=True)
    found = method.answer(victim.logits, pixels, [3], attack=True)
    ways = [torch.autograd.grad(logits[0, 0], pixels)[0] for logits in (found, victim.score(mean))]
    assert F.cosine_similarity(*(way.flatten() for way in ways), dim=0) > 0.95


@pytest.mark.parametrize("trainer", TRAINER_REGISTRY.registered_names())
def test_every_trainer_has_what_the_methods_need(victim_of, trainer):
    victim, pixels = victim_of(trainer, **(ADVPT if trainer == "AdvPT" else {})), images(2)
    plain = victim.logits(pixels)
    assert torch.allclose(answer(method_of("tpt", victim, lr=0.0), pixels), plain, atol=1e-3)
    for name in ("tpt", "rtpt", "mta", "ttc"):
        moved = answer(method_of(name, victim), pixels) - plain
        assert 0.005 < moved.abs().max() < 50, name
    assert torch.equal(victim.logits(pixels), plain)  # nothing is left behind


@pytest.mark.parametrize("kind", ["tiny", "tiny-robust", "an image tower alone"])
def test_backbones_of_every_kind_are_attacked_through_it(run, white_box, tmp_path, toy_file, kind):
    size = (64, 64)
    if kind.startswith("an"):  # as TeCoA's and FARE's authors publish them
        state = torch.load(toy_file, weights_only=True).items()
        tower = {k[len("visual.") :]: 1.1 * v for k, v in state if k.startswith("visual.")}
        torch.save(tower, tmp_path / "tower.pt")
        kind, size = f"file:{tmp_path / 'tower.pt'}?base=file:{toy_file}", (32, 32)
    keys = {"MODEL__BACKBONE__NAME": kind, "INPUT__SIZE": size, "DEFENCE__NAME": "jpeg"}
    keys |= {"TEST__SUBSET": 3, "DEFENCE__EOT": 1}
    code, _, err = run(white_box("ZeroshotCLIP", TESTTIME__NAME="rtpt", **keys, **TEST))
    assert code == 0, err
    entries = read_record(tmp_path / "run/record.json")["attacks"]
    assert [e["defence"].split(", ")[:2] for e in entries] == [["jpeg", "quality 75"]] * 3
    assert entries[0]["checks"]["cost"]["text backwards"] == 1
    assert entries[1]["correct"] <= entries[0]["correct"]


def test_the_texts_of_a_batch_are_tuned_in_one_pass(victim, monkeypatch):
    method, calls, encode = method_of("rtpt", victim, steps=2), [], victim.clip.encode_prompts
    method.first  # noqa: B018  which all images share

    def counted(*args, **options):
        calls.append(1)
        return encode(*args, **options)

    monkeypatch.setattr(victim.clip, "encode_prompts", counted)
    answer(method, images(5))
    assert len(calls) == 2 and method.passes["text backwards"] == 10
    monkeypatch.setattr("advprompt.testtime.tuning.TEXTS", 6)  # of three classes: two images
    answer(method, images(5))
    assert len(calls) == 2 + 3 * 2


# --- columns -------------------------------------------------------------------------------------


@pytest.fixture
def evaluation(victim, tmp_path):
    trainer = victim.trainer
    found = ImageList(trainer.dm.dataset.test, trainer.preprocess)

    def make(defence, eot=2, **options):
        where = {"folder": tmp_path / "u", "cache": tmp_path / "c", "batch_size": 12}
        made = Evaluation(victim, found, defence=defence, eot=eot, **where | options)
        made.labels = victim.logits(
            next(made.pixels(list(range(len(found))), "", len(found)))[1]
        ).argmax(1)
        made.images.labels = made.labels.tolist()  # a random model is right on its own answers
        made.clean()
        return made

    return make


@pytest.mark.parametrize("name", ["ensemble", "rtpt", "mta", "ttc", "et3"])
def test_an_attack_through_it_leaves_no_more_than_one_by_hand(evaluation, victim, name):
    method = method_of(name, victim)
    made = evaluation(method)
    hidden, seen = (made.attack(PGD, seen=view) for view in (False, True))
    assert seen["correct"] <= min(hidden["correct"], seen["checks"]["alone"])
    where = made.clean_right.nonzero().flatten().tolist()
    _, clean = next(made.pixels(where, "", len(where)))
    adv = (clean + (torch.rand(clean.shape) - 0.5) * 16 / 255).clamp(0, 1)
    for _ in range(PGD.steps):
        x = adv.clone().requires_grad_()
        draws = [another_draw(content_seeds(adv), n) for n in (50, 51)]
        logits = sum(method.answer(victim.logits, x, own, attack=True) for own in draws) / 2
        F.cross_entropy(logits, made.labels[where], reduction="sum").backward()
        adv = adv + 2 / 255 * x.grad.sign()
        adv = torch.max(torch.min(adv, clean + 8 / 255), clean - 8 / 255).clamp(0, 1)
    by_hand = int((answer(method, adv).argmax(1) == made.labels[where]).sum())
    assert seen["correct"] <= by_hand + 1  # another start: an image's chance
    again = seen["checks"]["again"]
    assert len(again) == (5 if method.random else 1)
    if not method.random:
        assert [*again.values()] == [seen["checks"]["alone"]]


def test_autoattack_counts_every_image_once_and_takes_its_random_form(evaluation, victim, capsys):
    made = evaluation(method_of("ensemble", victim), eot=1)
    weak = replace(PGD, name="autoattack", eps=1 / 255, alpha=None, start=None, objective=None)
    entry = made.attack(replace(weak, steps=2), seen=True)
    assert "version for random models" in capsys.readouterr().out
    assert all(n <= entry["checks"]["attacked"] // 2 for n in entry["checks"]["again"].values())
    assert min(entry["checks"]["again"].values()) > 0
    assert "form for random models" in describe(entry)


def test_an_interrupted_attack_resumes_with_its_fresh_draws(evaluation, victim, monkeypatch):
    whole = evaluation(method_of("ttc", victim), batch_size=4).attack(PGD, seen=True)
    made, run, calls = evaluation(method_of("ttc", victim), batch_size=4), Evaluation.run_attack, []
    made.folder = made.folder / "other"

    def interrupted(self, *args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(self, *args, **options)

    monkeypatch.setattr(Evaluation, "run_attack", interrupted)
    monkeypatch.setattr("advprompt.evaluation.evaluator.SAVE_SECONDS", -1)
    with pytest.raises(KeyboardInterrupt):
        made.attack(PGD, seen=True)
    entry = made.attack(PGD, seen=True)
    assert (entry["correct"], entry["checks"]["again"]) == (
        whole["correct"],
        whole["checks"]["again"],
    )
    assert len(calls) < 2 * -(-int(made.clean_right.sum()) // 4) + 1


def test_averaging_is_compared_with(evaluation, victim):
    from advprompt.defences.jpeg import JPEG

    plain = method_of("ensemble", victim)
    for method in (method_of("tpt", victim), Behind(JPEG(quality=60), method_of("tpt", victim))):
        entry = evaluation(method).attack(PGD)
        assert set(entry["checks"]["again"]) == {"views averaged"}
        warned = [w for w in entry["warnings"] if w.startswith("no_gain")]
        assert bool(warned) == (entry["correct"] <= entry["checks"]["again"]["views averaged"])
    assert "again" not in evaluation(plain).attack(PGD)["checks"]
    assert [len(no_gain(n, {"views averaged": 5})) for n in (4, 5, 6)] == [1, 1, 0]
    behind = Behind(JPEG(quality=10), plain)
    expected = answer(plain, JPEG(quality=10)(images(2), [0, 0]), content_seeds(images(2)))
    assert torch.allclose(answer(behind, images(2)), expected, atol=1e-4)


TEST = {"TEST__PROBES": 0, "TESTTIME__SCALE": 0.5, "TESTTIME__AUGMIX": False}
TEST |= {"TESTTIME__VIEWS": 6, "TESTTIME__RTPT__NEAREST": 3}


def test_a_run_has_three_columns_and_its_methods_are_rows(run, white_box, tmp_path, capsys):
    listed = "[{'EPS': '4', 'STEPS': 2, 'DROP': False}]"
    keys = TEST | {"ATTACK__TEST__LIST": listed, "DEFENCE__EOT": 2}
    for name in ("rtpt", "et3"):
        argv = white_box("ZeroshotCLIP", "--test-name", name, TESTTIME__NAME=name, **keys)
        code, out, err = run(argv)
        assert code == 0, err
        assert "* one image: " in out and "image forwards" in out
    found = load_records(tmp_path).records
    record = next(r for r in found.values() if r["config"]["TESTTIME.NAME"] == "rtpt")
    cost = record["attacks"][0]["checks"]["cost"]
    assert cost["image forwards"] == 6 and cost["text backwards"] == 1 and cost["ms"] > 0
    hidden, seen, fresh = (entry["correct"] for entry in record["attacks"])
    assert seen <= hidden <= record["clean"]["correct"]
    (table,) = build_tables(found)
    heads = [head.split(" (")[0] for head, _ in table.figures]
    assert heads == ["clean", *(f"end-to-end PGD-2 4/255, {x}" for x in ROLES)]
    names = {row.name for row in table.rows}
    assert names == {f'ZeroshotCLIP (TESTTIME.NAME="{name}")' for name in ("rtpt", "et3")}


ROLES = ("hidden", "adaptive", "adaptive, fresh draws")


def test_a_finished_run_is_tested_under_a_method_and_not_trained_again(run, white_box, tmp_path):
    assert run(white_box("CAPT"))[0] == 0
    argv = ["--eval-only", "--model-dir", str(tmp_path / "run"), "--test-name", "mta"]
    words = white_box("CAPT", TESTTIME__NAME="mta", **TEST)
    code, out, err = run([*words[: words.index("--output-dir")], *argv, *words[12:]])
    assert code == 0, err
    record = read_record(tmp_path / "run/tests/mta/record.json")
    assert len(record["attacks"]) == 3 and "test-time" in record["attacks"][0]["defence"]


def test_the_script_names_method_level_and_folder(tmp_path):
    from advprompt.experiments import commands

    context = commands.Context(os.environ | {"OUTPUT": str(tmp_path)}, "usage")
    (step,) = commands.testtime(["rtpt", "eurosat", "tiny", "TEST.SUBSET", "9"], context)
    (job,) = step.jobs
    given = dict(zip(job.words[-2::-2], job.words[:0:-2], strict=False))
    assert given["TESTTIME.NAME"] == "rtpt" and given["TESTTIME.VIEWS"] == "16"
    assert job.attack == "tiny_eurosat" and job.test.startswith("tiny_eurosat_rtpt_")
    assert ast.literal_eval(given["ATTACK.TEST.LIST"])[0]["NAME"] == "pgd"
    with pytest.raises(advprompt.UserError, match="test-time defence 'rtp'"):
        commands.testtime(["rtp", "eurosat"], context)


# --- what is refused -----------------------------------------------------------------------------

WRONG = [
    ({"TESTTIME__NAME": "rptt"}, "'rptt'"),
    ({"TESTTIME__NAME": "rtpt", "TESTTIME__VIEWS": 6}, "NEAREST is 20, but 6 views leave 5"),
    ({"TESTTIME__TPT__SELECT": 1.5}, "TESTTIME.TPT.SELECT is 1.5"),
    ({"TESTTIME__TTC__EPS": 300.0}, "TESTTIME.TTC.EPS is 300.0"),
    ({"TESTTIME__VIEWS": 1}, "TESTTIME.VIEWS is 1, the image alone"),
    ({"TESTTIME__NAME": "tpt", "DATASET__TEMPLATE": "{} here."}, "no words before the class"),
]


@pytest.mark.parametrize(("keys", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_cannot_work_is_refused_in_a_sentence(run, white_box, keys, words):
    code, _, err = run(white_box("ZeroshotCLIP", **keys))
    assert words in only_error(code, err)


@pytest.mark.parametrize("name", METHODS)
def test_any_model_is_wrapped_or_refused_in_a_sentence(name):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    keys = {key.replace("__", "."): value for key, value in TEST.items()}
    call = partial(
        advprompt.evaluate, model, torch.rand(4, 3, 8, 8), [0, 1, 2, 0], classnames=list("abc")
    )
    settings = {"TESTTIME.NAME": name, "ATTACK.TEST.STEPS": 2} | keys
    if METHODS[name].needs == "logits":
        assert len(call(settings=settings)["attacks"]) >= 3
    else:
        with pytest.raises(advprompt.UserError, match=f"'{name}' needs .* zero or et3$"):
            call(settings=settings)


@pytest.mark.parametrize("name", ["ttc", "mta"])
def test_an_image_text_model_of_any_library_has_what_features_need(toy_file, name):
    from advprompt.backbone import load_clip

    model = advprompt.zero_shot(load_clip(f"file:{toy_file}"), ["cat", "dog", "bird"])
    keys = {key.replace("__", "."): value for key, value in TEST.items()}
    settings = {"TESTTIME.NAME": name, "ATTACK.TEST.STEPS": 2} | keys
    record = advprompt.evaluate(model, images(3), [0, 1, 2], settings=settings)
    forwards = record["attacks"][0]["checks"]["cost"]["image forwards"]
    assert forwards == {"ttc": 4, "mta": 6}[name]  # of a counterattack, the noise's serves twice
