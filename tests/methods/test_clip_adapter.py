"""One face for every CLIP: providers agree, the adapter equals them, pixels are guarded."""

import sys

import advprompt  # noqa: F401  its torchvision guard comes before open_clip

# isort: split

import open_clip
import openai_clip_reference as reference
import pytest
import torch
from toy import toy_clip, toy_state_dict

from advprompt.backbone import loading, make_adapter, providers, tiny
from advprompt.backbone.adapter import CLIP_MEAN, CLIP_STD
from advprompt.utils.errors import UserError

TEXTS = ["a photo of a cat.", "a photo of an old dog.", "zebra"]
PLAIN = "from openai_clip_reference import build_model\n"
DESIGNED = """
import openai_clip_reference
def build_model(state_dict, design_details):
    assert design_details["trainer"] == "CoOp"
    assert not any(design_details[k] for k in
                   ("vision_depth", "language_depth", "vision_ctx", "language_ctx"))
    return openai_clip_reference.build_model(state_dict)
"""
TOKENIZER = """
from open_clip.tokenizer import SimpleTokenizer as Base
class SimpleTokenizer(Base):
    def __init__(self):
        super().__init__()
        self.encoder["<|startoftext|>"], self.encoder["<|endoftext|>"] = 49406, 49407
"""


@pytest.fixture
def clip_package(tmp_path, monkeypatch):
    """Make a package ``clip`` with the given source of ``clip/model.py`` importable."""

    def write(model_source):
        folder = tmp_path / "clip"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        if model_source:
            (folder / "model.py").write_text(model_source)
            (folder / "simple_tokenizer.py").write_text(TOKENIZER)
        monkeypatch.syspath_prepend(tmp_path)

    for name in [name for name in sys.modules if name.split(".")[0] == "clip"]:
        monkeypatch.delitem(sys.modules, name)
    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "clip"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def clip():
    return toy_clip()


def pixels(n=2, size=32):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def close(found, expected, relative=1e-5):
    return (found - expected).abs().max() <= relative * expected.abs().max()


def random_state(model):
    """Values of sensible size for every tensor of an open_clip model."""
    generator, state = torch.Generator().manual_seed(0), model.state_dict()
    for name, value in state.items():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            state[name] = noise.abs() + 0.5
        elif value.dim() >= 2:
            state[name] = noise * value[0].numel() ** -0.5
        elif value.is_floating_point():
            state[name] = 0.1 * noise + name.endswith("weight")
    return state


def assert_providers_agree(state, size):
    ours = make_adapter(state, name="ours", provider="open_clip")
    theirs = make_adapter(state, name="theirs", provider="clip")
    assert isinstance(theirs.model, reference.CLIP) and ours.sha256 == theirs.sha256
    x, ids = pixels(2, size), ours.tokenize(TEXTS)
    assert torch.equal(ids, theirs.tokenize(TEXTS))
    normalised = (x - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    images, texts = theirs.model.encode_image(normalised), theirs.model.encode_text(ids)
    for clip in (theirs, ours):
        assert close(clip.encode_image(x), images) and close(clip.encode_text(ids), texts)
    assert close(ours.model.encode_text(ids), texts)


@pytest.mark.parametrize("source", [PLAIN, DESIGNED], ids=["plain", "design_details"])
def test_providers_agree_on_a_toy(clip_package, source):
    clip_package(source)
    assert_providers_agree(toy_state_dict(vision_width=128, layers=3), 32)


def test_providers_agree_on_a_toy_resnet(clip_package):
    clip_package(PLAIN)
    vision = {"layers": (1, 2, 1, 1), "width": 16, "image_size": 64}
    text = {"width": 64, "heads": 1, "layers": 1, "vocab_size": 49408}
    state = random_state(open_clip.CLIP(32, vision, text, quick_gelu=True))
    assert_providers_agree(state, 64)
    adapter = make_adapter(state, name="toy resnet")
    assert not adapter.is_vit and adapter.resolution == 64 and adapter.vision_width is None
    with pytest.raises(UserError, match="toy resnet is not a vision transformer"):
        adapter.patch_tokens(pixels(1, 64))


@pytest.mark.parametrize("provider", ["open_clip", "clip"])
def test_composed_towers_equal_the_encoders(clip_package, provider):
    clip_package(PLAIN)
    clip = toy_clip(provider=provider, layers=3)
    x, ids = pixels(), clip.tokenize(TEXTS)
    tokens = clip.patch_tokens(x)
    assert tokens.shape == (2, 17, clip.vision_width)
    assert len(clip.image_blocks) == clip.vision_layers == 3
    for block in clip.image_blocks:
        tokens = block(tokens)
    assert close(clip.pool_image(tokens), clip.provider_image(x))
    assert close(clip.encode_image(x), clip.provider_image(x))

    text = clip.add_positions(clip.embed_tokens(ids))
    assert text.shape == (3, clip.context_length, clip.text_width)
    for block in clip.text_blocks:
        text = block(text)
    expected = clip.model.encode_text(ids)
    assert close(clip.pool_text(text, clip.end_of_text(ids)), expected)
    assert close(clip.encode_text(ids), expected)
    more = torch.cat([clip.patch_tokens(x), torch.zeros(2, 4, clip.vision_width)], dim=1)
    assert clip.image_blocks[0](more).shape == (2, 21, clip.vision_width)  # prompts fit in


@pytest.mark.parametrize(
    "vision",
    [
        {"pool_type": "avg"},
        {"attentional_pool": True, "attn_pooler_heads": 4},
        {"ls_init_value": 0.3, "no_ln_pre": True, "final_ln_after_pool": True},
        {"qk_norm": True},
    ],
)
def test_other_open_clip_image_towers(vision):
    from advprompt.backbone import CLIPAdapter, tokens

    torch.manual_seed(0)
    vision = {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32, **vision}
    text = {"layers": 1, "width": 64, "heads": 1, "vocab_size": 49408}
    model = open_clip.CLIP(32, vision, text)
    clip = CLIPAdapter(model, tokens.from_open_clip(), name="other", sha256="")
    x = clip.patch_tokens(pixels())
    for block in clip.image_blocks:
        x = block(x)
    assert close(clip.pool_image(x), clip.provider_image(pixels()))
    assert close(clip.encode_image(pixels()), clip.provider_image(pixels()))


def test_it_is_frozen_and_stays_in_evaluation_mode(clip):
    clip.train()
    assert not any(module.training for module in clip.modules())
    x = pixels().requires_grad_()
    clip.encode_image(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in clip.parameters())


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    toy_clip()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_digest_is_of_the_content(clip):
    same = make_adapter({k: v.double() for k, v in toy_state_dict().items()}, name="b")
    assert same.sha256 == clip.sha256 and len(clip.sha256) == 64
    assert toy_clip(seed=1).sha256 != clip.sha256
    changed = toy_state_dict()
    changed["visual.proj"][0, 0] += 1
    assert make_adapter(changed, name="c").sha256 != clip.sha256


def test_without_image_tower(clip):
    small = toy_clip().without_image_tower()
    assert not any(name.startswith("model.visual") for name, _ in small.named_parameters())
    ids = clip.tokenize(TEXTS)
    assert torch.equal(small.encode_text(ids), clip.encode_text(ids))
    assert small.sha256 == clip.sha256
    with pytest.raises(RuntimeError, match="image tower of toy has been freed"):
        small.encode_image(pixels())


def test_the_configured_images_are_compared_with_those_of_the_backbone(clip, capsys):
    clip.check_input((32, 32), "bicubic")
    assert capsys.readouterr().out == ""
    clip.check_input((32, 32), "bilinear")
    assert "trained on images resized by 'bicubic' (INPUT.INTERPOLATION)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"INPUT.SIZE is \(40, 40\) but backbone toy takes"):
        clip.check_input((40, 40), "bicubic")


def test_wrong_size_and_long_text_are_named(clip):
    with pytest.raises(UserError, match="images of 40x40 pixels do not fit toy.*32x32"):
        clip.encode_image(pixels(1, 40))
    with pytest.raises(UserError, match="takes 102 tokens but the text tower reads 77"):
        clip.tokenize(["cat " * 100])


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("", "is not OpenAI's CLIP, probably the clipboard tool"),
        ("import package_that_is_gone", "'clip' cannot be imported .*package_that_is_gone"),
    ],
)
def test_other_packages_of_the_name_clip_are_named(clip_package, tmp_path, code, sentence):
    clip_package("")
    (tmp_path / "clip" / "__init__.py").write_text(code)
    with pytest.raises(UserError, match=sentence):
        toy_clip(provider="clip")


def test_choice_of_the_provider(clip_package, monkeypatch):
    with monkeypatch.context() as environment:
        clip_package(PLAIN)
        environment.setenv("ADVPROMPT_CLIP_PROVIDER", "clip")
        assert isinstance(make_adapter(toy_state_dict(), name="toy").model, reference.CLIP)
    installed = {"open_clip", "clip"}
    find = providers.importlib.util, "find_spec"
    monkeypatch.setattr(*find, lambda name: name in installed or None)
    assert providers.choose_provider() == "open_clip"
    installed.remove("open_clip")
    assert providers.choose_provider() == "clip"
    installed.clear()
    with pytest.raises(UserError, match="no CLIP code is installed"):
        providers.choose_provider()
    with pytest.raises(UserError, match="'opencip' is unknown. Did you mean open_clip"):
        providers.choose_provider("opencip")


def shipped(tmp_path):
    """Files of the built-in CLIP's format with random toy weights."""
    from advprompt.utils.io import save_tensors

    state = {k: v.half() for k, v in toy_state_dict().items()}
    rows = torch.tensor([0, 320, 1929, 49406, 49407])
    state["token_embedding.weight"] = state["token_embedding.weight"][rows]
    save_tensors(tmp_path / "tiny.safetensors", {**state, "token_rows": rows})
    visual = {k: v + 1 for k, v in state.items() if k.startswith("visual.")}
    save_tensors(tmp_path / "tiny-robust.safetensors", visual)
    return state, rows


def test_tiny_is_expanded(tmp_path):
    stored, rows = shipped(tmp_path)
    state = tiny.load_tiny_state("tiny", tmp_path)
    table = state["token_embedding.weight"]
    assert table.shape == (49408, 64) and "token_rows" not in state
    assert torch.equal(table[rows], stored["token_embedding.weight"].float())
    others = torch.ones(49408, dtype=torch.bool)
    others[rows] = False
    assert table[others].std() == pytest.approx(0.02, rel=0.01)
    assert torch.equal(table, tiny.load_tiny_state("tiny", tmp_path)["token_embedding.weight"])
    assert all(value.dtype == torch.float32 for value in state.values())


def test_tiny_robust_replaces_the_image_tower(tmp_path, monkeypatch):
    stored, _ = shipped(tmp_path)
    monkeypatch.setattr(tiny, "ASSETS", tmp_path)
    plain, robust = loading.load_clip("tiny"), loading.load_clip("tiny-robust")
    assert plain.name == "tiny" and robust.resolution == 32
    assert torch.equal(robust.model.visual.proj, (stored["visual.proj"] + 1).float())
    ids = plain.tokenize(TEXTS)
    assert torch.equal(plain.encode_text(ids), robust.encode_text(ids))
    assert plain.sha256 != robust.sha256
    (tmp_path / "tiny-robust.safetensors").unlink()
    with pytest.raises(UserError, match="tiny-robust.safetensors' .* is missing"):
        tiny.load_tiny_state("tiny-robust", tmp_path)


def test_tiny_runs_without_open_clip_exactly_as_with_it():
    ours, theirs = loading.load_clip("tiny"), loading.load_clip("tiny", provider="open_clip")
    assert not isinstance(ours.model, open_clip.CLIP) and isinstance(theirs.model, open_clip.CLIP)
    assert ours.sha256 == theirs.sha256 and (ours.causal, ours.is_vit) == (True, True)
    x, ids = pixels(2, 64), ours.tokenize(TEXTS)
    assert torch.equal(ids, theirs.tokenize(TEXTS))
    assert torch.equal(ours.encode_image(x), theirs.encode_image(x))
    assert torch.equal(ours.encode_text(ids), theirs.encode_text(ids))
    assert close(ours.provider_image(x), theirs.provider_image(x))
    assert close(ours.provider_text(ids), theirs.provider_text(ids))


def test_a_release_of_open_clip_with_another_table(clip, monkeypatch):
    """Tables that no state dict fills keep the values that open_clip gives them."""

    class Newer(open_clip.CLIP):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.register_buffer("table", torch.ones(2), persistent=False)

    monkeypatch.setattr(open_clip, "CLIP", Newer)
    newer = toy_clip()
    assert torch.equal(newer.model.table, torch.ones(2))
    ids = clip.tokenize(TEXTS)
    assert torch.equal(newer.model.encode_text(ids), clip.model.encode_text(ids))
