"""Switches of speed and a lack of memory change no number; attack steps never wait for a GPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import advprompt
from advprompt.attacks import gradient_attack, objective_for
from advprompt.records import read_record
from advprompt.utils import progress
from benchmarks import jobs
from tests.conftest import weights

MEMORY = torch.cuda.OutOfMemoryError
SWITCHES = ("TRAINER__ADVERSARIAL__CUDA_GRAPH", "DATALOADER__TEST__PIN_MEMORY", "OPTIM__FUSED")
SWITCHES += ("MODEL__BACKBONE__COMPILE", "MODEL__BACKBONE__CHANNELS_LAST")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_switches_change_no_number_on_a_cpu(white_box, run, tmp_path, monkeypatch, optimizer):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda work: asked.append(work) or work)
    found = []
    for name, switches in {"off": {}, "on": dict.fromkeys(SWITCHES, True)}.items():
        keys = {"out": name, "OPTIM__NAME": optimizer, **switches}
        assert run(white_box("CAPT", **keys))[0] == 0
        found.append(
            (
                weights(tmp_path / name, 1)["state_dict"],
                read_record(tmp_path / name / "record.json"),
            )
        )
    (off, before), (on, after) = found
    assert all(torch.allclose(off[k], on[k], atol=1e-6) for k in off) and asked
    for key in ("clean", "trained"):
        assert before[key] == after[key]


def few(work, most: int, sizes: list):
    """Return ``work`` on a device that has memory for ``most`` images."""

    def run(images):
        sizes.append(len(images))
        if len(images) > most:
            raise MEMORY("CUDA out of memory. Tried to allocate 2 GiB.")
        return work(images)

    return run


def test_a_test_continues_in_halves_where_memory_runs_out(capsys):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)).double()
    images, sizes = torch.rand(20, 3, 8, 8), []
    labels = model(images.double()).argmax(1)
    plain = lambda x: model(x.double()).float()  # noqa: E731
    given = {"threat": "linf4", "batch_size": 19, "settings": {"ATTACK.TEST.STEPS": 3}}
    given["settings"] |= {"TEST.PROBES": 3, "TEST.PICTURE": 0}
    whole = advprompt.evaluate(plain, images, labels, **given)
    assert "memory" not in capsys.readouterr().out
    small = advprompt.evaluate(few(plain, 4, sizes), images, labels, **given)
    said = capsys.readouterr().out
    for size in (9, 4):
        assert said.count(f"memory ran out; from here on {size} images at once\n") == 1
    assert sizes.count(19) == 1 and 0 < whole["attacks"][0]["correct"] < 20
    for key in ("n", "correct", "checks"):
        assert small["attacks"][0][key] == whole["attacks"][0][key]


class Crossings(TorchDispatchMode):
    """Counts the operations on tensors of two devices."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if torch.is_tensor(t) and t.dim()]
        self.count += len({t.device.type for t in tensors}) > 1
        return out


@pytest.mark.parametrize("objective", ["ce", "embedding_kl"])
def test_steps_neither_copy_nor_wait(objective):
    """Tensors without values fail where a GPU would be waited for."""
    model = jobs.deep(jobs.backbone("tiny", "cpu"), 5, 3).to("meta")
    model.clip.to("meta")
    model.text_features()  # copies positions once
    with Crossings() as text:
        texts = model.text_features()
        torch.autograd.grad(texts.sum(), [*model.parameters()], allow_unused=True)
    pixels, labels = torch.rand(4, 3, 64, 64, device="meta"), torch.zeros(4, device="meta").long()
    attack, tower = jobs.threat(7, objective), model.image_features
    forward = (lambda x: model.logits(x, texts)) if objective == "ce" else tower
    loss, seen = objective_for(attack, forward, labels=labels, reference=tower(pixels)), []
    loss.checked = True  # a look at the first logits
    attack = gradient_attack(lambda x: seen.append(1) or loss(x), attack)
    with Crossings() as steps, pytest.raises(NotImplementedError, match="no data"):
        attack._once(pixels, [0, 1, 2, 3], None, False)  # fails at its one look, after the end
    assert (text.count, steps.count, len(seen)) == (0, 1, 7)  # the random start is copied


def test_a_bar_shows_the_step_within_a_batch(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", -1)
    with progress.bar(8, "attack") as bar:
        for _ in progress.steps(3):
            pass
        bar.update(8)
    assert "step 2 of 3" in capsys.readouterr().err
