"""Fine-tuned towers, DEFEAT's codebook and APT's inner attacks, each computed a second time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from advprompt.backbone import load_clip, text_features
from advprompt.engine.batch import Batch
from advprompt.losses import attention_maps
from advprompt.prompting.quantiser import QuantisedHead
from advprompt.records import read_record
from advprompt.records.threats import BACKWARDS
from tests.methods.test_methods import own

CASES = [("FARE", {"CLEAN_WEIGHT": 0.25}), ("TGAZSR", {"COMPLEMENT": True})]
CASES += [("PMGAFT", {"KL_DIRECTION": "adversarial_first", "GENERAL_WEIGHT": 2.0})]


def logits_of(features, texts):
    return 100 * F.normalize(features, dim=-1) @ texts.t()


def moved(build, name, keys):
    """A trainer that has left its start, and a batch of it."""
    trainer = build(name, **own(name.upper(), keys))
    for value in trainer.trained.parameters():
        value.data += 0.02 * torch.randn_like(value)
    return trainer, Batch(trainer, next(iter(trainer.train_loader_x)))


def test_patches_go_through_the_norm_and_projection_of_the_class_token(toy_file):
    clip, pixels, kept = load_clip(f"file:{toy_file}"), torch.rand(2, 3, 32, 32), []
    visual = clip.model.visual
    visual.transformer.register_forward_hook(lambda *given: kept.append(given[-1]))
    features, tokens = clip.provider_image(pixels), clip.encode_tokens(pixels)
    assert_close(tokens, visual.ln_post(kept[0]) @ visual.proj)
    assert_close(tokens[:, 0], features)


@pytest.mark.parametrize(("name", "keys"), [*CASES, *((name, {}) for name, _ in CASES)])
def test_tuned_towers_minimise_the_loss_of_their_paper(build, name, keys):
    trainer, batch = moved(build, name, keys)
    loss, _ = trainer.loss(batch)
    texts, labels, views = trainer.handmade, batch.labels, (batch.adversarial, batch.images)
    clips = trainer.model.clip, trainer.clip
    tuned, frozen = ([clip.encode_tokens(x) for x in views] for clip in clips)
    adv, clean, guide = (logits_of(t[:, 0], texts) for t in (*tuned, frozen[0]))
    expected = F.cross_entropy(adv, labels)
    if name == "FARE":
        phi0 = frozen[1][:, 0]
        gaps = [(t[:, 0] - phi0).pow(2).sum(1).mean() for t in tuned]
        expected = 0.75 * gaps[0] + 0.25 * gaps[1] if keys else gaps[0]
        assert trainer.train_threat()["objective"] == "embedding_l2"
        noise = (batch.images + 4 / 255 * torch.randn_like(batch.images).sign()).clamp(0, 1)
        there = (trainer.image_features(noise) - phi0).pow(2).sum(1).mean()
        assert gaps[0] > 1.5 * there  # which is what the attack ascends
    elif name == "PMGAFT":
        for weight, p, q in ((2 if keys else 1, guide, adv), (1, clean, adv)):
            p, q = (q, p) if keys else (p, q)
            kl = F.kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean")
            expected = expected + weight * kl
    else:
        names = [f"This is not a photo of a {n.replace('_', ' ')}" for n in trainer.classnames]
        views, maps = [*tuned, frozen[1]], text_features(trainer.clip, names)[labels]
        maps = [
            (attention_maps(t, texts[labels], 224), attention_maps(t, maps, 224)) for t in views
        ]
        maps = [yes * (1 - no) if keys else yes for yes, no in maps]
        gaps = [(a - maps[2]).norm(dim=1).mean() for a in maps]
        expected = expected + 0.08 * gaps[0] + 0.05 * gaps[1]
    assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_defeat_fuses_the_logits_of_image_and_nearest_codes(build):
    trainer, batch = moved(build, "DEFEAT", {"CODE_WIDTH": 8, "SHARE": 0.3})
    loss, _ = trainer.loss(batch)
    head, tokens = trainer.model.head, trainer.clip.encode_tokens(batch.adversarial)
    grid = tokens[:, 1:].transpose(1, 2).reshape(-1, 32, 4, 4)
    latent, book = head.encoder(grid).movedim(1, -1), head.codebook.weight
    rows = [min(book, key=lambda code: (row - code).norm()) for row in latent.reshape(-1, 8)]  # noqa: B023
    codes = torch.stack(rows).view(latent.shape)
    rebuilt = head.decoder(codes.movedim(-1, 1))
    local = rebuilt.flatten(2) @ head.pool.weight[0] + head.pool.bias
    image, local, texts = F.normalize(tokens[:, 0]), F.normalize(local), batch.texts[:, :-1]
    logits = 0.3 * logits_of(image, texts) + 0.7 * logits_of(local, texts)
    assert_close(batch.forward_attacked().logits, logits, rtol=1e-4, atol=1e-3)
    align = 10 * (image - local).abs().mean() + 20 * (texts - trainer.handmade).abs().mean()
    squares = 0.5 * (grid - rebuilt).pow(2).mean() + 0.1 * 1.25 * (latent - codes).pow(2).mean()
    assert_close(loss, F.cross_entropy(logits, batch.labels) + align + squares, rtol=1e-4, atol=0)


@pytest.mark.parametrize("backward", BACKWARDS)
def test_other_gradients_of_the_nearest_code_leave_the_answer(backward):
    torch.manual_seed(0)
    head, tokens = QuantisedHead(6, 4, codes=5, inner=3, share=0.5), torch.randn(2, 5, 6)
    head.codebook.weight.data *= 10
    answer, head.backward = head.parts(tokens.requires_grad_()), backward
    found = head.parts(tokens)
    assert_close(found, answer)
    if backward == "blocked":
        assert not found.rebuilt.requires_grad and found.image.requires_grad
        return
    latent = head.encoder(tokens[:, 1:].transpose(1, 2).reshape(2, 6, 2, 2))
    inside = latent
    if backward == "straight_through":
        inside = latent + (answer.codes - latent).detach()
    elif backward == "soft":
        distance = torch.cdist(latent.flatten(2).transpose(1, 2), head.codebook.weight).square()
        weights = (-distance / distance.std(-1, keepdim=True).detach()).softmax(-1)
        inside = (weights @ head.codebook.weight).transpose(1, 2).reshape(latent.shape)
    upwards = torch.randn_like(answer.rebuilt)
    grads = [torch.autograd.grad(x, tokens, upwards) for x in (found.rebuilt, head.decoder(inside))]
    assert_close(*grads, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["DEFEAT", "AdvCoOp"])
def test_one_list_of_attacks_for_models_with_and_without_a_codebook(white_box, run, tmp_path, name):
    ways = [{"NAME": "pgd", "KWARGS": {"backward": way}} for way in BACKWARDS[1:]]
    listed = repr([{"NAME": "pgd"}, *ways, {"NAME": "apgd-ce", "STEPS": 2}])
    code, out, err = run(white_box(name, ATTACK__TEST__LIST=listed, ATTACK__TEST__STEPS=2))
    assert code == 0 and out.count("done once") == (0 if name == "DEFEAT" else 3), err
    attacks = read_record(tmp_path / "run" / "record.json")["attacks"]
    ways = [attack.get("kwargs", {}).get("backward") for attack in attacks]
    assert ways == ([None, *BACKWARDS[1:], None] if name == "DEFEAT" else [None, None])
    assert attacks[-1]["correct"] <= min(attack["correct"] for attack in attacks)


@pytest.mark.parametrize(("kind", "csc"), [("constant", False), ("perturbed", True)])
def test_apts_attacks_see_a_fixed_prompt_or_one_that_runs_uphill(build, csc, kind):
    keys = {"CSC": csc, "ATTACKED_PROMPT": kind, "PROMPT_STEP": 0.5}
    trainer, batch = moved(build, "AdvCoOp", keys)
    before, forward = trainer.model.text_prompts.clone(), trainer.seen_by_attack(batch, slice(None))
    fixed = [f"a photo of a {name}" for name in trainer.classnames]
    context, fixed = before[0].detach().requires_grad_(), text_features(trainer.clip, fixed)
    for pixels in (batch.images, batch.images.flip(3)):  # as if of two steps of the attack
        texts = trainer.model.text_features(vectors=[context]) if kind == "perturbed" else fixed
        expected = logits_of(trainer.clip.encode_image(pixels), texts)
        assert_close(forward(pixels).logits, expected, rtol=1e-4, atol=1e-3)
        if kind == "perturbed":
            (grad,) = torch.autograd.grad(F.cross_entropy(expected, batch.labels), context)
            context = (context + 0.5 * grad).detach().requires_grad_()
    trainer.loss(batch)
    assert torch.equal(trainer.model.text_prompts, before)
    assert trainer.model.text_prompts.grad is None
