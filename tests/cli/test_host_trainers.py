"""``advprompt test`` on a fork's own trainers: built, loaded and asked by the fork's own code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY, TrainerX
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Normalize, ToTensor

import advprompt
from advprompt.cli import test as command
from advprompt.engine import hosts
from advprompt.evaluation.host import HostVictim, ask, own_answers
from advprompt.evaluation.memo import Memo, _Call, _same

TOY = Path(__file__).parents[1] / "hosts" / "dassl_fork" / "coop"
SMALL = Path(__file__).parents[1] / "hosts" / "small_trainer.py"
SIZE = 16
WORDS = (
    "DATASET.NAME Shapes INPUT.SIZE (16,16) DATASET.NUM_SHOTS 2 DATALOADER.NUM_WORKERS 0 "
    "OPTIM.MAX_EPOCH 1 USE_CUDA False"
).split()
LOADED = "--model-dir Small --load-epoch 1"
PGD = "[{'EPS': '8', 'ALPHA': '2', 'STEPS': 3, 'RESTARTS': 1}]"


def run(fork: Path, *words, module="advprompt"):
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, *(["-m", module] if module else []), *map(str, words)]
    return subprocess.run(words, cwd=fork, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A fork with three trainers of its own, each trained for an epoch, and a commit."""
    folder = tmp_path_factory.mktemp("fork") / "fork"
    shutil.copytree(TOY, folder)
    shutil.copy(SMALL, folder / "trainers" / "small.py")
    train = folder / "train.py"
    text = train.read_text().replace("import trainers.coop\n", "import trainers.small\n")
    text = text.replace(
        "    extend_cfg(cfg)\n", "    extend_cfg(cfg)\n    advprompt.extend_cfg(cfg)\n"
    )
    # as some do, it catches everything, but for one trainer
    text, main, end = text.rpartition("    main(parser.parse_args())")
    text += "    args = parser.parse_args()\n    try:\n        main(args)\n    except:\n"
    text += "        if args.trainer == 'Small':\n            raise\n"
    text += "        raise Exception('did not run')" + end
    train.write_text("import advprompt, advprompt.datasets\n" + text)
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / ".git" / "packed-refs").write_text(f"# pack-refs\n{'a' * 40} refs/heads/main\n")
    for trainer in ("Small", "SmallTest"):
        done = run(
            folder, "train.py", "--trainer", trainer, "--output-dir", trainer, *WORDS, module=""
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def words_of(trainer: str, *more) -> list:
    given = ["test", "--trainer", trainer, "--model-dir", trainer, "--load-epoch", 1, *more]
    return [*given, *WORDS, "ATTACK.TEST.LIST", PGD, "TEST.SUBSET", 12, "TEST.PROBES", 2]


@pytest.mark.parametrize("trainer", ["Small", "SmallTest"])
def test_a_forks_own_trainer_is_attacked_by_one_command(fork, trainer):
    done = run(fork, *words_of(trainer))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "predictions equal on 12 of 12 images" in done.stdout
    file = next((fork / trainer / "tests").glob("*/record.json"))
    record = json.loads(file.read_text())
    assert record["trainer"] == trainer and record["clean"]["n"] == 12
    assert record["attacks"][0]["correct"] <= record["clean"]["correct"]
    assert record["shots"] is None and record["epochs"] is None
    assert record["config"]["HOST.COMMIT"] == "a" * 40
    assert record["config"]["HOST.TRAINER"] == f"trainers.small.{trainer}"
    assert "HOST.CHECKPOINTS.net/model.pth.tar-1" in record["config"]


MISTAKES = (
    ("--trainer Smal", "Did you mean Small or"),
    ("--trainer Small --model-dir nowhere", "'nowhere' does not exist"),
    ("--trainer Small", "--model-dir is missing"),
    ("--trainer Small --model-dir Small DATASET.NAME x", "stopped before"),
    ("--trainer Small --model-dir Small --no-such 1", "unrecognized arguments: --no-such"),
    ("--trainer Small --model-dir Small ATTACK.TEST.LIST", "stands alone"),
    ("Needy", "needs the package 'no_such'"),
    ("Wide", "mismatch"),
    ("Other", "none of"),
    ("Probabilities", "returns probabilities"),
    ("Features", "let its model_inference, or its own test, end with them"),
    ("Several", "let its model_inference, or its own test, give the logits alone"),
    ("Halves", "computes in half precision (logits)"),
    ("Normalised", "gives pixels from -"),
    ("Mute", "Mute does not answer its own test images (AttributeError"),
)


def test_a_mistake_is_one_sentence(fork):
    """All in one process, which takes most of the time to start."""
    loaded = ["--model-dir", "Small", "--load-epoch", "1", *WORDS]
    calls = [
        ["test", *(words.split() if " " in words else ["--trainer", words, *loaded])]
        for words, _ in MISTAKES
    ]
    program = "import sys\nfrom advprompt.cli.main import dispatch, run_tool\ncodes = []\n"
    program += f"for words in {calls!r}:\n    codes.append(run_tool(dispatch, words))\n"
    program += "    print('=====', file=sys.stderr)\nprint(codes)"
    done = run(fork, "-c", program, module="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str([2] * len(MISTAKES)), done.stderr
    for (words, said), text in zip(MISTAKES, done.stderr.split("====="), strict=False):
        assert said in text and "Traceback" not in text, (words, text)


def test_a_dry_run_loads_nothing(fork):
    done = run(fork, *words_of("Small", "--dry-run", "--output-dir", "dry"))
    assert done.returncode == 0 and "dry" in done.stdout and not (fork / "dry").exists()


def test_an_attack_on_a_foreign_trainer_is_never_ignored_silently(fork):
    words = ["train.py", "--trainer", "Small", "--eval-only", "--model-dir", "Small"]
    words += ["--load-epoch", "1", "--output-dir", "again", *WORDS]
    done = run(fork, *words, "ATTACK.THREAT", "linf4", module="")
    assert "ignores ATTACK.THREAT; 'advprompt test --trainer Small" in done.stdout, done.stderr
    assert "ignores" not in run(fork, *words, module="").stdout
    done = run(fork, *words, "ATTACK.THREAT", "linf44", module="")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "linf4" in done.stderr


def test_a_copied_fork_tests_its_own_trainers_too(fork, tmp_path):
    copy = shutil.copytree(fork, tmp_path / "copy", ignore=shutil.ignore_patterns("tests"))
    text = (copy / "train.py").read_text().replace("    advprompt.extend_cfg(cfg)\n", "")
    (copy / "train.py").write_text(text.replace("import advprompt, advprompt.datasets\n", ""))
    done = run(tmp_path, "dropin", copy, "--apply")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (copy / "train.py").read_text()
    ours = "import datasets.oxford_pets, trainers.advprompt.datasets"
    (copy / "train.py").write_text(text.replace("import datasets.oxford_pets", ours))
    done = run(copy, *words_of("Small"), module="trainers.advprompt")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "predictions equal on 12 of 12 images" in done.stdout


# --- the victim -----------------------------------------------------------------------------------


class TextTower(nn.Module):
    """Like a host's text encoder: expensive, and the same for every image."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(6, 6), 0

    def forward(self, prompts, deeper=()):
        self.calls += 1
        return self.layer(prompts) + sum(deeper)


class HostModel(nn.Module):
    def __init__(self, kind=""):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.dtype = kind, torch.float32
        self.image_encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 6))
        self.text_encoder, self.ctx = TextTower(), nn.Parameter(torch.randn(4, 6))
        self.cast = type("Cast", (nn.Module,), {"forward": lambda self, x: x.half()})()
        if kind in ("fp16", "half inside"):
            self.dtype = torch.float16
            self.half()

    def forward(self, image):
        features = self.image_encoder(image.type(self.dtype))
        prompts = self.ctx + features.mean(0) if self.kind == "conditioned" else self.ctx + 0
        if self.kind == "half inside":
            features = features.half()
        features = self.cast(features).float() if self.kind == "half between" else features
        if self.kind == "detached":
            features = features.detach()
        text = self.text_encoder(prompts.to(self.text_encoder.layer.weight.dtype), (prompts,))
        logits = features @ text.to(features.dtype).t()
        several = {"tuple": (logits, features), "dict": {"x": features, "y": logits}}
        several |= {"features": features, "twice": (logits, logits)}
        return several.get(self.kind, logits)


INPUT = get_cfg_default().INPUT


class Data(list):
    transform = Compose([ToTensor(), Normalize(INPUT.PIXEL_MEAN, INPUT.PIXEL_STD)])


LOADER = DataLoader(Data([{"img": torch.zeros(3, SIZE, SIZE), "text": "a", "label": 0}]))


class Bare(TrainerX):
    """Of Dassl's form, without data loaders."""

    test_loader = LOADER

    def __init__(self, kind=""):
        self._models, self._optims, self.kind = {}, {}, kind
        self.device, self.model = torch.device("cpu"), HostModel(kind)
        self._models["model"] = self.model
        self.cfg = get_cfg_default()
        self.dm = type("dm", (), {"dataset": type("set", (), {"classnames": list("abcd")})})

    def model_inference(self, images):
        if self.kind == "no_grad":
            with torch.no_grad():
                return self.model(images)
        return self.model(images).half() if self.kind == "half at last" else self.model(images)


PIXELS = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def gradient(logits_of, pixels=PIXELS):
    pixels = pixels.clone().requires_grad_()
    logits = logits_of(pixels)
    return logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), pixels)[0]


@pytest.mark.parametrize(
    "kind", ["", "tuple", "dict", "no_grad", "detached", "fp16", "conditioned"]
)
def test_logits_and_gradients_are_those_of_the_host(kind):
    """Also of half-precision weights, made float32; nothing the host says hides a gradient."""
    trainer = Bare(kind)
    plain = HostModel("conditioned" if kind == "conditioned" else "")
    plain.load_state_dict(
        trainer.model.float().state_dict() if kind == "fp16" else trainer.model.state_dict()
    )
    victim = HostVictim(trainer)
    victim.check(PIXELS)
    mean = torch.tensor(trainer.cfg.INPUT.PIXEL_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(trainer.cfg.INPUT.PIXEL_STD).view(1, 3, 1, 1)
    for found, right in zip(
        gradient(victim.logits), gradient(lambda x: plain((x - mean) / std)), strict=True
    ):
        assert torch.equal(found, right)
    assert not any(p.requires_grad for p in trainer.model.parameters())


@pytest.mark.parametrize(
    "kind, said",
    [
        ("features", "expected logits"),
        ("twice", "tuple"),
        ("half inside", r"precision \(HostModel\)"),
        ("half between", r"precision \(Cast\)"),
        ("half at last", r"precision \(logits\)"),
    ],
)
def test_what_gives_no_logits_is_refused(kind, said):
    with pytest.raises(advprompt.UserError, match=said):
        HostVictim(Bare(kind)).check(PIXELS)


def test_the_text_tower_runs_once_and_again_after_a_change():
    victim = HostVictim(Bare())
    victim.check(PIXELS)
    tower = victim.trainer.model.text_encoder
    before, calls = victim.logits(PIXELS), tower.calls
    for _ in range(5):
        gradient(victim.logits)
    assert tower.calls == calls
    with torch.no_grad():
        tower.layer.weight.mul_(2)
    assert not torch.equal(victim.logits(PIXELS), before) and tower.calls == calls + 1
    with torch.no_grad():
        victim.trainer.model.ctx.mul_(2)
    changed = victim.logits(PIXELS)
    victim.memo.stop()
    assert torch.equal(victim.logits(PIXELS), changed) and "forward" not in vars(tower)


def test_what_depends_on_the_image_is_not_memoised():
    victim = HostVictim(Bare("conditioned"))
    victim.check(PIXELS)
    assert victim.trainer.model.text_encoder not in [c.module for c in victim.memo.calls]


def test_a_module_with_hidden_state_is_not_memoised():
    """The comparison of logits before and after finds what no input shows."""

    class Hidden(HostModel):
        def forward(self, image):
            self.text_encoder.layer.seen = image.mean()
            return super().forward(image)

    class Peeking(nn.Linear):
        def forward(self, x):
            return super().forward(x) + self.seen.detach()

    model = Hidden()
    model.text_encoder.layer = Peeking(6, 6).requires_grad_(False)
    parts = nn.ModuleList([model.requires_grad_(False)])
    memo = Memo(parts)
    memo.start(model, PIXELS)
    assert not memo.calls


def test_a_host_with_a_test_of_its_own_is_asked_through_it():
    class Own(Bare):
        evaluator = "evaluator"

        def test(self, split=None):
            self.evaluator.reset()
            for batch in self.test_loader:
                with torch.no_grad():
                    self.evaluator.process(self.model(batch["img"]) * 3, batch["label"])

    trainer = Own()
    batch = {"img": PIXELS, "label": torch.zeros(3)}
    assert torch.equal(ask(trainer, batch, own_test=True), trainer.model(PIXELS) * 3)
    assert trainer.test_loader is LOADER and trainer.evaluator == "evaluator"
    victim = HostVictim(trainer)
    victim.check(PIXELS)
    assert gradient(victim.logits)[1].abs().max() > 0


def test_a_host_that_cannot_be_asked_is_named():
    class Silent(Bare):
        test_loader, evaluator = "loader", "evaluator"

        def test(self, split=None):
            return self.evaluator.evaluate()["accuracy"]

    with pytest.raises(advprompt.UserError, match="Silent.test never calls self.evaluator.process"):
        ask(trainer := Silent(), PIXELS, own_test=True)
    assert (trainer.test_loader, trainer.evaluator) == ("loader", "evaluator")
    unasked = type("Unasked", (TrainerX,), {"__init__": lambda self: None, "_models": {}})
    with pytest.raises(advprompt.UserError, match="Unasked has no model_inference"):
        HostVictim(unasked())
    plain = type("Plain", (Bare,), {"model_inference": TrainerX.model_inference})()
    assert HostVictim(plain).logits(PIXELS).shape == (3, 4)  # of its registered model


@pytest.mark.parametrize("own_test", [False, True])
def test_answers_of_a_hosts_own_test_are_those_of_its_logits(own_test):
    seen = []

    class Own(Bare):
        test_loader = evaluator = None

        def parse_batch_test(self, batch):
            return batch["img"] * 2, batch["label"]

        def test(self, split=None):
            for batch in self.test_loader:
                seen.append(batch)
                self.evaluator.process(self.model(batch["img"] * 3), batch["label"])

    if not own_test:
        del Own.test
    trainer = Own("" if own_test else "tuple")
    loader = [
        {"img": PIXELS[:2], "label": torch.tensor([1, 2])},
        {"img": PIXELS, "label": torch.zeros(3)},
    ]
    found = own_answers(trainer, loader)
    plain = HostModel()(torch.cat([PIXELS[:2], PIXELS]) * (3 if own_test else 2))
    assert found == plain.argmax(1).tolist() and not trainer.model.training
    if own_test:
        assert [batch["label"].tolist() for batch in seen] == [[1, 2], [0, 0, 0]]
        assert all(batch is given for batch, given in zip(seen, loader, strict=True))


def test_everything_that_logits_depend_on_is_float32_and_in_the_digest():
    trainer = Bare()
    trainer.loose, trainer.many = torch.ones(2).half(), [torch.ones(2).half(), torch.ones(2), "x"]
    trainer.model.own = torch.ones(2).bfloat16()
    trainer.dtype, trainer.index = torch.bfloat16, torch.arange(2)
    trainer.named = {"a": (torch.ones(2).half(),)}
    victim = HostVictim(trainer)
    kept = [trainer.loose, *trainer.many[:2], trainer.model.own, *trainer.named["a"]]
    assert {value.dtype for value in kept} == {trainer.dtype} == {torch.float32}
    assert trainer.many[2] == "x" and trainer.index.dtype == torch.int64
    digests = [victim.digest()]
    tensors = trainer.loose, trainer.many[1], trainer.model.own, trainer.model.ctx
    tensors += trainer.named["a"]
    for tensor in (*tensors, victim.mean, victim.std):
        with torch.no_grad():
            tensor.add_(1e-3)
        digests.append(victim.digest())
    assert len(set(digests)) == 8
    trainer.test_loader = DataLoader([{"img": PIXELS[0], "label": 0}])  # without Normalize
    assert HostVictim(trainer).mean.abs().max() == 0


def test_results_are_kept_for_four_inputs_and_only_while_nothing_changed():
    tower = TextTower().requires_grad_(False)
    call = _Call(tower)
    inputs = [torch.full((1, 6), float(i)) for i in range(5)]
    results = [tower(x) for x in inputs[:4]]
    for x, result in zip(inputs, results, strict=False):
        assert torch.equal(tower(x.clone()), result)
    assert tower.calls == 4
    tower(inputs[4])  # in place of the first
    assert (tower(inputs[1]) is results[1], tower.calls) == (True, 5)
    tower(inputs[0])
    assert tower.calls == 6
    kept = tower(inputs[0]).mul_(2)  # a host that changes what it was given
    assert not torch.equal(tower(inputs[0]), kept) and tower.calls == 7
    tower(inputs[0], deeper=(inputs[1],)), tower(inputs[0], (inputs[1],))
    assert tower.calls == 9
    inside = inputs[0].clone().requires_grad_()
    for _ in range(2):
        assert tower(inputs[0], (inside,)).requires_grad
    assert tower.calls == 11
    call.undo()
    assert "forward" not in vars(tower)
    tower.forward = own = lambda x: x
    _Call(tower).undo()
    assert tower.forward is own


def test_a_module_is_memoised_only_if_every_call_and_input_is_constant():
    class Mixed(HostModel):
        def __init__(self):
            super().__init__()
            self.shared, self.head = nn.Linear(6, 6), nn.Bilinear(6, 6, 1)

        def forward(self, image):
            features = self.shared(self.image_encoder(image))
            text = self.text_encoder(self.shared(self.ctx))
            return torch.cat([self.head(features, t.expand_as(features)) for t in text], 1)

    model = Mixed().requires_grad_(False)
    memo = Memo(nn.ModuleList([model]))
    memo.start(model, PIXELS)
    assert [call.module for call in memo.calls] == [model.text_encoder]


def test_commits_are_read_without_git(tmp_path):
    assert hosts.commit_of(tmp_path / "x") == hosts.commit_of(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("b" * 40 + "\n")
    assert hosts.commit_of(tmp_path / "code") == "b" * 40


def test_our_own_trainer_goes_the_way_of_eval_only(monkeypatch):
    given = []
    monkeypatch.setattr(command, "train", lambda words: given.append(words) or 0)
    assert command.main(["--trainer", "AdvPT", "--threat", "linf4", "DATASET.NAME", "shapes"]) == 0
    assert given[0][:3] == ["--eval-only", "--trainer", "AdvPT"]
    assert given[0][-2:] == ["DATASET.NAME", "shapes"] and "linf4" in given[0]
    assert "AdvPT" in TRAINER_REGISTRY.registered_names()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.ones(2), torch.ones(2), True),
        (torch.ones(2), torch.ones(2, dtype=torch.double), False),
        (torch.ones(2), torch.zeros(2), False),
        ("a", "a" + "", True),
        (12345, int("12345"), True),
        (1, 1.0, False),
        (1, True, False),
        (2.5, 3.5, False),
        ([1], [1], False),  # a list may change inside
    ],
)
def test_inputs_are_the_same_by_content_and_type(one, other, same):
    assert _same(one, other) is same


def test_keys_of_a_test_time_defence_are_ours_in_a_fork_too():
    from advprompt.config import host

    words = ["--root", "x", "TESTTIME.NAME", "ensemble", "DEFENCE.EOT", "2", "OPTIM.LR", "1"]
    theirs, ours = command._split(words)
    assert theirs == ["--root", "x", "OPTIM.LR", "1"]
    assert ours == ["TESTTIME.NAME", "ensemble", "DEFENCE.EOT", "2"]
    assert "TESTTIME.NAME".startswith(host.TESTS)  # a fork that ignores them says so
