"""Kills, full disks and second processes against the commands that write files.

    python -m tests.kills --random 200 --targeted 100 --twice 30 --full 60 --readonly 30

Every scene is a command and the folder it starts in. It runs once undisturbed. Then, at random, the
same command is killed (at a moment, or right before or after a file operation), finds the disk full
or read-only, or runs twice at once. Afterwards it is started again, and its files are compared with
those of the undisturbed run: nothing may be lost, wrong, blocked or left over. Everything runs in
forks of one process, which imports PyTorch once.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import fnmatch
import hashlib
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import torch

import advprompt  # noqa: F401  makes `import dassl` work
from advprompt.cli.main import command
from advprompt.config.keys import defaults
from advprompt.datasets import shapes, sources
from advprompt.datasets.coop import EuroSAT
from advprompt.datasets.sources import Address, Piece
from advprompt.engine.checkpoints import load_checkpoint
from advprompt.experiments.pool import Local
from advprompt.utils.entry import run_tool
from advprompt.utils.io import load_tensors, tensors_digest
from tests.file_server import FileServer, Served, zipped

PATIENCE = 120  # seconds until a command counts as blocked
WRITES = ("replace", "rename", "fsync", "unlink", "remove", "rmdir", "mkdir", "open")
FILLING = ("open", "mkdir", "fsync", "replace", "rename")
TARGETS = ("replace", "rename", "fsync", "unlink", "remove")
# of a record or card, from run to run
CHANGING = {"seconds", "created", "files_sha256", "checksum", "card_sha256", "git_commit"}
UNCOMPARED = ("*log.txt*", "*/tensorboard*", "*/sweep/*", "*/.lock")
DECORATION = ("*/picture.png", "*/examples.safetensors")  # a result does not depend on them
UNREADABLE = ("inline_container", "Errno", "enforce fail", "0.0 GB", "Traceback")
WHY = ("No space left", "is full", "too large", "Read-only", "read-only", "ermission")
ATTACKS = (
    "[{'EPS': '16', 'STEPS': 2, 'OBJECTIVE': 'embedding_kl', 'TARGET': 'embedding'},"
    " {'EPS': '4', 'STEPS': 2, 'ALPHA': '2'}]"
)
QUICK = (
    "OPTIM.MAX_EPOCH 3 TRAIN.CHECKPOINT_FREQ 1 DATALOADER.NUM_WORKERS 0 ATTACK.TRAIN.STEPS 1 "
    "TEST.PROBES 0 TEST.PICTURE 1 DATALOADER.TEST.BATCH_SIZE 8"
).split()
THREAT = ["ATTACK.TRAIN.TARGET", "end_to_end", "ATTACK.TRAIN.OBJECTIVE", "ce"]


def train(trainer: str, out: str, *more: str, seed: int = 1) -> list[str]:
    words = f"train --root data --seed {seed} --trainer {trainer} --dataset-config-file shapes"
    words += f" --config-file {trainer}/tiny --output-dir out/{out} DATASET.FEATURE_DIR banks"
    words += " DATASET.NUM_SHOTS 1 DATASET.SUBSAMPLE_CLASSES base"
    return [*words.split(), *QUICK, "ATTACK.TEST.LIST", ATTACKS, "TEST.SAVE_ADV", "True", *more]


@dataclass
class Scene:
    """A command, or several of which each may run at the same time as the others.

    Attributes:
        after: the scene in whose folder this one starts; "": an empty one.
        before, files: what the folder holds, before and after an undisturbed run.
        operations: on files, that an undisturbed run does, by name.
    """

    name: str
    commands: list[list[str]]
    after: str = ""
    before: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    seconds: float = 0.0


SWEEP = "sweep --trainers coop zsclip --datasets shapes --shots 1 --seeds 1 --config-file tiny"
SWEEP += " --root data --output output --jobs 2 --attack-config-file linf4_tiny --opts"
SCENES = [
    Scene("AdvPT", [train("AdvPT", "advpt")]),
    Scene("CAPT", [train("CAPT", "capt", *THREAT)], "AdvPT"),
    Scene("export", ["export out/advpt --out zoo/advpt --licence MIT".split()], "AdvPT"),
    Scene(
        "robustness",
        ["robustness --model-dir out/advpt --attack-config-file linf4_tiny --root data".split()],
        "AdvPT",
    ),
    Scene("sweep", [[*SWEEP.split(), *QUICK, "ATTACK.TEST.LIST", ATTACKS, *THREAT]]),
    Scene("report", ["report out --format html --out page.html".split()], "AdvPT"),
    Scene("bank", [train("AdvPT", "one"), train("AdvPT", "two", "OPTIM.LR", "0.01")]),
    Scene("fetch", ["data fetch eurosat --root data".split()]),
]


# --- processes ------------------------------------------------------------------------------------


def forked(call, log: Path) -> int:
    """Call something in a fork whose output goes to the end of a file; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
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


def start(folder: Path, words: list[str], log: Path, first=None, last=None) -> int:
    """Start a command in a folder, in a group of processes of its own."""

    def work() -> int:
        os.setpgid(0, 0)
        os.chdir(folder)
        if first:
            first()
        code = run_tool(command(words[0]), words[1:])
        if last:
            last()
        return code

    return forked(work, log)


def ended(pid: int) -> int | None:
    """Wait for a command and its group; return its exit code, None if they had to be stopped."""
    end, code = time.monotonic() + PATIENCE, None
    while time.monotonic() < end:
        if code is None:
            done, status = os.waitpid(pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
        else:
            try:
                os.killpg(pid, 0)
            except ProcessLookupError:
                return code
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if code is None:
        os.waitpid(pid, 0)
    return None


class Handle:
    """A job of a sweep, in a fork in place of submitit's new interpreter."""

    def __init__(self, job, folder: Path, slot: str, work):
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = SimpleNamespace(stdout=folder / f"{time.monotonic_ns()}.out")
        self.pid, self.over = forked(lambda: work(job.words) or 0, self.paths.stdout), False

    def done(self) -> bool:
        self.over = self.over or os.waitpid(self.pid, os.WNOHANG)[0] > 0
        return self.over

    def cancel(self, check=False) -> None:
        os.kill(self.pid, signal.SIGTERM)


def watch(act) -> None:
    """Have ``act(name, before, path)`` called before and after file operations in this folder."""
    here = os.getcwd()

    def wrapped(name: str, real, counts):
        def call(path, *args, **keys):
            if not counts(path, *args, **keys):
                return real(path, *args, **keys)
            act(name, True, path)
            result = real(path, *args, **keys)
            act(name, False, path)
            return result

        return call

    def inside(path, *args, **keys) -> bool:
        return (
            isinstance(path, int)
            or "dir_fd" in keys
            or os.path.abspath(os.fsdecode(path)).startswith(here)
        )

    def written(path, mode="r", *args, **keys) -> bool:
        flags = os.O_WRONLY | os.O_RDWR
        writes = mode & flags if isinstance(mode, int) else set(mode) & set("wax")
        return bool(writes) and not isinstance(path, int) and inside(path)

    for name in WRITES[:-1]:
        setattr(os, name, wrapped(name, getattr(os, name), inside))
    os.open = wrapped("open", os.open, written)
    builtins.open = io.open = wrapped("open", builtins.open, written)


def at(number: int, names, deed):
    """Return what has ``deed(before, path)`` done at the n-th operation of these and all later."""

    def prepare() -> None:
        seen = [0]

        def act(name: str, before: bool, path) -> None:
            if name in names:
                seen[0] += before
                if seen[0] >= number:
                    deed(before, path)

        watch(act)

    return prepare


# --- what a folder holds --------------------------------------------------------------------------


def plain(value):
    """Return a value without what changes from run to run, tensors as digests."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items() if k not in CHANGING}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return tensors_digest({"": value}) if torch.is_tensor(value) else value


def content(path: Path) -> str:
    """Return a digest of what matters in a file; a damaged one raises some error."""
    if path.suffix == ".json":
        found = plain(json.loads(path.read_text()))
    elif path.suffix == ".safetensors":
        found = plain(load_tensors(path))
    elif ".pth.tar" in path.name:
        found = plain(load_checkpoint(path))
    elif path.suffix in (".html", ".md"):  # they state times
        found = path.stat().st_size > 0
    else:
        found = path.read_bytes().hex()
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def matches(name: str, patterns) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def files_of(folder: Path) -> dict[str, str]:
    """Return the digests of a folder's files by name, and its empty folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = f"/{path.relative_to(folder)}"
        if matches(name, UNCOMPARED):
            continue
        if path.is_file():
            temporary = path.suffix in (".tmp", ".part") or ".unpacking" in name
            found[name] = "" if temporary else content(path)
        elif not any(path.iterdir()):
            found[f"{name}/"] = ""
    return found


def compared(there: dict[str, str], right: dict[str, str]) -> str:
    """Return what differs from the right files, in words; "" if nothing does."""
    lost = [n for n in right if n not in there and not matches(n, DECORATION)]
    left = [n for n in there if n not in right]
    wrong = [n for n in right if n in there and there[n] != right[n]]
    kinds = {"lost": lost, "wrong": wrong, "leftover": left}
    return "; ".join(f"{kind}: {', '.join(names[:4])}" for kind, names in kinds.items() if names)


# --- cases ----------------------------------------------------------------------------------------


class World:
    """The scenes, each with the folder it starts in and what it leaves undisturbed."""

    def __init__(self, folder: Path, names=()):
        self.folder, self.log, self.work = folder, folder / "log", folder / "work"
        torch.set_num_threads(1)
        shapes.IMAGES_PER_CLASS.update(train=2, val=1, test=1)
        Local.submit = lambda self, *words: Handle(*words)
        defaults()  # declares the keys of all rooms
        self._serve()
        self.scenes: dict[str, Scene] = {}
        needed = {s.after for s in SCENES if s.name in names}
        for scene in SCENES:
            if not names or scene.name in {*names, *needed}:
                self._rehearse(scene)
        self.scenes = {n: s for n, s in self.scenes.items() if not names or n in names}

    def _serve(self) -> None:
        """Serve a small EuroSAT from a process of its own, which ends with this one."""
        split = {part: [["a/1.jpg", 0, "Forest"]] for part in ("train", "val", "test")}
        archive = zipped(("2750/a/1.jpg", os.urandom(2_000_000)), ("2750/a/2.jpg", b"x" * 1000))
        read, write = os.pipe()
        parent = os.getpid()
        if not os.fork():
            server = FileServer()
            server.files["/e.zip"] = Served(archive)
            server.files["/split"] = Served(json.dumps(split).encode(), kind="application/json")
            os.write(write, server.url("").encode())
            while os.getppid() == parent:
                time.sleep(1)
            os._exit(0)
        url = os.read(read, 100).decode()
        checksum = f"sha256:{hashlib.sha256(archive).hexdigest()}"
        whole = Address(f"{url}/e.zip", len(archive), checksum)
        first = Piece((EuroSAT.split_file,), (Address(f"{url}/split", file=EuroSAT.split_file),))
        every = dict(sources.read_sources())
        pieces = (first, Piece(("2750",), (whole,)))
        every["EuroSAT"] = replace(every["EuroSAT"], sizes=(1, 1, 1), pieces=pieces)
        sources.read_sources = lambda: every

    def place(self, name: str) -> Path:
        """Return the folder that a scene has left; of "": an empty one."""
        return self.folder / "scenes" / (name or "empty")

    def fresh(self, scene: Scene) -> None:
        """Make the folder in which a case works."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(exist_ok=True)
        if scene.after:
            shutil.copytree(self.place(scene.after), self.work, dirs_exist_ok=True)
        self.log.write_bytes(b"")

    def _rehearse(self, scene: Scene) -> None:
        """Run a scene undisturbed, and import here what it has imported."""
        self.fresh(scene)
        scene.before = files_of(self.work)
        notes, modules = self.folder / "operations", self.folder / "modules"
        noted = os.open(notes, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
        clock = time.monotonic()
        for words in scene.commands:
            pid = start(
                self.work,
                words,
                self.log,
                lambda: watch(
                    lambda name, first, path: first and os.write(noted, f"{name} ".encode())
                ),
                lambda: modules.write_text(" ".join(sys.modules)),
            )
            assert ended(pid) == 0, self.log.read_text()
        scene.seconds = (time.monotonic() - clock) / len(scene.commands)
        scene.operations, scene.files = notes.read_text().split(), files_of(self.work)
        shutil.copytree(self.work, self.place(scene.name))
        self.scenes[scene.name] = scene
        for name in modules.read_text().split():
            with contextlib.suppress(Exception):
                importlib.import_module(name)

    # --- kinds of faults: each runs the first command of a scene, and returns what went wrong -----

    def random(self, scene: Scene, draw: random.Random) -> str:
        """Kill at a random moment; of a sweep all processes or only the first one."""
        pid = start(self.work, scene.commands[0], self.log)
        time.sleep(draw.uniform(0, scene.seconds))
        with contextlib.suppress(ProcessLookupError):
            draw.choice([os.kill, os.killpg])(pid, signal.SIGKILL)
        return "blocked" if ended(pid) is None else ""

    def targeted(self, scene: Scene, draw: random.Random) -> str:
        """Kill right before or after a file operation that changes what is there."""
        count = sum(name in TARGETS for name in scene.operations) // len(scene.commands)
        number, early = draw.randint(1, count), draw.random() < 0.5

        def deed(before: bool, path) -> None:
            if before == early:
                os.kill(os.getpid(), signal.SIGKILL)

        pid = start(self.work, scene.commands[0], self.log, at(number, TARGETS, deed))
        return "blocked" if ended(pid) is None else ""

    def full(self, scene: Scene, draw: random.Random) -> str:
        """Let the disk be full from some operation on, or from some size of a file on."""
        if draw.random() < 0.5:
            size = int(2 ** draw.uniform(13, 18))
            limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # noqa: E731
            return self.refused(scene, limit)
        return self.refused(scene, self.errors(scene, draw, errno.ENOSPC, FILLING))

    def readonly(self, scene: Scene, draw: random.Random) -> str:
        """Let nothing be writable, from the start or from some operation on."""
        return self.refused(scene, self.errors(scene, draw, errno.EROFS, WRITES))

    def disk(self, scene: Scene, draw: random.Random) -> str:
        """Work on a real disk that is too small, and later large enough; needs root."""
        self.work.rename(kept := self.folder / "kept")
        self.work.mkdir()
        mounted("tmpfs", self.work, "-t", "tmpfs", "-o", "size=64m")
        shutil.copytree(kept, self.work, dirs_exist_ok=True)
        shutil.rmtree(kept)
        used = shutil.disk_usage(self.work).used
        if draw.random() < 0.2:
            mounted(self.work, "-o", "remount,ro")
        else:
            after = sum(p.stat().st_size for p in self.place(scene.name).rglob("*"))
            more = draw.uniform(0, max(after - used, 1 << 16))
            mounted(self.work, "-o", f"remount,size={used + int(more)}")
        wrong = self.refused(scene)
        mounted(self.work, "-o", "remount,rw,size=64m")
        return wrong

    def twice(self, scene: Scene, draw: random.Random) -> str:
        """Start all commands at once, one after a while; a single one twice."""
        pids = []
        for words in (scene.commands * 2)[:2]:
            pids.append(start(self.work, words, self.log))
            time.sleep(draw.choice([0, draw.uniform(0, scene.seconds)]) * (len(pids) == 1))
        codes = [ended(pid) for pid in pids]
        return "" if codes == [0, 0] else f"blocked: exit codes {codes}"

    @staticmethod
    def errors(scene: Scene, draw: random.Random, number: int, names):
        """Return what makes operations fail, from a random one on."""
        count = sum(name in names for name in scene.operations)

        def deed(before: bool, path) -> None:
            if before:
                raise OSError(number, os.strerror(number), *[path] * (not isinstance(path, int)))

        return at(draw.choice([1, draw.randint(1, count)]), names, deed)

    def refused(self, scene: Scene, prepare=None) -> str:
        """Return what is wrong with how a command ends that cannot write."""
        code = ended(start(self.work, scene.commands[0], self.log, prepare))
        texts = [self.log, *self.work.glob("output/sweep/**/*.out")]
        said = "\n".join(path.read_text(errors="replace") for path in texts)
        lines = re.findall("error: .*", said)
        plain = all(any(word in line for word in WHY) and "'" in line for line in lines)
        allowed = (0, 1, 2) if scene.name == "sweep" else (0, 2)
        if code is None:
            return "blocked"
        if code not in allowed or any(word in said for word in UNREADABLE):
            return f"traceback: exit code {code}"
        return "" if code != 2 or (len(lines) == 1 and plain) else f"unclear: {lines}"

    def case(self, kind: str, number: int, seed: int = 0) -> tuple[str, str]:
        """Do one case; return its scene and what is wrong, "" if nothing is."""
        draw = random.Random(f"{seed} {kind} {number}")
        scenes = sorted(self.scenes.values(), key=lambda scene: scene.name)
        (scene,) = draw.choices(scenes, [len(scene.operations) ** 0.5 for scene in scenes])
        self.fresh(scene)
        wrong = [getattr(self, kind)(scene, draw)]
        try:
            first = self.log.read_text(errors="replace")[-600:]
            if kind != "twice":
                there = files_of(self.work)
                kept = {n: d for n, d in there.items() if n in scene.before}
                wrong += [f"at once {text}" for text in [compared(kept, scene.before)] if text]
                for words in scene.commands:
                    code = ended(start(self.work, words, self.log))
                    wrong += [f"blocked: exit code {code}"] if code else []
            wrong.append(compared(files_of(self.work), scene.files))
        except Exception as error:
            wrong.append(f"half-written: {error}")
        if os.path.ismount(self.work):
            subprocess.run(["umount", self.work], check=True)
        found = "; ".join(filter(None, wrong))
        log = self.log.read_text(errors="replace")[-600:]
        return scene.name, found and f"{found}\n{first}\n--- again ---\n{log}"


def mounted(*words) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


KINDS = {
    name: vars(World)[name] for name in ("random", "targeted", "full", "readonly", "disk", "twice")
}


def run(counts: dict[str, int], seed: int = 0, log: Path | None = None, names=()) -> list[dict]:
    """Do so many cases of each kind; what ``log`` holds is not done again."""
    done = (
        [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []
    )
    known = {(case["kind"], case["number"], case["seed"]) for case in done}
    left = [(kind, n) for kind, count in counts.items() for n in range(count)]
    left = [(kind, n) for kind, n in left if (kind, n, seed) not in known]
    folder = Path(tempfile.mkdtemp())
    try:
        world = World(folder, names)
        for i, (kind, number) in enumerate(left):
            scene, wrong = world.case(kind, number, seed)
            case = {"kind": kind, "number": number, "seed": seed, "scene": scene, "wrong": wrong}
            done.append(case)
            if log:
                with open(log, "a") as file:
                    file.write(json.dumps(case) + "\n")
                print(
                    f"{i + 1} of {len(left)}: {kind} {number}, {scene}: {wrong or 'well'}",
                    flush=True,
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return done


def table(done: list[dict]) -> str:
    """Return how many cases of each kind went well, and how many did not, by what was wrong."""
    lines = []
    for kind in dict.fromkeys(case["kind"] for case in done):
        mine = [case for case in done if case["kind"] == kind]
        bad = Counter(case["wrong"].partition(":")[0] for case in mine if case["wrong"])
        said = ", ".join(f"{n} {what}" for what, n in bad.items()) or "nothing wrong"
        lines.append(f"{kind}: {len(mine)} cases, {said}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.kills", description=__doc__.partition("\n")[0]
    )
    for kind, method in KINDS.items():
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N", help=method.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("kills.jsonl"), help="resumed where it is")
    parser.add_argument("--scenes", nargs="+", default=[], choices=[s.name for s in SCENES])
    args = parser.parse_args()
    done = run({kind: getattr(args, kind) for kind in KINDS}, args.seed, args.log, args.scenes)
    print(table(done))
    return 1 if any(case["wrong"] for case in done) else 0


if __name__ == "__main__":
    sys.exit(main())
