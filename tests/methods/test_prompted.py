"""Prompted towers equal a plain implementation, in features and in gradients."""

import advprompt  # noqa: F401  its torchvision guard comes before open_clip

# isort: split

from dataclasses import replace

import open_clip
import openai_clip_reference as reference
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from toy import toy_clip, toy_state_dict

from advprompt.backbone import CLIPAdapter, cosine_logits, text_features, tokens
from advprompt.backbone.adapter import CLIP_MEAN, CLIP_STD
from advprompt.prompting import PromptedCLIP, PromptSpec, TokenRefiner
from advprompt.utils.errors import UserError

from .test_clip_adapter import random_state
from .test_text_tower import open_clip_adapter

NAMES = ["abyssinian cat", "dog", "great_white shark", "abyssinian hound"]
SIZES = {"layers": 4, "text_layers": 3, "vision_width": 128}
SOT, EOT = 49406, 49407
EVERYTHING = PromptSpec(
    text=3,
    text_depth=3,
    vision=3,
    vision_depth=4,
    coupling="text_to_vision",
    refine_vision=True,
    refine_text=True,
)


@pytest.fixture(scope="module")
def clip():
    return toy_clip(**SIZES)


@pytest.fixture(scope="module")
def oracle():
    model = reference.CLIP(toy_state_dict(**SIZES)).requires_grad_(False)
    model.load_state_dict(toy_state_dict(**SIZES))
    return model


def pixels(n=3):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def prompted(clip, spec, names=NAMES, std=0.2):
    """A model with prompts large enough to matter."""
    torch.manual_seed(0)
    return PromptedCLIP(clip, names, replace(spec, init_std=std))


# -- the plain implementation ---------------------------------------------------------------------


def refine(module, h):
    hidden = (h @ module.fc1.weight.T + module.fc1.bias).clamp(min=0)
    return h + hidden @ module.fc2.weight.T + module.fc2.bias


def vectors(model, tower_name):
    """Prompts of every layer of a tower, from the parameters alone."""
    spec, state = model.spec, dict(model.named_parameters())
    depth = getattr(spec, f"{tower_name}_depth")
    if not getattr(spec, tower_name):
        return []
    first = spec.first_coupling != "same"
    made = []
    for layer in range(depth):
        coupling = spec.first_coupling if first and layer == 0 else spec.coupling
        source, _, target = coupling.partition("_to_")
        # where the first layer differs, either tower keeps the vectors of its own layers only
        row = layer - (first and layer > 0)
        if tower_name != target:
            made.append(state[f"{tower_name}_prompts"][row])
        else:
            weight, bias = (state[f"projections.{layer}.{k}"] for k in ("weight", "bias"))
            made.append(state[f"{source}_prompts"][row] @ weight.T + bias)
    return made


def plain_text(oracle, model, words=()):
    """All 77 positions of every class on their own; prompts written one by one."""
    spec, encode = model.spec, tokens.from_open_clip().encode
    layers = vectors(model, "text")
    rows, ends, places = [], [], []
    for k, name in enumerate(model.classnames):
        name = encode(name.replace("_", " "))
        slots = [("v", j) for j in range(spec.text)]
        half = spec.text // 2
        body = {
            "end": [*slots, *words, *name],
            "middle": [*slots[:half], *name, *slots[half:]],
            "front": [*name, *slots],
        }[spec.position]
        if not spec.text:
            body = [*encode("a photo of a"), *name]
        row = [SOT, *body, *encode("."), EOT]
        ends.append(len(row) - 1)
        row += [0] * (77 - len(row))
        places.append({p: t[1] for p, t in enumerate(row) if isinstance(t, tuple)})
        rows.append(
            torch.stack(
                [
                    (layers[0][k] if spec.csc else layers[0])[t[1]]
                    if isinstance(t, tuple)
                    else oracle.token_embedding.weight[t]
                    for t in row
                ]
            )
        )
    x = torch.stack(rows) + oracle.positional_embedding  # (K, 77, d_t)
    for layer, block in enumerate(oracle.transformer.resblocks):
        if 0 < layer < spec.text_depth:
            x = torch.stack(
                [
                    torch.stack(
                        [
                            (layers[layer][k] if spec.csc else layers[layer])[places[k][p]]
                            if p in places[k]
                            else refine(model.text_refiners[str(layer)], h)
                            if spec.refine_text
                            else h
                            for p, h in enumerate(row)
                        ]
                    )
                    for k, row in enumerate(x)
                ]
            )
        x = block(x.transpose(0, 1)).transpose(0, 1)
    x = oracle.ln_final(x)[torch.arange(len(x)), torch.tensor(ends)]
    return F.normalize(x @ oracle.text_projection, dim=-1)


def plain_image(oracle, model, images):
    """Features and native block outputs, image by image."""
    spec, visual, layers = model.spec, oracle.visual, vectors(model, "vision")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    features, outputs = [], []
    for image in images:
        patches = visual.conv1((image - mean) / std).flatten(1).T  # (patches, d_v)
        x = torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding
        n = len(x)
        x = visual.ln_pre(torch.cat([x, *layers[:1]]))
        outputs.append([])
        for layer, block in enumerate(visual.transformer.resblocks):
            if 0 < layer < spec.vision_depth:
                own, prompts = x[:n], x[n:]
                if spec.refine_vision:
                    own = refine(model.vision_refiners[str(layer)], own)
                x = torch.cat([own, layers[layer] if layers else prompts])
            x = block(x[:, None])[:, 0]
            outputs[-1].append(x[:n])
        features.append(visual.ln_post(x[0]) @ visual.proj)
    return torch.stack(features), [torch.stack(part) for part in zip(*outputs, strict=True)]


def assert_same(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def assert_same_gradients(model, found, expected, tolerance=1e-5):
    """Gradients of a random functional agree for every parameter, and some are not zero."""
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    named = dict(model.named_parameters())
    pair = [
        torch.autograd.grad(
            (x * weights).sum(), list(named.values()), allow_unused=True, retain_graph=True
        )
        for x in (found, expected)
    ]
    compared = 0
    for name, ours, theirs in zip(named, *pair, strict=True):
        if theirs is None:  # of the other tower
            assert ours is None or not ours.any(), name
            continue
        scale = theirs.abs().max()
        assert (ours - theirs).abs().max() <= tolerance * scale + 1e-7, name
        compared += int(scale > 1e-4)
    assert compared


# -- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_deep_text_prompts_equal_the_plain_tower(clip, oracle, position, csc, depth, refined):
    spec = PromptSpec(text=3, text_depth=depth, csc=csc, position=position, refine_text=refined)
    alone = prompted(clip, spec, NAMES[2:3])
    assert_same(alone.text_features(), plain_text(oracle, alone))
    model = prompted(clip, spec)
    expected = plain_text(oracle, model)
    for class_chunk in (0, 1, 3, 100):
        found = model.text_features(class_chunk)
        assert_same(found, expected)
        assert_same_gradients(model, found, plain_text(oracle, model))


def test_text_refiners_without_prompts(clip, oracle):
    model = prompted(clip, PromptSpec(text_depth=3, refine_text=True))
    for class_chunk in (0, 2):
        found, expected = model.text_features(class_chunk), plain_text(oracle, model)
        assert_same(found, expected)
        assert_same_gradients(model, found, expected)


@pytest.mark.parametrize("text", [{}, {"qk_norm": True}, {"no_causal_mask": True}])
def test_deep_prompts_in_other_text_towers(text):
    custom = "no_causal_mask" in text
    if custom:
        text = text | {"pool_type": "last"}
    clip = open_clip_adapter(custom, **text)
    model = prompted(clip, PromptSpec(text=2, text_depth=2, refine_text=True))
    embeddings, eot, _ = model.frame.fill(model.text_prompts[0])
    x = clip.add_positions(embeddings)
    first, second = clip.text_blocks
    x = model.text_refiners["1"](first(x))
    x = second(torch.cat([x[:, :1], model.text_prompts[1].expand(len(x), -1, -1), x[:, 3:]], 1))
    expected = F.normalize(clip.pool_text(x, eot), dim=-1)
    for class_chunk in (0, 1):
        found = model.text_features(class_chunk)
        assert_same(found, expected)
        assert_same_gradients(model, found, expected)


# -- where the context stands ---------------------------------------------------------------------


def filled(clip, names=NAMES, **spec):
    """A model with contexts, and what its text tower reads."""
    model = PromptedCLIP(clip, names, PromptSpec(**spec))
    return model, model.frame.fill(model.text_vectors()[0])


def test_names_are_counted_as_in_coop_where_the_stop_changes_their_last_token(clip):
    """CoOp takes as many tokens for the name as it has without the stop."""
    encode = clip.tokenizer.encode
    ids, count = encode("what?!."), len(encode("what?!"))
    assert ids[:count] != encode("what?!") and len(ids) > count
    model, _ = filled(clip, ["what?!"], text=2, position="front")
    row = [*clip.tokenizer.start, *ids[:count], 0, 0, *ids[count:], *clip.tokenizer.end]
    assert torch.equal(model.frame.fixed[0, : len(row)], clip.embed_tokens(torch.tensor([row]))[0])


@pytest.mark.parametrize(
    ("names", "position", "csc", "shared"),
    [
        (NAMES, "end", False, 6),
        (NAMES, "middle", False, 3),
        (NAMES, "front", False, 1),
        (NAMES, "end", True, 1),
        (["great dane", "great white shark"], "end", False, 7),  # they begin alike
        (["great dane", "great white shark"], "end", True, 1),
    ],
)
def test_shared_prefix(clip, names, position, csc, shared):
    _, (embeddings, _, found) = filled(clip, names, text=5, csc=csc, position=position)
    assert found == shared
    same = (embeddings == embeddings[:1]).all(dim=-1).all(dim=0)
    assert same[:shared].all() and not same[shared]


# -- what the vectors start from ------------------------------------------------------------------


def test_words_start_the_vectors_and_spare_words_stay(clip, oracle):
    words = clip.tokenizer.encode("a photo of a")
    for count in (4, 2):
        spec = PromptSpec(text=count, text_init="a_photo of a")
        model = PromptedCLIP(clip, NAMES, spec)
        assert torch.equal(model.text_prompts[0], clip.embed_tokens(torch.tensor(words[:count])))
        assert_same(model.text_features(), plain_text(oracle, model, words[count:]))
        texts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
        assert_same(model.text_features(), text_features(clip, texts))
    deep = replace(spec, text=4, text_depth=2, csc=True)
    start = PromptedCLIP(clip, NAMES, deep).text_prompts  # (2, K, 4, d_t)
    assert (start[0] == clip.embed_tokens(torch.tensor(words))).all()
    assert abs(float(start[1].detach().std()) - 0.02) < 0.005


# -- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [0, 1, 5])
def test_image_tower_equals_the_plain_one(clip, oracle, length, depth, refined):
    spec = PromptSpec(vision=length, vision_depth=depth, refine_vision=refined)
    model = prompted(clip, spec)
    x = pixels().requires_grad_()
    features, blocks = model.image_features(x, blocks=True)
    expected, expected_blocks = plain_image(oracle, model, x)
    assert_same(features, expected)
    assert_same(model.image_features(x), expected)
    assert len(blocks) == 4
    for ours, theirs in zip(blocks, expected_blocks, strict=True):
        assert_same(ours, theirs)
    if list(model.parameters()):
        assert_same_gradients(model, features, expected)
    gradients = [torch.autograd.grad(f.square().sum(), x)[0] for f in (features, expected)]
    assert_same(*gradients)


@pytest.mark.parametrize("coupling", ["none", "text_to_vision", "vision_to_text", "both"])
@given(
    text_depth=st.integers(1, 3),
    vision_depth=st.integers(1, 4),
    length=st.integers(1, 4),
    refine_text=st.booleans(),
    refine_vision=st.booleans(),
    ratio=st.integers(1, 3),
    class_chunk=st.integers(0, 5),
)
@settings(deadline=None, max_examples=8, derandomize=True)
def test_coupled_towers(clip, oracle, coupling, length, ratio, class_chunk, **values):
    first = {"first_coupling": "text_to_vision"} if coupling == "both" else {}
    values |= first | {"coupling": "vision_to_text" if first else coupling}
    spec = PromptSpec(text=length, vision=length, refiner_ratio=ratio, **values)
    model = prompted(clip, spec)
    texts = model.text_features(class_chunk)
    images, blocks = model.image_features(pixels(), blocks=True)
    plain_texts = plain_text(oracle, model)
    plain_images, plain_blocks = plain_image(oracle, model, pixels())
    assert_same(texts, plain_texts)
    assert_same(images, plain_images)
    assert_same(blocks[-1], plain_blocks[-1])
    logits = cosine_logits(images, texts, clip.logit_scale)
    assert_same(logits, 100 * F.normalize(plain_images, dim=-1) @ plain_texts.T, 2e-5)
    assert_same_gradients(model, texts, plain_texts)
    loss = logits.sum() + sum(b.sum() for b in blocks)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert all(p.grad is None for p in clip.parameters())


# -- what must not change -------------------------------------------------------------------------


def test_nothing_learned_is_plain_clip(clip):
    model = PromptedCLIP(clip, NAMES, PromptSpec(text_depth=3, vision_depth=4))
    assert not list(model.parameters()) and not model.state_dict()
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    assert_same(model.text_features(), text_features(clip, texts))
    assert_same(model.image_features(pixels()), clip.provider_image(pixels()))
    assert_same(model.image_features(pixels(), blocks=True)[0], clip.provider_image(pixels()))
    expected = 100 * F.normalize(clip.provider_image(pixels()), dim=-1) @ model.text_features().T
    assert_same(model(pixels()), expected)


@pytest.mark.parametrize("text", [0, 4])
def test_zero_refiners_are_the_identity(clip, text):
    words = "a photo of a" if text else ""
    spec = PromptSpec(text=text, text_init=words, text_depth=3, vision_depth=4)
    torch.manual_seed(0)
    without = PromptedCLIP(clip, NAMES, spec)  # deep vectors alone
    spec = replace(spec, refine_text=True, refine_vision=True)
    model = PromptedCLIP(clip, NAMES, replace(spec, refiner_init="zero"))
    model.load_state_dict(without.state_dict(), strict=False)
    assert_same(model.text_features(), without.text_features())
    assert_same(model.image_features(pixels()), clip.provider_image(pixels()))
    default = PromptedCLIP(clip, NAMES, spec)
    assert (default.image_features(pixels()) - clip.provider_image(pixels())).abs().max() > 1e-3


def test_zero_refiners_learn():
    refiner = TokenRefiner(8, init="zero")
    x = torch.randn(2, 3, 8)
    assert torch.equal(refiner(x), x)
    refiner(x).square().sum().backward()
    assert refiner.fc2.weight.grad.any() and not refiner.fc1.weight.grad.any()


def test_untouched_texts_are_encoded_once(clip, monkeypatch):
    model = prompted(clip, PromptSpec(vision=2))
    with torch.inference_mode():
        first = model.text_features()
    monkeypatch.setattr(clip, "encode_prompts", None)
    assert torch.equal(model.text_features(), first) and not first.is_inference()
    x = pixels().requires_grad_()
    assert torch.autograd.grad(model.logits(x, model.text_features()).sum(), x)[0].any()


# -- parameters and gradients ---------------------------------------------------------------------


def test_state_holds_only_what_is_learned(clip):
    model = prompted(clip, EVERYTHING)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert {name.partition(".")[0] for name in model.state_dict()} == {
        "text_prompts",
        "projections",
        "text_refiners",
        "vision_refiners",
    }
    torch.manual_seed(5)
    other = PromptedCLIP(clip, NAMES[::-1], EVERYTHING)  # other names: the state is of none
    assert (other(pixels()) - model(pixels()).flip(1)).abs().max() > 1e-3
    other.load_state_dict(model.state_dict())
    assert_same(other(pixels()), model(pixels()).flip(1))


def test_training_mode_and_gradients_stay_out_of_the_backbone(clip):
    model = prompted(clip, EVERYTHING).train()
    assert not clip.training and not any(m.training for m in clip.modules())
    model.requires_grad_(True)
    assert not any(p.requires_grad for p in clip.parameters())
    x = pixels().requires_grad_()
    texts = model.text_features().detach()
    (gradient,) = torch.autograd.grad(model.logits(x, texts).sum(), x)
    assert gradient.any() and all(p.grad is None for p in model.parameters())
    model.requires_grad_(False)
    (frozen,) = torch.autograd.grad(model.logits(x, texts).sum(), x)
    assert_same(frozen, gradient)


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_image_pooling_sees_no_prompts(pool):
    torch.manual_seed(0)
    vision = {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32, "pool_type": pool}
    text = {"layers": 1, "width": 64, "heads": 1}
    model = open_clip.CLIP(32, vision, text)
    model.load_state_dict(random_state(model))
    clip = CLIPAdapter(model, tokens.from_open_clip(), name="other", sha256="")
    plain = PromptedCLIP(clip, NAMES, PromptSpec())
    assert_same(plain.image_features(pixels(), blocks=True)[0], clip.provider_image(pixels()))
    with_prompts = prompted(clip, PromptSpec(vision=3))
    features, blocks = with_prompts.image_features(pixels(), blocks=True)
    assert_same(features, clip.pool_image(blocks[-1]))
    assert_same(features, with_prompts.image_features(pixels()))
    assert (features - clip.provider_image(pixels())).abs().max() > 1e-3


def test_the_last_image_block_computes_only_what_is_pooled(clip):
    """Features and gradients as with all tokens, for less work."""
    model, work, found = prompted(clip, EVERYTHING), [], []
    for blocks in (True, False):
        x = pixels().requires_grad_()
        with FlopCounterMode(display=False) as counter:
            features = model.image_features(x, blocks=blocks)
        features = features[0] if blocks else features
        inputs = [x, *model.parameters()]
        grads = torch.autograd.grad(features.square().sum(), inputs, allow_unused=True)
        found.append([features, *(g for g in grads if g is not None)])
        work.append(counter.get_total_flops())
    assert len(found[0]) == len(found[1]) > 10
    for whole, cut in zip(*found, strict=True):
        assert_same(cut, whole)
    share = work[1] / work[0]  # 1/4 of the blocks does without most of its 10/12
    assert 0.75 < share < 0.9
    tokens = clip.patch_tokens(pixels())
    assert clip.pooling_blocks[-1](tokens).shape == (3, 1, clip.vision_width)
    assert clip.image_blocks[-1](tokens).shape == tokens.shape


# -- refusals -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "patch_size": None}
    text = {"layers": 2, "width": 64, "heads": 1}
    model = open_clip.CLIP(32, vision, text).requires_grad_(False)
    return CLIPAdapter(model, tokens.from_open_clip(), name="RN50", sha256="")


def test_a_resnet_takes_text_prompts_only(resnet):
    model = prompted(resnet, PromptSpec(text=2, text_depth=2, refine_text=True))
    assert model(pixels()).shape == (3, 4)
    assert torch.equal(model.image_features(pixels()), resnet.encode_image(pixels()))
    for spec in (
        PromptSpec(vision=2),
        PromptSpec(refine_vision=True),
        PromptSpec(text=2, vision=2, coupling="vision_to_text"),
    ):
        with pytest.raises(UserError, match="RN50 is not a vision transformer.*text prompts only"):
            PromptedCLIP(resnet, NAMES, spec)
    with pytest.raises(UserError, match="not a vision transformer"):
        model.image_features(pixels(), blocks=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": -1}, "text is -1, expected a whole number of 0 or more"),
        ({"text": 2, "text_depth": 0}, "text_depth is 0, expected a whole number of 1"),
        ({"refiner_ratio": 0}, "refiner_ratio is 0"),
        ({"init_std": -0.1}, "init_std is -0.1"),
        (
            {"coupling": "text-to-vision"},
            "'text-to-vision', expected .*mean text_to_vision",
        ),
        ({"refiner_init": "zeros"}, "'zeros', expected .*zero"),
        ({"text": 1, "position": "ends"}, "'ends', expected .*end"),
        ({"template": "a photo"}, "'a photo' has no place for the class name"),
        ({"text": 2, "vision": 3, "coupling": "text_to_vision"}, "2 text and 3 visual vectors"),
        ({"text": 2, "vision": 2, "coupling": "text_to_vision", "csc": True}, "csc"),
        (
            {"text": 2, "vision": 2, "coupling": "vision_to_text", "text_init": "a b"},
            "'a b' cannot start",
        ),
        ({"first_coupling": "text_to_vision"}, "'text_to_vision' goes with .*, not 'none'"),
        ({"text_init": "a photo"}, "'a photo' cannot start text vectors: there are none"),
        ({"text": 2, "text_depth": 4}, "text prompt depth 4 goes beyond the 3 blocks"),
        ({"vision": 2, "vision_depth": 5}, "depth 5 goes beyond the 4 blocks.*from 1 to 4"),
        ({"refine_vision": True, "vision_depth": 5}, "depth 5 goes beyond the 4 blocks"),
        ({"text": 3, "text_init": "a photo"}, "has 2 tokens but 3 text vectors"),
        (
            {"text": 1, "text_init": "a photo", "position": "front"},
            "has 2 tokens but 1 .*position 'end' alone",
        ),
        ({"text": 80}, "80 context vectors"),
    ],
)
def test_refusals_name_the_value(clip, values, message):
    with pytest.raises(UserError, match=message):
        PromptedCLIP(clip, NAMES, PromptSpec(**values))


def test_a_text_tower_without_prompts_still_takes_visual_ones():
    clip = open_clip_adapter(custom=True, embed_cls=True)
    model = prompted(clip, PromptSpec(vision=2))
    x = torch.rand(2, 3, 16, 16)
    assert model(x).shape == (2, 4)
    for spec in (PromptSpec(text=2), PromptSpec(text_depth=2, refine_text=True)):
        with pytest.raises(UserError, match="takes no learned prompts"):
            PromptedCLIP(clip, NAMES, spec)
