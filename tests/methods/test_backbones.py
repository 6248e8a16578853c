"""open_clip's architectures: prompts in both towers, attack and step, equal to open_clip itself."""

import json
import sys
import types
from dataclasses import replace

import advprompt  # noqa: F401  its torchvision guard comes before open_clip

# isort: split

import open_clip
import pytest
import torch
import torch.nn.functional as F
import yaml
from small_backbones import lively, shrink
from toy import toy_clip, toy_state_dict

from advprompt.attacks import AttackSpec, GradientAttack
from advprompt.backbone import OPENAI, load_clip, make_adapter, text_features
from advprompt.backbone import architectures as named
from advprompt.backbone.adapter import CLIP_MEAN
from advprompt.backbone.loading import find_weights
from advprompt.backbone.vision import TimmViT
from advprompt.losses import cross_entropy
from advprompt.prompting import PromptedCLIP, PromptSpec
from advprompt.utils.errors import UserError
from tests.conftest import REPO

pytestmark = pytest.mark.filterwarnings("ignore:backbone open_clip.*untrained")
NAMES = ["abyssinian cat", "dog", "great_white shark"]
TEXTS = ["a photo of a cat.", "a photo of an old dog, a type of pet.", "zebra"]
# architecture: text tower causal and cut, takes text prompts, image tower takes prompts
KINDS = {
    "ViT-B-16": (True, True, True),
    "ViT-B-16-quickgelu": (True, True, True),
    "ViT-B-16-SigLIP": (False, True, True),  # looks ahead, pools the last position
    "ViT-B-16-SigLIP2": (False, True, True),
    "EVA02-B-16": (True, True, True),  # positions by rotation
    "PE-Core-B-16": (True, True, True),  # the same, pooled by attention
    "MobileCLIP-B": (True, True, True),
    "MobileCLIP-S1": (False, True, False),  # looks ahead; a convolutional image tower
    "ViT-H-14-CLIPA": (False, True, True),
    "ViT-H-14-worldwide": (True, True, True),  # finds the end token by its id
    "convnext_base": (True, True, False),
    "vit_relpos_medium_patch16_cls_224": (True, True, False),  # a bias for every pair of patches
    "coca_ViT-B-32": (False, False, True),  # a class token after the text
}
TEXT = {"ViT-H-14-worldwide": {"eos_id": 49407}}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Load small versions by architecture, each once."""
    folder, known = tmp_path_factory.mktemp("small"), {}
    with pytest.MonkeyPatch.context() as patch:

        def load(arch):
            if arch not in known:
                name = shrink(patch, folder, arch, **TEXT.get(arch, {}))
                weights = find_weights(f"open_clip:{name}/random")
                known[arch] = make_adapter(replace(weights, state=lively(weights.state)), name=arch)
            return known[arch]

        yield load


def pixels(clip, n=2):
    size = clip.resolution
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def close(found, expected, relative=1e-5):
    assert expected.abs().max() > 1e-4
    return (found - expected).abs().max() <= relative * expected.abs().max()


def weighted(features):
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    return (features * noise).sum()


@pytest.mark.parametrize("arch", KINDS)
def test_images_equal_open_clip(small, arch):
    """Features and gradients to the pixels, whole and block by block."""
    clip = small(arch)
    assert (clip.causal, clip.takes_prompts, clip.is_vit) == KINDS[arch]
    assert clip.vision_layers == (3 if clip.is_vit else None)
    assert (clip.vision_width is not None) == clip.is_vit
    assert not any(p.requires_grad for p in clip.parameters())
    x = pixels(clip).requires_grad_()
    visual = clip.model.visual((x - clip.mean) / clip.std)
    expected = visual[0] if isinstance(visual, tuple) else visual  # CoCa also gives tokens
    gradient = torch.autograd.grad(weighted(expected), x)[0]
    found = [clip.encode_image(x)]
    if clip.is_vit:
        features, blocks = PromptedCLIP(clip, NAMES, PromptSpec()).image_features(x, blocks=True)
        assert len(blocks) == 3 and blocks[0].shape == clip.patch_tokens(x).shape
        found.append(features)
    for features in found:
        assert close(features, expected)
        assert close(torch.autograd.grad(weighted(features), x)[0], gradient)


@pytest.mark.parametrize("arch", KINDS)
def test_texts_equal_open_clip(small, arch):
    """Features and gradients to the token embeddings, cut and shared where that is allowed."""
    clip, seen = small(arch), []

    def watch(module, inputs, output):
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    tower = clip.model.text if hasattr(clip.model, "text") else clip.model
    ids = clip.tokenize(TEXTS)
    handle = tower.token_embedding.register_forward_hook(watch)
    try:
        features = [clip.model.encode_text(ids, normalize=False), clip.encode_text(ids)]
        if clip.takes_prompts:
            embedded, ends = clip.embed_tokens(ids), clip.end_of_text(ids)
            features.append(clip.encode_prompts(embedded, ends, shared=1))
    finally:
        handle.remove()
    pairs = zip(features, seen, strict=True)
    gradients = [torch.autograd.grad(weighted(found), leaf)[0] for found, leaf in pairs]
    for found, gradient in zip(features[1:], gradients[1:], strict=True):
        assert close(found, features[0])
        # the start token, computed once where it may be: its gradient lies in the first row
        assert close(gradient[:, :1].sum(0), gradients[0][:, :1].sum(0))
        assert close(gradient[:, 1:], gradients[0][:, 1:])
    assert close(clip.encode_text(ids, class_chunk=2), features[0])


def spec_for(clip):
    sizes = {"text": 2, "text_depth": 3, "refine_text": True} if clip.takes_prompts else {}
    if clip.is_vit:
        sizes |= {"vision": 2, "vision_depth": 3, "refine_vision": True}
    return PromptSpec(**sizes, init_std=0.1)


@pytest.mark.parametrize("arch", KINDS)
def test_prompts_attack_and_one_training_step(small, arch):
    clip, labels = small(arch), torch.tensor([0, 2])
    torch.manual_seed(0)
    model = PromptedCLIP(clip, NAMES, spec_for(clip))
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert before
    texts, x = model.text_features(), pixels(clip)
    attack = AttackSpec("pgd", 8 / 255, 4 / 255, 2, 1, "uniform", "ce", "end_to_end")
    found = GradientAttack(
        lambda images: cross_entropy(model.logits(images, texts.detach()), labels), attack
    ).run(x, [1, 2])
    assert not found.zero_grad.any() and (found.loss_last > found.loss_first).all()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cross_entropy(model.logits(found.images, texts), labels).sum().backward()
    optimizer.step()
    # the last block's prompts and refiners act through what follows: all of them learn
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    assert not any(p.grad is not None for p in clip.parameters())


@pytest.mark.parametrize(
    ("arch", "prompts", "sentence"),
    [
        ("convnext_base", "vision", "is not a vision transformer.*text prompts only"),
        ("coca_ViT-B-32", "text", "takes no learned prompts"),
    ],
)
def test_towers_that_take_no_prompts_say_so(small, arch, prompts, sentence):
    with pytest.raises(UserError, match=sentence):
        PromptedCLIP(small(arch), NAMES, PromptSpec(**{prompts: 2}))


@pytest.mark.parametrize("arch", ["EVA02-B-16", "PE-Core-B-16"])
def test_visual_prompts_are_not_rotated(small, arch):
    """They act as further class tokens would, which stand before the patches and do not turn."""
    clip = small(arch)
    model = PromptedCLIP(clip, NAMES, PromptSpec(vision=2, init_std=0.3))
    found = model.image_features(pixels(clip))
    face, trunk = clip._image_face, clip.model.visual.trunk
    tokens = face.embed((pixels(clip) - clip.mean) / clip.std)  # (B, N, d_v)
    prompts = model.vision_prompts[0].expand(2, -1, -1)
    tokens = trunk.norm_pre(torch.cat([prompts, tokens], dim=1))
    for block in trunk.blocks:
        block.attn.num_prefix_tokens += 2
        tokens = block(tokens, rope=trunk.rope.get_embed())
        block.attn.num_prefix_tokens -= 2
    assert close(found, face.pool(tokens[:, 2:]))


# -- detection ------------------------------------------------------------------------------------


def test_a_tower_that_only_seems_causal_is_found_out():
    """A block that looks ahead behind a causal mask takes the plain path, or none."""
    clip = toy_clip()
    assert clip.causal
    block = type(clip.model.transformer.resblocks[0])

    class Peeking(block):
        def forward(self, q_x, *args, **kwargs):
            return super().forward(q_x, *args, **kwargs) + q_x.mean(dim=1, keepdim=True)

    for layer in clip.model.transformer.resblocks:
        layer.__class__ = Peeking
    again = type(clip)(clip.model, clip.tokenizer, name="peeking", sha256="")
    assert not again.causal and not again.takes_prompts
    ids = again.tokenize(TEXTS)
    assert torch.equal(again.encode_text(ids), again.model.encode_text(ids))


def test_an_image_tower_that_does_more_between_its_blocks_is_found_out():
    clip = toy_clip()
    visual = clip.model.visual

    class Scaled(type(visual)):
        def forward(self, x):
            return super().forward(x) * 1.01

    visual.__class__ = Scaled
    again = type(clip)(clip.model, clip.tokenizer, name="scaled", sha256="")
    assert not again.is_vit and again.vision_width is None
    assert not TimmViT.fits(visual)


def test_low_precision_around_it_does_not_disturb_the_detection():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            clip = toy_clip()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert clip.causal and clip.takes_prompts and clip.is_vit


def test_a_logit_bias_cancels_where_classes_compete(small):
    """SigLIP's bias is the same for every class: probabilities and margins do not see it."""
    clip = small("ViT-B-16-SigLIP")
    assert float(clip.model.logit_bias) == -10
    texts = text_features(clip, TEXTS)
    images = F.normalize(clip.encode_image(pixels(clip)), dim=-1)
    logits = clip.logit_scale * images @ texts.t()
    theirs, _ = clip.model.get_logits((pixels(clip) - clip.mean) / clip.std, clip.tokenize(TEXTS))
    assert torch.allclose(theirs, logits - 10, atol=1e-4)
    assert torch.allclose(theirs.softmax(dim=-1), logits.softmax(dim=-1), atol=1e-5)


@pytest.mark.parametrize(
    "name, shape", [("ln_final.weight", (3,)), ("visual.conv1.weight", (64, 3, 0, 0))]
)
def test_tensors_that_contradict_one_another_are_refused(tmp_path, name, shape):
    torch.save(toy_state_dict() | {name: torch.ones(shape)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="holds no CLIP in OpenAI's layout, its"):
        load_clip(f"file:{tmp_path}/a.pt")


@pytest.mark.parametrize("tower", ["visual.transformer", "transformer"])
def test_weights_that_are_no_numbers_are_not_taken_for_another_kind_of_tower(tmp_path, tower):
    state = toy_state_dict()
    state[f"{tower}.resblocks.0.mlp.c_fc.bias"][3] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=rf"hold NaN or infinite values .*'{tower}\.resblocks\.0"):
        load_clip(f"file:{tmp_path / 'nan.pt'}")


# -- statistics -----------------------------------------------------------------------------------

HALF = ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("arch", "tag", "mean", "interpolation"),
    [
        ("ViT-B-16", "laion2b_s34b_b88k", CLIP_MEAN, "bicubic"),
        ("ViT-L-14", "laion2b_s32b_b82k", HALF[0], "bicubic"),
        ("ViT-B-16-SigLIP", None, HALF[0], "bicubic"),
        ("EVA02-B-16", None, CLIP_MEAN, "bicubic"),
        ("PE-Core-B-16", None, HALF[0], "bilinear"),
        ("MobileCLIP-S1", None, (0.0,) * 3, "bilinear"),
        ("ViT-L-14-CLIPA", None, (0.485, 0.456, 0.406), "bilinear"),
        ("ViT-e-14", None, CLIP_MEAN, "bicubic"),  # no weights known
    ],
)
def test_each_model_has_its_own_statistics(arch, tag, mean, interpolation):
    found = named.statistics(arch, tag)
    assert found["mean"] == mean and found["interpolation"] == interpolation


def test_where_weights_differ_the_file_must_say_whose_it_is():
    with pytest.warns(UserWarning, match="laion2b_s32b_b82k.*add '&tag=laion2b_s32b_b82k'"):
        assert named.statistics("ViT-L-14")["mean"] == CLIP_MEAN
    with pytest.raises(UserError, match="no weights 'laion2b' for ViT-L-14. Did you mean"):
        named.statistics("ViT-L-14", "laion2b")


def register(monkeypatch, folder, *tags):
    """Make tags with odd statistics known for the small ViT-B-16 and return its name."""
    name = shrink(monkeypatch, folder, "ViT-B-16")
    other = {"std": (0.25,) * 3, "interpolation": "bilinear"}
    entries = {tag: {"mean": (0.1 * i,) * 3, **other} for i, tag in enumerate(tags, 1)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, entries)
    return name


def test_a_file_takes_the_statistics_of_its_kind(monkeypatch, tmp_path):
    name = register(monkeypatch, tmp_path, "one")
    clip = load_clip(f"open_clip:{name}/random")
    assert clip.mean.flatten().tolist() == pytest.approx([0.1] * 3)
    assert clip.interpolation == "bilinear"
    torch.save(clip.model.state_dict(), tmp_path / "w.pt")
    assert load_clip(f"file:{tmp_path / 'w.pt'}?arch={name}").sha256 == clip.sha256
    register(monkeypatch, tmp_path, "one", "two")
    other = load_clip(f"file:{tmp_path / 'w.pt'}?arch={name}&tag=two")
    assert other.mean.flatten().tolist() == pytest.approx([0.2] * 3)
    assert other.sha256 != clip.sha256  # the same values see other images


# -- names ----------------------------------------------------------------------------------------


def test_untrained_weights_are_always_the_same_and_warned_of(monkeypatch, tmp_path):
    name = shrink(monkeypatch, tmp_path, "ViT-B-16")
    with pytest.warns(UserWarning, match="untrained weights.*not for results"):
        first = load_clip(f"open_clip:{name}/random")
        torch.rand(3)
        again = load_clip(f"open_clip:{name}/random")
    assert first.sha256 == again.sha256
    with pytest.raises(UserError, match="no weights for Small-ViT-B-16.*'random' for untrained"):
        load_clip(f"open_clip:{name}/laion")
    sentence = "'tokeniser' in 'open_clip:.* is unknown; open_clip:ARCH/TAG may"
    with pytest.raises(UserError, match=sentence):
        load_clip(f"open_clip:{name}/random?tokeniser=x")


def test_weights_made_with_another_activation_name_their_architecture():
    """open_clip only warns; the features would be wrong."""
    with pytest.raises(UserError, match="QuickGELU.*open_clip:ViT-B-32-quickgelu/metaclip_400m"):
        named.check_open_clip("ViT-B-32/metaclip_400m")
    for name in ("ViT-B-32-quickgelu/metaclip_400m", "ViT-B-32/openai", "ViT-B-32/laion2b_e16"):
        assert "/".join(named.check_open_clip(name)) == name
    # open_clip knows it by one architecture only
    assert named.check_open_clip("roberta-ViT-B-32/laion2b_s12b_b32k")


def save_towers(folder, state):
    """Save the whole model and its image tower alone."""
    torch.save(state, folder / "whole.pt")
    tower = {key: value for key, value in state.items() if key.startswith("visual.")}
    torch.save(tower, folder / "tower.pt")
    return folder / "whole.pt", folder / "tower.pt"


@pytest.mark.parametrize("option", ["tag", "tokenizer"])
def test_options_that_change_nothing_are_refused(tmp_path, option):
    whole, tower = save_towers(tmp_path, toy_state_dict())
    sentence = f"'{option}' in 'file:.*' has no effect: it goes with .*'.arch=ARCH'; leave"
    with pytest.raises(UserError, match=sentence):
        load_clip(f"file:{whole}?{option}=here")
    with pytest.raises(UserError, match="no effect: an image tower takes everything else"):
        load_clip(f"file:{tower}?{option}=here&base=file:{whole}")


@pytest.mark.filterwarnings("ignore:images for .* are normalised as by OpenAI")
def test_paths_behind_options_are_taken_as_they_stand(monkeypatch, tmp_path):
    """With '+', '%' and the base's own options."""
    name = register(monkeypatch, tmp_path, "one", "two")
    state = named.tagged_weights(name, "random").state
    home = tmp_path / "a+b%20c"
    home.mkdir()
    whole, tower = save_towers(home, state)
    clip = load_clip(f"file:{tower}?base=file:{whole}?arch={name}&tag=two")
    assert clip.mean.flatten().tolist() == pytest.approx([0.2] * 3)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder as downloaded from an open_clip model's page."""
    name = shrink(monkeypatch, tmp_path, "ViT-B-16")
    config = open_clip.get_model_config(name)
    config["embed_dim"] = 48  # no architecture that open_clip knows
    path = tmp_path / "model"
    path.mkdir()
    preprocess = {"mean": HALF[0], "std": HALF[1], "interpolation": "bilinear"}
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (path / "open_clip_config.json").write_text(json.dumps(content))
    state = lively(open_clip.CLIP(**config).state_dict())
    state["logit_scale"] = state["logit_scale"].view(1)  # as some files have it
    torch.save(state, path / "open_clip_pytorch_model.bin")
    return path, state


def test_a_folder_of_the_hub(folder):
    path, state = folder
    clip = load_clip(f"file:{path}")
    assert clip.embed_dim == 48 and clip.interpolation == "bilinear" and clip.causal
    assert clip.mean.flatten().tolist() == [0.5] * 3
    assert torch.equal(clip.model.visual.proj, state["visual.proj"])
    PromptedCLIP(clip, NAMES, PromptSpec(text=2))


CONFIG = "open_clip_config.json"


def edit(node, **change):
    """Return what changes the config of a folder: keys of ``node``."""

    def damage(path):
        config = json.loads((path / CONFIG).read_text())
        config[node] |= change
        (path / CONFIG).write_text(json.dumps(config))

    return damage


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda p: (p / CONFIG).unlink(), "without open_clip_config.json"),
        (lambda p: (p / CONFIG).write_text("{"), "not valid JSON"),
        (lambda p: (p / CONFIG).write_text("{}"), "no 'model_cfg'; fetch"),
        (lambda p: (p / "open_clip_pytorch_model.bin").unlink(), "holds no weights; put"),
        (lambda p: (p / "open_clip_pytorch_model.bin").write_text("x"), "no checkpoint"),
        (
            edit("preprocess_cfg", mean=[0.5]),
            r"mean in .* is \[0.5\], expected",
        ),
        (edit("preprocess_cfg", std=[0.5, 0, 0.5]), "a list of 3, each entry a number of"),
        (edit("preprocess_cfg", interpolation=3), "interpolation .* is 3, expected text"),
        (edit("model_cfg", embed_dim=None), "open_clip cannot build .* from its config .*; fetch"),
    ],
)
def test_damaged_folders_are_named(folder, damage, sentence):
    path, _ = folder
    damage(path)
    with pytest.raises(UserError, match=sentence):
        load_clip(f"file:{path}")


# -- fine-tuned image towers over their base ------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "prefix"),
    [
        ("ViT-B-16", "module.model.visual."),
        ("EVA02-B-16", ""),
        ("ViT-B-16-SigLIP", "visual."),
        ("convnext_base", "module.visual."),
        ("ViT-B-16", "image_encoder."),
    ],
)
def test_fine_tuned_image_towers_of_any_kind(monkeypatch, tmp_path, arch, prefix):
    base = f"open_clip:{shrink(monkeypatch, tmp_path, arch)}/random"
    plain = load_clip(base)
    tower = lively(plain.model.visual.state_dict())
    torch.save({"state_dict": {prefix + k: v for k, v in tower.items()}}, tmp_path / "fare.pt")
    clip = load_clip(f"file:{tmp_path / 'fare.pt'}?base={base}")
    own = clip.model.visual.state_dict()
    assert all(torch.equal(own[k], v) for k, v in tower.items())
    ids = clip.tokenize(TEXTS)
    assert torch.equal(clip.encode_text(ids), plain.encode_text(ids))
    assert clip.sha256 != plain.sha256


def test_half_an_image_tower_is_refused(tmp_path):
    whole, tower = save_towers(tmp_path, toy_state_dict())
    state = torch.load(tower, weights_only=True)
    torch.save({key: value for key, value in state.items() if "resblocks.1" not in key}, tower)
    with pytest.raises(UserError, match=r"does not fit base .*resblocks\.1.* is missing in it"):
        load_clip(f"file:{tower}?base=file:{whole}")


# -- tokenizers -----------------------------------------------------------------------------------


class Pieces:
    """A tokenizer in the manner of transformers: sentencepiece with the end token for padding."""

    TEXT = "a photo of cat an old dog centered satellite forest"
    WORDS = ["</s>", *(f"\u2581{word}" for word in TEXT.split()), "ish"]
    before: tuple = ()
    known: list = []

    @classmethod
    def from_pretrained(cls, name, **options):
        cls.known.append((name, options))
        if not str(name).startswith("/"):
            raise OSError("We couldn't connect to the hub\nand more")
        return cls()

    def ids(self, text):
        pieces = [f"\u2581{word}" for word in text.replace("ish", " ish").split()]
        return [self.WORDS.index(p) if p in self.WORDS else 11 for p in pieces]

    def __call__(self, texts, add_special_tokens=True, max_length=None, **options):
        if isinstance(texts, str):
            found = self.ids(texts)
            return {"input_ids": [*self.before, *found, 0] if add_special_tokens else found}
        rows = torch.zeros(len(texts), max_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [*self.before, *self.ids(text), 0][:max_length]
            row[: len(ids)] = torch.tensor(ids)
        return type("Encoding", (), {"input_ids": rows})()


class Bracketed(Pieces):
    before = (0,)


class Endless(Pieces):
    """Its rows hold more than words and ends: they cannot be taken apart."""

    def __call__(self, texts, **options):
        found = super().__call__(texts, **options)
        if not isinstance(texts, str):
            found.input_ids[:, ::3] = 3
        return found


@pytest.fixture
def transformers(monkeypatch):
    """Put a package in place of transformers, which is not among the requirements."""

    def place(tokenizer):
        tokenizer.known = []
        package = types.ModuleType("transformers")
        package.AutoTokenizer = tokenizer
        monkeypatch.setitem(sys.modules, "transformers", package)
        return tokenizer

    return place


@pytest.fixture
def slip(monkeypatch, tmp_path):
    """A small SigLIP that asks for the tokenizer of the real one."""
    shrink(monkeypatch, tmp_path, "ViT-B-16-SigLIP")
    path = tmp_path / "Small-ViT-B-16-Slip.json"
    config = json.loads(path.read_text())
    config["text_cfg"] |= {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "vocab_size": 12}
    config["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    path.write_text(json.dumps(config))
    open_clip.factory._rescan_model_configs()
    return "open_clip:Small-ViT-B-16-Slip/random"


@pytest.mark.parametrize("kind", [Pieces, Bracketed])
def test_a_tokenizer_from_a_folder_serves_learned_prompts(slip, transformers, tmp_path, kind):
    transformers(kind)
    clip = load_clip(f"{slip}?tokenizer={tmp_path}")
    assert kind.known == [(str(tmp_path), {"cache_dir": None, "trust_remote_code": False})]
    reader = clip.tokenizer
    assert reader.start == list(kind.before) and reader.end == [0] and reader.pad == 0
    rows = clip.tokenize(["a photo of a CAT.", "an old dog"])
    expected = kind()(["a photo of a cat", "an old dog"], max_length=64).input_ids
    assert torch.equal(rows, expected)
    with pytest.raises(UserError, match="takes 6[56] tokens but the text tower reads 64"):
        clip.tokenize(["cat " * 64])
    frame = PromptedCLIP(clip, ["cat", "old_dog"], PromptSpec(text=2)).frame
    assert frame.fixed.shape[:2] == (2, 64)  # it looks ahead: the padding is part of the text
    start = len(kind.before)
    filled = clip.embed_tokens(rows[1:])[0, start + 1 : start + 3]  # old dog
    assert torch.equal(frame.fixed[1, start + 2 : start + 4], filled)
    model = PromptedCLIP(clip, ["cat", "old_dog"], PromptSpec(text=2, text_init="a photo"))
    assert torch.equal(model.text_prompts[0], clip.embed_tokens(torch.tensor([[1, 2]]))[0])
    assert torch.isfinite(model.text_features()).all()
    for position in ("middle", "front"):
        PromptedCLIP(clip, ["cat"], PromptSpec(text=2, position=position)).text_features()


def test_a_tokenizer_that_cannot_be_taken_apart_serves_whole_texts(slip, transformers, tmp_path):
    transformers(Endless)
    clip = load_clip(f"{slip}?tokenizer={tmp_path}")
    assert text_features(clip, ["a cat", "a dog"]).shape == (2, 64)
    with pytest.raises(UserError, match="takes no learned prompts"):
        PromptedCLIP(clip, ["cat"], PromptSpec(text=2))


def test_a_tokenizer_nowhere_to_be_had_is_one_sentence(slip, transformers, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="'pip install transformers sentencepiece'"):
        load_clip(slip)
    transformers(Pieces)
    with pytest.raises(UserError, match=r"hub \(We couldn't connect to the hub\).*\?tokenizer="):
        load_clip(slip)
    with pytest.raises(UserError, match="nowhere' .no such folder"):
        load_clip(f"{slip}?tokenizer={tmp_path}/nowhere")


# -- configs --------------------------------------------------------------------------------------

CONFIGS = sorted((REPO / "configs" / "trainers").glob("*/*.yaml"))


def test_configs_name_known_backbones_and_their_resolution():
    found = {path.parent.name: set() for path in CONFIGS}
    for path in CONFIGS:
        found[path.parent.name].add(path.stem)
        config = yaml.safe_load(path.read_text())
        name, size = config["MODEL"]["BACKBONE"]["NAME"], config["INPUT"]["SIZE"]
        if name.startswith("file:"):
            file, _, name = name[len("file:") :].partition("?base=")
            assert f"at {file}.\n" in path.read_text().split("DATALOADER")[0], path
        assert name in {*OPENAI, "tiny", "tiny-robust"}, path
        side = 64 if name.startswith("tiny") else 336 if name.endswith("336px") else 224
        assert size == [side, side] and config["INPUT"]["INTERPOLATION"] == "bicubic", path
    for trainer, names in found.items():
        wanted = {"vit_b16", "vit_b32", "vit_l14", "vit_l14_336"}
        # the others' own work is a robust backbone
        if trainer not in ("TeCoA", "PMGAFT", "FARE", "TGAZSR"):
            wanted |= {"vit_b32_tecoa", "vit_l14_fare"}
        assert wanted <= names, trainer
