"""The short text tower equals the plain 77-token one, in features and in gradients."""

import advprompt  # noqa: F401  its torchvision guard comes before open_clip

# isort: split

import open_clip
import openai_clip_reference as reference
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from toy import toy_clip, toy_state_dict

from advprompt.backbone import CLIPAdapter, Prompts, text_features, tokens, tower
from advprompt.prompting import PromptedCLIP, PromptSpec
from advprompt.utils.errors import UserError

NAMES = ["abyssinian cat", "dog", "great_white shark", "abyssinian hound", "yorkshire terrier"]


@pytest.fixture(scope="module")
def clip():
    return toy_clip(text_layers=3)


@pytest.fixture(scope="module")
def oracle():
    state = toy_state_dict(text_layers=3)
    model = reference.CLIP(state).requires_grad_(False)
    model.load_state_dict(state)
    return model


def plain(oracle, prompts):
    """All 77 positions of every class, through the independent implementation."""
    missing = 77 - prompts.embeddings.shape[1]
    x = F.pad(prompts.embeddings, (0, 0, 0, missing)) + oracle.positional_embedding
    x = oracle.ln_final(oracle.transformer(x))
    x = x[torch.arange(len(x)), prompts.eot] @ oracle.text_projection
    return F.normalize(x, dim=-1)


def context(names, clip, count, **spec):
    """A model with learned contexts, and the prompts they make."""
    model = PromptedCLIP(clip, names, PromptSpec(text=count, **spec))
    return model, model.frame.fill(model.text_vectors()[0])


def gradient(model, features):
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((features * weights).sum(), model.text_prompts, retain_graph=True)[0]


@pytest.mark.parametrize("class_chunk", [0, 1, 2, 100])
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_features_and_gradients_equal_the_plain_tower(clip, oracle, position, csc, class_chunk):
    torch.manual_seed(0)
    model, prompts = context(NAMES, clip, 5, csc=csc, position=position)
    expected = plain(oracle, prompts)
    found = text_features(clip, prompts, class_chunk)
    assert torch.allclose(found, expected, atol=1e-5)
    expected, found = gradient(model, expected), gradient(model, found)
    assert expected.abs().max() > 1e-3
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shared", [0, 1, 3, 6, 50])
def test_any_part_of_the_common_prefix_may_be_shared(clip, oracle, shared):
    embeddings, eot, longest = context(NAMES, clip, 5)[1]
    assert longest == 6
    if shared > longest:  # one class alone shares everything up to its end token
        embeddings, eot = embeddings[:1], eot[:1]
    prompts = Prompts(embeddings, eot, shared)
    found = text_features(clip, prompts)
    assert torch.allclose(found, plain(oracle, prompts), atol=1e-5)


def test_sharing_more_than_is_common_is_wrong(clip, oracle):
    """The comparison above can fail: it notices a prefix that is not common."""
    embeddings, eot, longest = context(NAMES, clip, 5)[1]
    prompts = Prompts(embeddings, eot, longest + 1)
    difference = text_features(clip, prompts) - plain(oracle, prompts)
    assert difference.abs().max() > 1e-3


def test_encode_text_equals_the_provider(clip):
    texts = ["a photo of a cat.", "a photo of a dog, a type of pet.", "a photo of a cat.", "x"]
    tokens = clip.tokenize(texts)
    for rows in (tokens, tokens[:1], tokens[:2], tokens[[0, 2]]):
        expected = clip.model.encode_text(rows)
        assert torch.allclose(clip.encode_text(rows), expected, atol=1e-5)
        assert torch.allclose(clip.encode_text(rows, class_chunk=1), expected, atol=1e-5)
    found = text_features(clip, texts)
    assert torch.allclose(found.norm(dim=-1), torch.ones(4), atol=1e-6)
    assert torch.equal(found, text_features(clip, tokens))


def test_class_chunks_bound_the_memory_for_gradients(clip):
    names = [f"{a} {b}" for a in ("red", "green", "blue", "grey", "pink") for b in NAMES]
    _, prompts = context(names, clip, 4)

    def kept(class_chunk):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            text_features(clip, prompts, class_chunk)
        return sum(sizes)

    assert kept(1) < kept(0) / 3


def open_clip_adapter(custom=False, **text):
    torch.manual_seed(0)
    vision = {"layers": 1, "width": 64, "patch_size": 8, "image_size": 16}
    text = {"layers": 2, "width": 64, "heads": 2, "vocab_size": 49408, **text}
    model = (CustomTextCLIP if custom else open_clip.CLIP)(32, vision, text)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):  # layer scale starts almost at zero
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return CLIPAdapter(model, tokens.from_open_clip(), name="other", sha256="")


@pytest.mark.parametrize(
    ("custom", "causal", "text"),
    [
        (False, True, {"ls_init_value": 0.1}),
        (True, True, {}),
        (False, False, {"qk_norm": True}),
        (False, False, {"pool_type": "last"}),
        (True, False, {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}),
        (True, False, {"no_causal_mask": True, "context_length": 64}),
    ],
)
def test_other_open_clip_text_towers(custom, causal, text):
    clip = open_clip_adapter(custom, **text)
    assert clip.causal is causal and clip.embed_dim == 32
    ids = clip.tokenize(["a photo of a cat.", "a photo of a hound", "a zebra"])
    expected = clip.model.encode_text(ids)
    assert torch.allclose(clip.encode_text(ids), expected, atol=1e-5)
    found = clip.encode_prompts(clip.embed_tokens(ids), clip.end_of_text(ids), shared=1)
    assert torch.allclose(found, expected, atol=1e-5)
    _, prompts = context(["cat", "zebra"], clip, 2)
    assert text_features(clip, prompts, class_chunk=1).shape == (2, 32)


def test_a_tower_with_an_extra_class_token_takes_no_prompts():
    clip = open_clip_adapter(custom=True, embed_cls=True)
    ids = clip.tokenize(["a cat", "a dog"])
    assert torch.allclose(clip.encode_text(ids), clip.model.encode_text(ids), atol=1e-6)
    with pytest.raises(UserError, match="takes no learned prompts"):
        context(["cat"], clip, 2)
    with pytest.raises(UserError, match="takes no learned prompts"):
        clip.embed_tokens(ids)


def test_quick_gelu_equals_its_formula_in_value_and_gradient():
    x = torch.cat([torch.linspace(-40, 40, 401), torch.tensor([0.0, 1e-20, -1e-20, 3e4, -3e4])])
    x = x.double().requires_grad_()
    expected = x * torch.sigmoid(1.702 * x)
    found = tower._QuickGELU.apply(x)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(len(x), generator=torch.Generator().manual_seed(0)).double()
    a, b = (torch.autograd.grad((weights * out).sum(), x)[0] for out in (found, expected))
    torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(tower._QuickGELU.apply, (x[150:250].detach().requires_grad_(),))
    low = tower._QuickGELU.apply(x.detach().bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), expected.detach(), rtol=0.03, atol=0.02)
