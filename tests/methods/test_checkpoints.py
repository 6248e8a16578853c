"""Checkpoints of every layout are read, and nothing in them is ever executed."""

import hashlib
import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path

import advprompt  # noqa: F401  its torchvision guard comes before open_clip

# isort: split

import open_clip
import openai_clip_reference as reference
import pytest
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from toy import toy_clip, toy_state_dict

from advprompt.backbone import load_clip, loading, make_adapter
from advprompt.backbone.archives import read_script_archive
from advprompt.backbone.weights_files import read_checkpoint
from advprompt.utils.errors import UserError
from tests.world import Payload

SIZES = {"layers": 1, "text_layers": 1}


@pytest.fixture(scope="module")
def state():
    return toy_state_dict(**SIZES)


@pytest.fixture(scope="module")
def archive(tmp_path_factory, state):
    """A traced CLIP in half precision with OpenAI's extra buffers, saved as TorchScript."""
    model = reference.build_model(dict(state)).float()
    del model.context_length
    for name, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        model.register_buffer(name, torch.tensor(value))
    inputs = {"encode_image": torch.rand(1, 3, 32, 32), "encode_text": torch.zeros(1, 77).long()}
    path = tmp_path_factory.mktemp("archive") / "toy.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace_module(model.eval(), inputs), str(path))
    return path, model.state_dict()


def visual(state):
    return {k[len("visual.") :]: v for k, v in state.items() if k.startswith("visual.")}


def assert_equal(found, expected):
    assert set(found) == set(expected)
    assert all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {}}},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
        lambda s: {
            k if k.startswith("visual.") or k == "logit_scale" else f"text.{k}": v
            for k, v in s.items()
        },
    ],
    ids=["plain", "nested", "parallel", "compiled", "open_clip custom text"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts(tmp_path, state, wrap, legacy):
    path = tmp_path / "weights.pt"
    torch.save(wrap(state), path, _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(path)
    assert_equal(found.state, state)
    assert found.openai_layout and not found.image_tower_only


def test_safetensors(tmp_path, state):
    save_file(state, tmp_path / "weights.safetensors")
    assert_equal(read_checkpoint(tmp_path / "weights.safetensors").state, state)


def test_script_archive_is_read_without_running_it(archive, monkeypatch):
    path, expected = archive

    def never(*args, **kwargs):
        raise AssertionError("the archive was executed")

    monkeypatch.setattr(torch.jit, "load", never)
    monkeypatch.setattr(torch, "load", never)
    found = read_checkpoint(path).state
    assert_equal(found, expected)
    adapter = load_clip(f"file:{path}")
    state = {k: v for k, v in expected.items() if v.is_floating_point()}
    assert adapter.sha256 == make_adapter(state, name="x").sha256


def test_half_precision_archive(tmp_path, state):
    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(3, 2).half()
            self.shared = torch.nn.Parameter(torch.arange(12.0).view(3, 4).t()[1:])
            self.flag, self.sizes, self.empty = True, [1, 2], torch.nn.Parameter(torch.zeros(0, 3))
            self.visual = torch.nn.Module()
            self.visual.proj = torch.nn.Parameter(torch.rand(2, 2).bfloat16())

        def forward(self, x):
            return self.inner(x)

    model = Holder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(model), str(tmp_path / "half.pt"))
    with zipfile.ZipFile(tmp_path / "half.pt") as opened:
        assert_equal(read_script_archive(opened), model.state_dict())


def rewrite(source, target, replace):
    """Copy a zip archive; ``replace`` maps the end of a name to other bytes, or None to drop."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            ending = next((e for e in replace if name.endswith(e)), None)
            if ending is None:
                new.writestr(name, old.read(name))
            elif replace[ending] is not None:
                new.writestr(name, replace[ending])


def hostile(kind, path, payload, archive):
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": payload}))
    elif kind == "torch.save":
        torch.save({"state_dict": payload}, path)
    elif kind == "torch.save legacy":
        torch.save({"state_dict": payload}, path, _use_new_zipfile_serialization=False)
    elif kind == "archive":
        rewrite(archive, path, {"/data.pkl": pickle.dumps(payload)})
    elif kind == "archive by name":
        rewrite(archive, path, {"/data.pkl": b"cbuiltins\neval\n(V1+1\ntR."})
    elif kind == "archive constants":  # constants are not even opened
        rewrite(archive, path, {"/data.pkl": b"ctorch\nload\n.", "/constants.pkl": b"x"})


@pytest.mark.parametrize(
    "kind",
    [
        "pickle",
        "torch.save",
        "torch.save legacy",
        "archive",
        "archive by name",
        "archive constants",
    ],
)
def test_code_is_refused_and_does_not_run(tmp_path, archive, kind):
    path, witness = tmp_path / "hostile.pt", tmp_path / "executed"
    value = Payload(witness)
    hostile(kind, path, value, archive[0])
    with pytest.raises(UserError, match="hostile.pt' holds Python objects that could run code"):
        load_clip(f"file:{path}")
    assert not witness.exists()
    if kind == "pickle":  # the payload is live: an ordinary unpickler runs it
        pickle.loads(path.read_bytes())
        assert witness.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "archive"])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_truncated_files_are_named(tmp_path, state, archive, kind, share):
    path = tmp_path / f"cut.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "archive":
        path.write_bytes(archive[0].read_bytes())
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"cut\.\w+' is truncated or no checkpoint"):
        load_clip(f"file:{path}")


@pytest.mark.parametrize("ending", ["/data/0", "/data.pkl"])
@pytest.mark.parametrize("content", [None, b"", b"\x80\x02]q\x00."])
def test_damaged_archives_are_named(tmp_path, archive, ending, content):
    path = tmp_path / "damaged.pt"
    rewrite(archive[0], path, {ending: content})
    with pytest.raises(UserError, match="damaged.pt'"):
        load_clip(f"file:{path}")


@pytest.mark.parametrize("kind", ["zip", "archive"])
def test_changed_bytes_never_surface_as_another_error(tmp_path, archive, kind):
    source, path = tmp_path / "source.pt", tmp_path / "changed.pt"
    torch.save({"visual.proj": torch.ones(2), "other": torch.ones(2)}, source)
    source = archive[0] if kind == "archive" else source
    with zipfile.ZipFile(source) as opened:
        name = next(n for n in opened.namelist() if n.endswith("/data.pkl"))
        content = opened.read(name)
    random = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(40):
        changed = bytearray(content)
        for at in torch.randint(min(len(content), 3000), (2,), generator=random).tolist():
            changed[at] = int(torch.randint(256, (1,), generator=random))
        small = {"/data.pkl": bytes(changed), "/data/0": bytes(1 << 12)}
        rewrite(source, path, small)
        try:
            read_checkpoint(path)
        except UserError as error:
            refused += "changed.pt'" in str(error)
    assert refused > 20


@pytest.mark.parametrize(
    "content",
    [b"hello, this is no checkpoint", b"\x89PNG\r\n\x1a\n" + bytes(64), bytes(100), b"{}"],
)
def test_foreign_files_are_named(tmp_path, content):
    path = tmp_path / "foreign.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="foreign.pt' is truncated or no checkpoint"):
        load_clip(f"file:{path}")


@pytest.mark.parametrize("value", [{"a.weight": torch.zeros(2)}, {}, [1, 2], torch.zeros(2)])
def test_checkpoints_of_something_else_are_named(tmp_path, value):
    torch.save(value, tmp_path / "other.pt")
    with pytest.raises(UserError, match="other.pt' holds no CLIP weights"):
        load_clip(f"file:{tmp_path / 'other.pt'}")


def test_missing_file_and_unknown_option(tmp_path):
    with pytest.raises(UserError, match="nowhere.pt' does not exist"):
        load_clip(f"file:{tmp_path / 'nowhere.pt'}")
    with pytest.raises(
        UserError, match="is a folder, not a checkpoint file; check the path after 'file:'"
    ):
        load_clip(f"file:{tmp_path}")
    with pytest.raises(UserError, match="'bass' in .* is unknown"):
        load_clip(f"file:{tmp_path}/a.pt?bass=RN50")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("ln_final.bias"), "lacks tensor 'ln_final.bias'"),
        (lambda s: s.update({"adapter.weight": torch.ones(1)}), "unknown tensor 'adapter.weight'"),
        (lambda s: s.update({"ln_final.bias": torch.ones(1)}), "other shape|another shape"),
        (lambda s: s.pop("token_embedding.weight"), "no CLIP of OpenAI's layout"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, state, change, sentence):
    state = dict(state)
    change(state)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=f"odd.pt'.*({sentence})"):
        load_clip(f"file:{tmp_path / 'odd.pt'}")


def image_tower_file(kind, path, tower):
    if kind == "TeCoA":  # its 'state_dict' is the image prompter, not the model
        noise = {"pad_up": torch.zeros(3), "pad_down": torch.zeros(3)}
        best = {"best_acc1": torch.tensor(50.0), "optimizer": {"state": {}, "param_groups": []}}
        checkpoint = {"epoch": 9, "state_dict": noise, "vision_encoder_state_dict": tower, **best}
    elif kind == "parallel":
        checkpoint = {"state_dict": {f"module.visual.{k}": v for k, v in tower.items()}}
    else:
        checkpoint = tower  # FARE
    torch.save(checkpoint, path)


@pytest.mark.parametrize("kind", ["TeCoA", "FARE", "parallel"])
def test_image_towers_go_over_their_base(tmp_path, state, kind):
    torch.save(state, tmp_path / "base.pt")
    other = toy_state_dict(**SIZES, seed=7)
    path = tmp_path / "robust.pth.tar"
    image_tower_file(kind, path, visual(other))
    with pytest.raises(UserError, match=r"robust.pth.tar' holds an image tower only; .*\?base=ViT"):
        load_clip(f"file:{path}")

    clip = load_clip(f"file:{path}?base=file:{tmp_path / 'base.pt'}")
    ids, x = clip.tokenize(["a cat", "a dog"]), torch.rand(2, 3, 32, 32)
    assert torch.equal(clip.encode_text(ids), make_adapter(state, name="b").encode_text(ids))
    assert torch.equal(clip.encode_image(x), make_adapter(other, name="o").encode_image(x))


def test_image_tower_of_another_size(tmp_path, state):
    torch.save(state, tmp_path / "base.pt")
    path = tmp_path / "robust.pt"
    torch.save(visual(toy_state_dict(vision_width=128, **SIZES)), path)
    with pytest.raises(UserError, match="robust.pt' does not fit base 'file:.*base.pt'"):
        load_clip(f"file:{path}?base=file:{tmp_path / 'base.pt'}")


def test_image_tower_of_a_resnet_is_recognised(tmp_path):
    vision = {"layers": (1, 1, 1, 1), "width": 16, "image_size": 32}
    text = {"width": 64, "heads": 1, "layers": 1, "vocab_size": 8}
    state = open_clip.CLIP(32, vision, text).state_dict()
    torch.save(visual(state), tmp_path / "rn.pt")
    found = read_checkpoint(tmp_path / "rn.pt")
    assert found.image_tower_only
    assert set(found.state) == {k for k in state if k.startswith("visual.")}


def test_named_architecture(tmp_path, monkeypatch):
    """``?arch=`` builds open_clip's own architecture: here without QuickGELU, own statistics."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"layers": 1, "width": 64, "patch_size": 8, "image_size": 32},
        "text_cfg": {"layers": 1, "width": 64, "heads": 1},
    }
    (tmp_path / "Toy-B-8.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    state = toy_state_dict(**SIZES)
    torch.save(state, tmp_path / "gelu.pt")
    clip = load_clip(f"file:{tmp_path / 'gelu.pt'}?arch=Toy-B-8")
    quick = load_clip(f"file:{tmp_path / 'gelu.pt'}")
    x = torch.rand(2, 3, 32, 32)
    normalised = (x - clip.mean) / clip.std
    torch.testing.assert_close(clip.encode_image(x), clip.model.encode_image(normalised))
    assert not torch.allclose(clip.encode_image(x), quick.encode_image(x), atol=1e-3)
    assert clip.sha256 != quick.sha256
    assert torch.equal(clip.tokenize(["a cat"]), quick.tokenize(["a cat"]))
    with pytest.raises(UserError, match="no architecture 'Toy-B-9'. Did you mean Toy-B-8"):
        load_clip(f"file:{tmp_path / 'gelu.pt'}?arch=Toy-B-9")
    with pytest.raises(UserError, match="only open_clip can build"):
        load_clip(f"file:{tmp_path / 'gelu.pt'}?arch=Toy-B-8", provider="clip")


def test_custom_text_layout_needs_its_architecture(tmp_path):
    vision = {"layers": 1, "width": 64, "patch_size": 8, "image_size": 16}
    text = {"layers": 1, "width": 64, "heads": 1, "proj_bias": True, "no_causal_mask": True}
    model = CustomTextCLIP(32, vision, text)
    torch.save(model.state_dict(), tmp_path / "siglip.pt")
    with pytest.raises(UserError, match=r"siglip.pt' is no CLIP of OpenAI's layout.*\?arch="):
        load_clip(f"file:{tmp_path / 'siglip.pt'}")


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ViT-B/15", "'ViT-B/15' is unknown. Did you mean ViT-B/16"),
        ("vit-b/32", "Did you mean ViT-B/32"),
        ("tinyy", "Did you mean tiny"),
        ("resnet", "Choose one of: RN101"),
        ("file:", "'file:' is unknown"),
        ("open_clip:ViT-B-17/openai", "no architecture 'ViT-B-17'. Did you mean"),
        ("open_clip:ViT-B-16/laion2b_s34b_b88", "Did you mean laion2b_s34b_b88k"),
    ],
)
def test_unknown_names_offer_near_ones(name, sentence):
    with pytest.raises(UserError, match=sentence):
        load_clip(name)


@pytest.mark.parametrize("name", ["ViT-B/32", "open_clip:ViT-B-32/openai"])
def test_weights_nowhere_to_be_had(tmp_path, monkeypatch, name):
    monkeypatch.setattr(open_clip.pretrained.urllib.request, "urlopen", _no_network)
    with pytest.raises(UserError, match="ViT-B-32.pt' nor to be had over the network; put") as info:
        load_clip(name, weights_dir=tmp_path / "cache")
    assert str(tmp_path / "cache" / "ViT-B-32.pt") in str(info.value)
    assert list((tmp_path / "cache").iterdir()) == []  # nothing half-written


def test_open_clip_weights_by_tag(tmp_path, monkeypatch):
    """A tag is loaded as its architecture, with its own mean and std."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"layers": 1, "width": 64, "patch_size": 8, "image_size": 32},
        "text_cfg": {"layers": 1, "width": 64, "heads": 1},
    }
    (tmp_path / "Toy-B-16.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    state = toy_state_dict(**SIZES)
    torch.save(state, tmp_path / "toy.pt")
    tag = {"file": str(tmp_path / "toy.pt"), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Toy-B-16", {"drawn": tag})
    clip = load_clip("open_clip:Toy-B-16/drawn")
    assert torch.equal(clip.mean.flatten(), torch.full((3,), 0.5))
    assert torch.equal(clip.model.visual.proj, state["visual.proj"])
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(clip.encode_image(x), clip.model.encode_image((x - 0.5) / 0.25))
    torch.save(visual(toy_state_dict(**SIZES, seed=2)), tmp_path / "fare.pt")
    robust = load_clip(f"file:{tmp_path / 'fare.pt'}?base=open_clip:Toy-B-16/drawn")
    assert not torch.equal(robust.encode_image(x), clip.encode_image(x))
    assert torch.equal(robust.mean, clip.mean) and robust.sha256 != clip.sha256

    tag["file"] = str(tmp_path / "gone.pt")
    with pytest.raises(UserError, match="open_clip:Toy-B-16/drawn can be neither found nor"):
        load_clip("open_clip:Toy-B-16/drawn")


def _no_network(*args, **kwargs):
    raise OSError("no network")


def test_weights_in_the_cache_are_found_and_checked(tmp_path, archive, monkeypatch):
    data = archive[0].read_bytes()
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    (tmp_path / ".cache" / "clip" / "ViT-B-32.pt").write_bytes(data)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(loading, "_download", _no_network)
    with pytest.raises(UserError, match="ViT-B-32.pt' is not OpenAI's .* SHA-256 differs"):
        load_clip("ViT-B/32")
    monkeypatch.setitem(loading.OPENAI, "ViT-B/32", hashlib.sha256(data).hexdigest())
    assert load_clip("ViT-B/32").name == "ViT-B/32"


def test_a_missing_file_is_downloaded(tmp_path, monkeypatch):
    def fetch(url, path):
        assert url == loading.openai_url("ViT-L/14@336px")
        Path(path).write_bytes(b"not OpenAI's")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(UserError, match="ViT-L-14-336px.pt' is not OpenAI's"):
        loading.load_clip("ViT-L/14@336px", weights_dir=tmp_path / "new")


@pytest.mark.parametrize("name", loading.OPENAI)
def test_digests_are_those_of_open_clip(name):
    arch = name.replace("/", "-").replace("@336px", "-336")
    url = open_clip.pretrained.get_pretrained_url(arch, "openai")
    assert url == loading.openai_url(name)


def test_toy_and_file_agree(tmp_path):
    buffer = io.BytesIO()
    torch.save(toy_state_dict(), buffer)
    (tmp_path / "toy.pt").write_bytes(buffer.getvalue())
    assert load_clip(f"file:{tmp_path / 'toy.pt'}").sha256 == toy_clip().sha256
