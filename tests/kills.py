"""Kills, full disks and second processes against the commands that write files.

    python -m tests.kills --random 200 --targeted 100 --twice 40 --full 60 --readonly 40

Every scene is a command and the folder it starts in. It runs once undisturbed. Then, at random, the
same command is killed, finds the disk full or read-only, or runs twice at once. It is started again
and must leave the files of the undisturbed run: nothing lost, wrong, blocked or left over. All runs
are forks of one process, which imports PyTorch once.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import fnmatch
import importlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch

import advprompt  # noqa: F401  makes `import dassl` work
from advprompt.cli.main import COMMANDS, command
from advprompt.config.keys import defaults
from advprompt.datasets import shapes
from advprompt.engine.checkpoints import load_checkpoint
from advprompt.experiments.pool import Local
from advprompt.utils.entry import run_tool
from advprompt.utils.io import load_tensors, tensors_digest
from tests.world import make_toy

SLOW = "matplotlib.pyplot", "torch.utils.tensorboard", "jinja2", "submitit"  # to import
PATIENCE = 120  # seconds until a command counts as blocked
CHANGES = ("replace", "rename", "fsync", "unlink", "remove")
FILLS = ("open", "mkdir", "fsync", "replace", "rename")
WRITES = (*CHANGES, "rmdir", "mkdir", "open")
# of a record or card, from run to run
CHANGING = {"seconds", "created", "files_sha256", "checksum", "card_sha256", "git_commit"}
UNCOMPARED = "*log.txt*", "*/tensorboard*", "*/sweep/*", "*/.lock"
DECORATION = "*/picture.png", "*/examples.safetensors"  # no result depends on them
UNCLEAR = "inline_container", "Errno", "enforce fail", "0.0 GB", "Traceback"
WHY = "No space left", "too large", "Read-only"
ATTACKS = (
    "[{'EPS': '16', 'STEPS': 2, 'OBJECTIVE': 'embedding_kl', 'TARGET': 'embedding'},"
    " {'EPS': '4', 'STEPS': 2, 'ALPHA': '2'}]"
)
QUICK = "OPTIM.MAX_EPOCH 3 TRAIN.CHECKPOINT_FREQ 1 DATALOADER.NUM_WORKERS 0 TEST.PROBES 0 "
QUICK += "ATTACK.TRAIN.STEPS 1 TEST.PICTURE 1 DATALOADER.TEST.BATCH_SIZE 4 TEST.SAVE_ADV True"
QUICK += " TEST.SUBSET 8 MODEL.BACKBONE.NAME file:toy.pt INPUT.SIZE (32,32)"
THROUGH = "ATTACK.TRAIN.TARGET end_to_end ATTACK.TRAIN.OBJECTIVE ce"


def train(trainer: str, out: str, more: str = "") -> list[str]:
    words = f"train --root data --seed 1 --trainer {trainer} --dataset-config-file shapes"
    words += f" --config-file {trainer}/tiny --output-dir out/{out} DATASET.FEATURE_DIR banks"
    words += f" DATASET.NUM_SHOTS 1 DATASET.SUBSAMPLE_CLASSES base {QUICK} {more}"
    return [*words.split(), "ATTACK.TEST.LIST", ATTACKS]


SWEEP = "sweep --trainers coop zsclip --datasets shapes --shots 1 --seeds 1 --config-file tiny "
SWEEP += f"--root data --output output --jobs 2 --attack-config-file linf4_tiny --opts {QUICK}"
TESTS = "robustness --model-dir out/advpt --attack-config-file linf4_tiny --root data "
TESTS += "--opts ATTACK.TEST.STEPS 2 DATALOADER.TEST.BATCH_SIZE 4"


@dataclass
class Scene:
    """A command, or several that may run at the same time.

    Attributes:
        after: the scene in whose folder this one starts; "": an empty one.
        files, operations, seconds: of an undisturbed run: what it leaves, does and takes.
    """

    name: str
    commands: list[list[str]]
    after: str = ""
    files: dict = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    seconds: float = 0.0


SCENES = [
    Scene("AdvPT", [train("AdvPT", "advpt")]),
    Scene("CAPT", [train("CAPT", "capt", THROUGH)], "AdvPT"),
    Scene("export", ["export out/advpt --out zoo/advpt --licence MIT".split()], "AdvPT"),
    Scene("robustness", [TESTS.split()], "AdvPT"),
    Scene("sweep", [SWEEP.split()]),
    Scene("report", ["report out --format html --out page.html".split()], "AdvPT"),
    Scene("bank", [train("AdvPT", "one"), train("AdvPT", "two", "OPTIM.LR 0.01")]),
]

# --- processes ------------------------------------------------------------------------------------


def forked(call, log: Path, *, leads: bool = True) -> int:
    """Call something in a fork whose output goes to the end of a file; return its process id.

    Args:
        leads: a group of processes of its own.
    """
    if pid := os.fork():
        return pid
    code = 1
    try:
        if leads:
            os.setpgid(0, 0)
        with open(log, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        code = call()
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int, patience: float = PATIENCE) -> int | None:
    """Wait for a command and its group; return its exit code, None if they had to be stopped."""
    end, code = time.monotonic() + patience, None
    while time.monotonic() < end:
        if code is None:
            done, status = os.waitpid(pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
        elif not group(pid, 0):
            return code
        time.sleep(0.005)
    group(pid, signal.SIGKILL)
    if code is None:
        os.waitpid(pid, 0)
    return None


def group(pid: int, number: int, send=os.killpg) -> bool:
    with contextlib.suppress(ProcessLookupError):
        send(pid, number)
        return True
    return False


class Handle:
    """A job of a sweep, in a fork in place of submitit's new interpreter."""

    def __init__(self, launcher, job, folder: Path, slot: str, work):
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = SimpleNamespace(stdout=folder / f"{time.monotonic_ns()}.out")
        self.pid = forked(lambda: work(job.words) or 0, self.paths.stdout, leads=False)
        self.over = False

    def done(self) -> bool:
        self.over = self.over or os.waitpid(self.pid, os.WNOHANG)[0] > 0
        return self.over

    def cancel(self, check=False) -> None:
        os.kill(self.pid, signal.SIGTERM)


def watch(deed, names=WRITES, number: int = 1) -> None:
    """Have ``deed(name, before, path)`` done at the n-th such operation in this folder, and on."""
    here, seen = os.getcwd(), [0]

    def wrapped(name: str, real):
        def call(path, *args, **keys):
            mine = isinstance(path, int) or "dir_fd" in keys
            mine = mine or os.path.abspath(os.fsdecode(path)).startswith(here)
            if name == "open":
                mode = args[0] if args else keys.get("mode", "r")
                writes = mode & 3 if isinstance(mode, int) else set(mode) & set("wax")
                mine = mine and bool(writes) and not isinstance(path, int)
            seen[0] += mine
            disturbed = mine and seen[0] >= number
            if disturbed:
                deed(name, True, path)
            result = real(path, *args, **keys)
            if disturbed:
                deed(name, False, path)
            return result

        return call

    for name in names:
        setattr(os, name, wrapped(name, getattr(os, name)))
    if "open" in names:
        builtins.open = io.open = wrapped("open", builtins.open)


# --- what a folder holds --------------------------------------------------------------------------


def plain(value):
    """Return a value without what changes from run to run, tensors as digests."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items() if k not in CHANGING}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return tensors_digest({"": value}) if torch.is_tensor(value) else value


def content(path: Path):
    """Return what matters in a file; a damaged one raises some error."""
    if path.suffix == ".json":
        return plain(json.loads(path.read_text()))
    if path.suffix == ".safetensors":
        return plain(load_tensors(path))
    if ".pth.tar" in path.name:
        return plain(load_checkpoint(path))
    return path.suffix in (".html", ".md") or path.read_bytes()  # pages state times


def files_of(folder: Path) -> dict:
    """Return what a folder's files hold, by name, and its empty folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = f"/{path.relative_to(folder)}"
        if path.is_file() and not matches(name, UNCOMPARED):
            half = path.suffix == ".tmp" or ".tmp/" in name
            found[name] = "" if half else content(path)
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{name}/"] = ""
    return found


def matches(name: str, patterns) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def compared(there: dict, right: dict) -> str:
    """Return in words what differs from the right files; "" if nothing does."""
    lost = [n for n in right if n not in there and not matches(n, DECORATION)]
    wrong = [n for n in right if n in there and there[n] != right[n]]
    kinds = {"lost": lost, "wrong": wrong, "leftover": [n for n in there if n not in right]}
    return "; ".join(f"{kind}: {', '.join(names[:4])}" for kind, names in kinds.items() if names)


# --- cases ----------------------------------------------------------------------------------------


class World:
    """The scenes, each rehearsed in ``folder``."""

    def __init__(self, folder: Path, names=None):
        self.folder, self.log, self.work = folder, folder / "log", folder / "work"
        torch.set_num_threads(1)
        shapes.IMAGES_PER_CLASS.update(train=2, val=1, test=1)
        Local.submit = lambda *words: Handle(*words)
        defaults()  # declares the keys of all rooms
        for name in SLOW:
            with contextlib.suppress(ModuleNotFoundError):  # tensorboard is optional
                importlib.import_module(name)
        for name in COMMANDS:
            command(name)
        make_toy(folder / "toy.pt")
        self.scenes = [s for s in SCENES if not names or s.name in names]
        for scene in SCENES:
            if any(scene.name in (s.name, s.after) for s in self.scenes):
                self.rehearse(scene)

    def fresh(self, scene: Scene) -> None:
        """Make the folder in which a case works."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        shutil.copy(self.folder / "toy.pt", self.work)
        if scene.after:
            shutil.copytree(self.folder / scene.after, self.work, dirs_exist_ok=True)
        self.log.write_bytes(b"")

    def start(self, words: list[str], first=lambda: None) -> int:
        """Start a command in the folder."""

        def call() -> int:
            os.chdir(self.work)
            first()
            return run_tool(command(words[0]), words[1:])

        return forked(call, self.log)

    def rehearse(self, scene: Scene) -> None:
        """Run a scene undisturbed."""
        self.fresh(scene)
        noted = os.open(notes := self.folder / "notes", os.O_CREAT | os.O_TRUNC | os.O_RDWR)

        def note(name: str, before: bool, path) -> None:
            if before:
                os.write(noted, f"{name} ".encode())

        clock = time.monotonic()
        for words in scene.commands:
            assert ended(self.start(words, lambda: watch(note))) == 0, self.log.read_text()
        scene.seconds = (time.monotonic() - clock) / len(scene.commands)
        scene.operations, scene.files = notes.read_text().split(), files_of(self.work)
        os.close(noted)
        shutil.copytree(self.work, self.folder / scene.name)

    # --- kinds: each disturbs the first command of a scene, and returns what is wrong -------------

    def random(self, scene: Scene, draw: random.Random) -> str:
        """Kill at a random moment; of a sweep all processes or the first one."""
        pid = self.start(scene.commands[0])
        time.sleep(draw.uniform(0, scene.seconds))
        group(pid, signal.SIGKILL, draw.choice([os.kill, os.killpg]))
        return "blocked" if ended(pid) is None else ""

    def targeted(self, scene: Scene, draw: random.Random) -> str:
        """Kill right before or after an operation that changes what is there."""
        number, early = self.moment(scene, draw, CHANGES), draw.random() < 0.5

        def deed(name: str, before: bool, path) -> None:
            if before == early:
                os.kill(os.getpid(), signal.SIGKILL)

        pid = self.start(scene.commands[0], lambda: watch(deed, CHANGES, number))
        return "blocked" if ended(pid) is None else ""

    def full(self, scene: Scene, draw: random.Random) -> str:
        """Let the disk be full from some operation, or from some size of a file on."""
        if draw.random() < 0.5:
            return self.failing(scene, draw, errno.ENOSPC, FILLS)
        size = int(2 ** draw.uniform(13, 18))
        return self.refused(scene, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))

    def readonly(self, scene: Scene, draw: random.Random) -> str:
        """Let nothing be writable, from the start or from some operation on."""
        return self.failing(scene, draw, errno.EROFS, WRITES)

    def disk(self, scene: Scene, draw: random.Random) -> str:
        """Work on a disk that is too small, or read-only, and later is not; needs root."""
        shutil.copytree(self.work, kept := self.folder / "kept")
        mount("tmpfs", self.work, "-t", "tmpfs", "-o", "size=64m")
        shutil.copytree(kept, self.work, dirs_exist_ok=True)
        shutil.rmtree(kept)
        used = shutil.disk_usage(self.work).used
        after = sum(path.stat().st_size for path in (self.folder / scene.name).rglob("*"))
        more = int(draw.uniform(0, max(after - used, 1 << 16)))
        mount(self.work, "-o", draw.choice(["remount,ro", *[f"remount,size={used + more}"] * 4]))
        wrong = self.refused(scene)
        mount(self.work, "-o", "remount,rw,size=64m")
        return wrong

    def twice(self, scene: Scene, draw: random.Random) -> str:
        """Run two commands of a scene at once, or its only one twice; kill one of some."""
        first, killed = self.start(scene.commands[0]), draw.random() < 0.5
        time.sleep(draw.choice([0, draw.uniform(0, scene.seconds)]))
        second = self.start(scene.commands[-1])
        if killed:
            time.sleep(draw.uniform(0, scene.seconds))
            group(first, signal.SIGKILL)
        codes = [ended(pid) for pid in (first, second)]
        expected = codes[1] == 0 and (killed or codes[0] == 0)
        return "" if expected else f"blocked: exit codes {codes}"

    @staticmethod
    def moment(scene: Scene, draw: random.Random, names) -> int:
        count = sum(name in names for name in scene.operations)
        return draw.randint(1, count // len(scene.commands))

    def failing(self, scene: Scene, draw: random.Random, number: int, names) -> str:
        """Let operations fail, all or from a random one on."""

        def deed(name: str, before: bool, path) -> None:
            if before:
                raise OSError(number, os.strerror(number), *[path] * (not isinstance(path, int)))

        moment = draw.choice([1, *[self.moment(scene, draw, names)] * 3])
        return self.refused(scene, lambda: watch(deed, names, moment))

    def refused(self, scene: Scene, first=lambda: None) -> str:
        """Return what is wrong with how a command ends that cannot write."""
        code = ended(self.start(scene.commands[0], first))
        texts = [self.log, *self.work.glob("output/sweep/**/*.out")]
        said = "\n".join(path.read_text(errors="replace") for path in texts)
        lines = re.findall(r"(?<!\* )error: .*", said)
        plain = all("'" in line and any(word in line for word in WHY) for line in lines)
        if code not in (0, 2, 1 if scene.name == "sweep" else 2):
            return "blocked" if code is None else f"traceback: exit code {code}"
        if any(word in said for word in UNCLEAR) or not plain or (code == 2 and len(lines) != 1):
            return f"unclear: {lines}"
        return ""

    def case(self, kind: str, number: int, seed: int) -> tuple[str, str, str]:
        """Do one case; return its scene, what is wrong, and the end of the logs."""
        draw = random.Random(f"{seed} {kind} {number}")
        (scene,) = draw.choices(self.scenes, [len(s.operations) ** 0.5 for s in self.scenes])
        self.fresh(scene)
        wrong = [getattr(self, kind)(scene, draw)]
        try:
            before = files_of(self.folder / scene.after) if scene.after else {}
            there = {n: found for n, found in files_of(self.work).items() if n in before}
            wrong.append(compared(there, before))
            for words in scene.commands:
                code = ended(self.start(words))
                wrong += [f"blocked: exit code {code}"] if code else []
            wrong.append(compared(files_of(self.work), scene.files))
        except Exception as error:
            wrong.append(f"half-written: {error}")
        if os.path.ismount(self.work):
            subprocess.run(["umount", self.work], check=True)
        found = "; ".join(filter(None, wrong))
        return scene.name, found, found and self.log.read_text(errors="replace")[-2000:]


KINDS = ("random", "targeted", "twice", "full", "readonly", "disk")


def mount(*words) -> None:
    subprocess.run(["mount", *words], check=True)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.kills", description=__doc__.split("\n")[0])
    for kind in KINDS:
        about = vars(World)[kind].__doc__
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N", help=about)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("kills.jsonl"), help="it is continued")
    parser.add_argument("--scenes", nargs="+", choices=[s.name for s in SCENES])
    args = parser.parse_args()
    done = args.log.read_text().splitlines() if args.log.is_file() else []
    done = {tuple(case[:3]): case for case in map(json.loads, done)}
    cases = [(kind, n, args.seed) for kind in KINDS for n in range(getattr(args, kind))]
    left = [case for case in cases if case not in done]
    with tempfile.TemporaryDirectory() as folder, open(args.log, "a", buffering=1) as log:
        world = World(Path(folder), args.scenes) if left else None
        for i, case in enumerate(left):
            done[case] = [*case, *world.case(*case)]
            log.write(json.dumps(done[case]) + "\n")
            print(i + 1, "of", len(left), *case, *done[case][3:], flush=True)
    for kind in KINDS:
        mine = [case[4].partition(":")[0] for case in done.values() if case[0] == kind]
        bad = ", ".join(f"{n} {what}" for what, n in Counter(filter(None, mine)).items())
        print(f"{kind}: {len(mine)} cases, {bad or 'nothing wrong'}")
    return 1 if any(case[4] for case in done.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
