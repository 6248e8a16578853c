"""Damaged files and impossible values against every command that reads them.

    python -m tests.fuzz --seconds 300

A small finished run is made once. Then, at random: one of its files is damaged, or one setting gets
an impossible value, and a command is run on it in a process of its own. A command may succeed or
say one sentence and exit with code 2. What counts: tracebacks, hangs over 10 s, code that was
executed, temporary files left behind, impossible values that were accepted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

import advprompt  # noqa: F401  makes `import dassl` work
from advprompt.cli.main import command
from advprompt.config.keys import KEYS, defaults
from advprompt.utils.entry import run_tool
from tests.kills import ended, forked
from tests.world import REPO, arguments, make_pets, make_toy

LIMIT, PATIENCE = 10, 300  # seconds of processor time of a command, and of wall time
DEEP = "[" * 3000 + "]" * 3000
VALUES = [None, [], {}, "", "x", -1, 0.5, 1e300, 10**30, True, [[1]], {"a": {}}, "\x1b[31m"]
TEXTS = [b"", b"[]", b"null", b"{", b"1e999", DEEP.encode(), b'{"a": NaN}', b"\xff\xfe\x00x"]
YAMLS = ["a: &a {b: *a}", "OPTIM: [1", "\xe9: 1", "- 1", "OPTIM: {LR: .nan}", "[" * 20000]
POINTERS = [b"\xff\xfe", b"../../../etc/passwd\n", b"\0", b"x" * 10000, b"model.pth.tar-\xc2\xb2"]


class World:
    """A finished run and everything that it was made from, in one folder."""

    def __init__(self, folder: Path):
        self.folder, self.marker = folder, folder / "executed"
        for name in ("config", "data", "out"):
            (folder / name).mkdir()
        make_pets(folder / "data")
        toy = make_toy(folder / "toy.pt")
        shutil.copy(REPO / "configs/trainers/AdvPT/vit_b32.yaml", folder / "config/trainer.yaml")
        (folder / "config/attack.yaml").write_text("ATTACK: {TEST: {EPS: 4, STEPS: 2}}\n")
        quick = {"out": "out/run", "OPTIM.MAX_EPOCH": 2, "TEST.PROBES": 2}
        self.train = arguments("AdvPT", toy, folder / "data", folder, **quick)
        self.train[self.train.index("--config-file") + 1] = str(folder / "config/trainer.yaml")
        run, attack = str(folder / "out/run"), str(folder / "config/attack.yaml")
        root = ["--root", str(folder / "data")]
        export = ["export", run, "--out", str(folder / "export"), *root]
        start = [
            "MODEL.INIT_WEIGHTS",
            str(folder / "export"),
            "OUTPUT_DIR",
            str(folder / "out/two"),
        ]
        self.commands = {
            "train": ["train", *self.train],
            "report": ["report", str(folder / "out")],
            "robustness": ["robustness", "--model-dir", run, "--attack-config-file", attack, *root]
            + ["--opts", "TEST.PROBES", "2"],
            "export": export,
            "start": ["train", *self.train, *start],
        }
        for name in ("train", "export"):
            assert self.call(self.commands[name])[0] == 0, name
        shutil.copytree(folder, self.copy, ignore=shutil.ignore_patterns("pristine"))

    @property
    def copy(self) -> Path:
        return self.folder / "pristine"

    def restore(self) -> None:
        for name in ("config", "data", "out", "export", "banks", "cache", "toy.pt"):
            place, kept = self.folder / name, self.copy / name
            if place.is_dir():
                shutil.rmtree(place)
            if kept.is_dir():
                shutil.copytree(kept, place)
            else:
                shutil.copy(kept, place)

    def files(self) -> list[Path]:
        """Return the files that commands read."""
        names = ["config/*.yaml", "data/*/*.json", "out/run/*.json", "export/*", "toy.pt"]
        names += ["out/run/prompt_learner/*", "banks/*", "cache/**/*.json", "cache/**/*.pkl"]
        found = [path for name in names for path in sorted(self.folder.glob(name))]
        return [path for path in found if path.is_file() and path.suffix != ".md"]

    def call(self, words: list[str]) -> tuple[int, str]:
        """Run a command in a child; return its exit code (-1: a hang) and what it said."""
        log = self.folder / "errors.txt"
        log.write_bytes(b"")

        def work() -> int:
            resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
            return run_tool(command(words[0]), words[1:])

        code = ended(forked(work, log), PATIENCE)
        return (-1 if code in (None, -signal.SIGXCPU) else code), log.read_text(errors="replace")


# --- damage ---------------------------------------------------------------------------------------


class Bomb:
    """A pickle that would make the marker file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def hostile(draw: random.Random, like: torch.Tensor | None, marker: Path):
    """Return a value that no checkpoint should hold."""
    cyclic: dict = {}
    cyclic["again"] = cyclic
    deep: list = []
    for _ in range(500):
        deep = [deep]
    shared: list = []
    for _ in range(60):
        shared = [shared, shared]
    shape = tuple(like.shape) if torch.is_tensor(like) else (2,)
    huge = torch.zeros(1).as_strided((2**20, 2**17), (0, 0))
    return draw.choice(
        [Bomb(marker), cyclic, deep, shared, huge, torch.zeros(shape).to_sparse()]
        + [torch.zeros(shape, device="meta"), torch.zeros(shape, dtype=torch.complex64)]
        + [torch.full(shape, torch.nan), torch.zeros(3, 1), torch.zeros(0), *VALUES]
    )


def mutate(value, draw: random.Random, new):
    """Put ``new(old)`` somewhere into nested dicts and lists, or take something out."""
    places, left = [], [value]
    while left:
        inner = left.pop()
        for key in list(inner) if isinstance(inner, dict) else range(len(inner)):
            places.append((inner, key))
            left += [inner[key]] if isinstance(inner[key], (dict, list)) else []
    if not places:
        return new(value)
    holder, key = draw.choice(places)
    if draw.random() < 0.2:
        del holder[key]
    else:
        holder[key] = new(holder[key])
    return value


def damage(path: Path, draw: random.Random, marker: Path) -> None:
    """Damage one file: its bytes, or something that it holds."""
    data, kind = path.read_bytes(), draw.random()
    if kind < 0.15:
        data = data[: draw.randrange(len(data) + 1)]
    elif kind < 0.3:
        place = draw.randrange(max(len(data), 1))
        data = data[:place] + draw.randbytes(draw.choice([1, 4, 64])) + data[place + 1 :]
    elif kind < 0.4:
        data = draw.choice(TEXTS)
    elif path.suffix == ".json":
        data = json.dumps(mutate(json.loads(data), draw, lambda old: draw.choice(VALUES))).encode()
    elif path.suffix == ".yaml":
        code = draw.choice(["latin-1", "utf-16", "utf-8"])
        data = draw.choice(YAMLS).encode(code)
    elif path.name == "checkpoint":
        data = draw.choice(POINTERS)
    elif path.suffix == ".safetensors":
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        new = json.dumps(mutate(header, draw, lambda old: draw.choice(VALUES))).encode()
        data = len(new).to_bytes(8, "little") + new + data[8 + size :]
    else:
        state = torch.load(io.BytesIO(data), weights_only=True)
        state = mutate(state, draw, lambda old: hostile(draw, old, marker))
        stream = io.BytesIO()
        try:
            torch.save(state, stream)
        except (RuntimeError, RecursionError, NotImplementedError):
            stream = io.BytesIO(pickle.dumps(Bomb(marker)))
        data = stream.getvalue()
    path.write_bytes(data)


# --- one case -------------------------------------------------------------------------------------


def judge(world: World, code: int, errors: str) -> str:
    """Return what is wrong with how a command ended; "" if nothing."""
    sentences = [line for line in errors.splitlines() if line.startswith("error: ")]
    if world.marker.exists():
        world.marker.unlink()
        return "executed"
    if code in (-1, -signal.SIGKILL):
        return "hang"
    if "Traceback" in errors or code not in (0, 1, 2) or (code == 2 and len(sentences) != 1):
        return "traceback"
    if any(".tmp" in path.name for path in world.folder.rglob(".*.tmp")):
        return "leftover"
    return ""


def file_case(world: World, draw: random.Random) -> tuple[str, str, str]:
    """Damage a file and run a command; return the kind, what was done, and what is wrong."""
    path = draw.choice(world.files())
    damage(path, draw, world.marker)
    name = draw.choice(list(world.commands))
    if draw.random() < 0.5 and name != "report":  # so that the model is tested again
        (world.folder / "out/run/record.json").unlink(missing_ok=True)
    if name == "export":
        shutil.rmtree(world.folder / "export")
    wrong = judge(world, *(ended := world.call(world.commands[name])))
    return "file", f"{path.relative_to(world.folder)}, {name}: {ended[1][-1500:]}", wrong


def impossible(default) -> list[str]:
    """Return values, as words, that no key with such a default may have."""
    never = ["None", "nan", "x", "[[1]]", "{'a': 1}"]
    if isinstance(default, bool):
        return [*never, "2", "0.5"]
    if isinstance(default, (int, float)):
        whole = ["0.5", "True"] if isinstance(default, int) else []
        return [*never, "inf", "-inf", "1e300", str(10**30), str(-(10**30)), "[1]", *whole]
    return ["5", "None"] if isinstance(default, (list, tuple)) else ["None"]


def key_case(world: World, draw: random.Random) -> tuple[str, str, str]:
    """Give a setting an impossible value; return the kind, what was done, and what is wrong."""
    name = draw.choice([name for name, key in KEYS.items() if key.about])
    value = draw.choice(impossible(KEYS[name].default))
    words = draw.choice([world.commands["train"], world.commands["start"]])
    words = [*words, *draw.choice([[], ["OUTPUT_DIR", f"{world.folder}/out/new"]]), name, value]
    code, errors = world.call(words)
    wrong = judge(world, code, errors) or ("accepted" if code != 2 else "")
    wrong = wrong or ("half-written" if (world.folder / "out/new").exists() else "")
    return "key", f"{name} {value}: {errors[-1500:]}", wrong


CASES = {"file": file_case, "key": key_case}


def run(
    seconds: float, seed: int = 0, most: int = 10**9, kinds: Iterable[str] = CASES
) -> tuple[Counter, list[str]]:
    """Try cases for a time; return the counts, and the faults in words."""
    counts, faults = Counter(), []
    defaults()  # declares the keys of all rooms
    folder = Path(tempfile.mkdtemp())
    try:
        world = World(folder)
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end and number < most:
            draw = random.Random(f"{seed} {number}")
            case = draw.choice([CASES[kind] for kind in kinds])
            kind, done, wrong = case(world, draw)
            counts[kind] += 1
            if wrong:
                counts[wrong] += 1
                faults.append(f"{wrong} (seed {seed}, case {number}): {done}")
            world.restore()
            number += 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=CASES, default=CASES)
    args = parser.parse_args()
    counts, faults = run(args.seconds, args.seed, kinds=args.kinds)
    print("\n\n".join(faults))
    print(dict(counts))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
