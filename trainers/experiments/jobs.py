"""The runs of a sweep, named and ordered as ``scripts/<method>/<protocol>.sh`` names them.

Nothing is started and nothing is read but the yaml files. A job's words are those that the script
gives to train.py, so that each finds and skips what the other has done.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .settings import Settings

PROTOCOLS = ("few_shot", "base2new", "xd", "dg")
# the scripts' names of methods, in the order of scripts/all.sh: trainer, and what ends its config
METHODS = {
    "zsclip": ("ZeroshotCLIP", ""),
    "advpt": ("AdvPT", ""),
    "coop": ("CoOp", ""),
    "maple": ("MaPLe", ""),
    "advcoop": ("AdvCoOp", ""),
    "advvpt": ("AdvVPT", ""),
    "advmaple": ("AdvMaPLe", ""),
    "advivlp": ("AdvIVLP", ""),
    "fap": ("FAP", ""),
    "tecoa": ("TeCoA", ""),
    "tecoa_finetune": ("TeCoA", "_finetune"),
    "capt": ("CAPT", ""),
    "apd": ("APD", ""),
    "naptuning": ("NAPTuning", ""),
}
SHORT = {
    "pets": "oxford_pets",
    "flowers": "oxford_flowers",
    "cars": "stanford_cars",
    "aircraft": "fgvc_aircraft",
    "food": "food101",
    "sun": "sun397",
    "caltech": "caltech101",
    "ucf": "ucf101",
    "sketch": "imagenet_sketch",
}
TARGETS = {
    ("xd", "imagenet"): (
        "caltech101",
        "oxford_pets",
        "stanford_cars",
        "oxford_flowers",
        "food101",
        "fgvc_aircraft",
        "sun397",
        "dtd",
        "eurosat",
        "ucf101",
    ),
    ("xd", "shapes"): ("shapes_novel", "shapes_patterns"),
    ("dg", "imagenet"): ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
    ("dg", "shapes"): ("shapes_sketch", "shapes_noise", "shapes_blur", "shapes_background"),
}
SOURCE_ONLY = ("TEST.FIRST",)  # file names of few data sets are in random order
ZERO_SHOT = "ZeroshotCLIP"
COMMON = "common"  # in place of a threat model: the one that scripts/all.sh chooses
LONGEST = 80  # characters of a folder's name that overrides may take


@dataclass(slots=True)
class Job:
    """One run of train.py.

    Attributes:
        place: the run's folder below the output folder; no two jobs of a sweep share one.
        folder: the same, absolute.
        words: arguments of train.py.
        trainer, dataset, config, attack, shots, seed: for people; ``dataset`` is the tested one.
        role: "", or what the run is besides a few-shot run: base, new, xd, dg.
        settings: what the record of this run must say.
        needs: folders of runs that must be completed before.
        after: folders of runs that should have ended before, because they make what both use.
    """

    place: str
    folder: str
    words: list[str]
    trainer: str
    dataset: str
    config: str
    attack: str
    shots: int
    seed: int
    role: str
    settings: Settings
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def kind(self) -> tuple:
        """What jobs have in common that take about the same time."""
        return self.trainer, self.dataset, self.config, self.attack, self.role, self.shots

    @property
    def name(self) -> str:
        """The job in words."""
        shots = {0: "zero-shot", -1: "all shots", 1: "1 shot"}.get(self.shots)
        parts = (self.trainer, self.dataset, shots or f"{self.shots} shots", self.config)
        return " ".join([*parts, self.attack, *filter(None, [self.role]), f"seed {self.seed}"])


@dataclass
class Sweep:
    """What is to be run; every combination of these.

    Attributes:
        methods: (trainer, ending of its config's name).
        shots: images per class, -1 for all of them.
        attacks: threat models; "" for the default of each method's script, ``common`` for that
            of ``scripts/all.sh``.
        targets: data sets to test on under xd and dg; empty for those of :data:`TARGETS`.
        opts: overrides, KEY VALUE in turn.
        shares: trainers whose tests share features of one frozen image tower.
        root, output, configs: absolute folders.
    """

    methods: Sequence[tuple[str, str]]
    datasets: Sequence[str]
    shots: Sequence[int]
    seeds: Sequence[int]
    root: str
    output: str
    configs: Path
    protocols: Sequence[str] = ("few_shot",)
    backbones: Sequence[str] = ("tiny",)
    attacks: Sequence[str] = ("",)
    targets: Sequence[str] = ()
    opts: Sequence[str] = ()
    shares: Iterable[str] = ()
    made: dict[str, Job] = field(default_factory=dict)
    first: dict[tuple, str] = field(default_factory=dict)  # shared features -> who makes them

    def jobs(self) -> list[Job]:
        """Return the jobs, one per run folder, each behind those that it waits for."""
        self.made, self.first = {}, {}
        files = (self.configs / "trainers").glob("*/*.yaml")
        known = {(path.parent.name, path.stem) for path in files}
        # zero-shot first: what its test makes serves others; seed by seed, for early tables
        methods = sorted(self.methods, key=lambda method: method[0] != ZERO_SHOT)
        for seed, *rest in itertools.product(
            self.seeds, self.backbones, self.attacks, self.datasets, self.protocols, methods
        ):
            backbone, attack, dataset, protocol, (trainer, ending) = rest
            config = backbone + ending
            if (trainer, config) not in known:  # of all trainers, one without this backbone
                continue
            zero = trainer == ZERO_SHOT
            if zero and seed != self.seeds[0]:  # nothing is drawn: one seed says all
                continue
            for shots in (0,) if zero else self.shots:
                part = {"few_shot": self._few_shot, "base2new": self._base_to_new}.get(protocol)
                common = (trainer, dataset, shots, config)
                threat = self.threat(attack, trainer, config, dataset)
                if part:
                    part(*common, threat, seed)
                else:
                    self._beyond_source(protocol, *common, threat, seed)
        return list(self.made.values())

    def threat(self, attack: str, trainer: str, config: str, dataset: str) -> str:
        """Return the name of the threat model: the given one, or the default."""
        if attack not in ("", COMMON):
            return attack
        tiny = config.startswith("tiny")
        if trainer in ("AdvPT", ZERO_SHOT) and not attack:  # AdvPT's paper has one of its own
            return "advpt_tiny" if tiny else "advpt16"
        if not tiny:
            return "linf1"
        own = f"tiny_{dataset}"  # the built-in CLIP falls at another level on every data set
        return own if (self.configs / f"attacks/{own}.yaml").is_file() else "linf4_tiny"

    def _few_shot(self, trainer, dataset, shots, config, attack, seed) -> Job:
        opts = self._overrides(trainer, shots, config, attack)
        return self._add(trainer, dataset, shots, config, attack, seed, opts)

    def _base_to_new(self, trainer, dataset, shots, config, attack, seed) -> None:
        common = (trainer, dataset, shots, config, attack, seed)
        own = self._overrides(trainer, shots, config, attack)
        base, new = (["DATASET.SUBSAMPLE_CLASSES", half, *own] for half in ("base", "new"))
        trained = self._add(*common, base, role="base")
        self._add(*common, new, role="new", model="" if trainer == ZERO_SHOT else trained.folder)

    def _beyond_source(self, protocol, trainer, source, shots, config, attack, seed) -> None:
        opts = self._overrides(trainer, shots, config, attack)
        pairs = zip(opts[::2], opts[1::2], strict=True)
        shared = [word for pair in pairs if pair[0] not in SOURCE_ONLY for word in pair]
        trained = self._few_shot(trainer, source, shots, config, attack, seed)
        again, beyond = [], {}
        if trainer != ZERO_SHOT:  # whose test on the source is done, and as good for targets
            again = ["TEST.PROTOCOL", protocol]
            beyond = {"model": trained.folder, "origin": source, "role": protocol}
            common = (trainer, source, shots, config, attack, seed)
            self._add(*common, again + opts, **beyond)
        for target in self.targets or TARGETS[protocol, source]:
            common = (trainer, target, shots, config, attack, seed)
            self._add(*common, again + shared, **beyond)

    def _overrides(self, trainer: str, shots: int, config: str, attack: str) -> list[str]:
        """Return the overrides, with those that scripts give to AdvPT and CAPT."""
        opts, tiny = list(self.opts), config.startswith("tiny")
        if trainer == "AdvPT" and not attack.startswith(("advpt", "rap")):
            # its bank is made without text, whatever the test is
            size, step = ("2/255", "0.25/255") if tiny else ("8/255", "1/255")
            node = {
                "EPS": size,
                "ALPHA": step,
                "STEPS": "10",
                "OBJECTIVE": "embedding_kl",
                "TARGET": "embedding",
            }
            if attack.startswith("nap"):
                node["START"] = "uniform"
            opts = [w for key, v in node.items() for w in (f"ATTACK.TRAIN.{key}", v)] + opts
        if trainer == "CAPT" and not tiny and "OPTIM.MAX_EPOCH" not in opts:
            epochs = {1: "20", 2: "50", 4: "50"}.get(shots)
            opts += ["OPTIM.MAX_EPOCH", epochs] if epochs else []
        return opts

    def _add(
        self, trainer, dataset, shots, config, attack, seed, opts, *, model="", origin="", role=""
    ) -> Job:
        setting = f"{config}_{attack}_{shots}shots{variant(opts, origin)}"
        place = f"{dataset}/{trainer}/{setting}/seed{seed}"
        folder = f"{self.output}/{place}"
        if folder in self.made:
            return self.made[folder]
        cache, yamls = f"{self.output}/cache", f"{self.configs}"
        files = (
            f"{yamls}/datasets/{dataset}.yaml",
            f"{yamls}/trainers/{trainer}/{config}.yaml",
            f"{yamls}/attacks/{attack}.yaml",
        )
        keys = ["DATASET.NUM_SHOTS", str(shots), "DATASET.CACHE_DIR", cache]
        keys += ["DATASET.FEATURE_DIR", f"{cache}/banks", *opts]
        words = ["--root", self.root, "--seed", str(seed), "--trainer", trainer]
        for option, file in zip(("dataset", "", "attack"), files, strict=True):
            words += [f"--{option}-config-file" if option else "--config-file", file]
        words += ["--output-dir", folder]
        words += ["--eval-only", "--model-dir", model] if model else []
        settings = Settings(files, (*keys, "SEED", str(seed)))
        job = Job(
            place,
            folder,
            words + keys,
            trainer,
            dataset,
            config,
            attack,
            shots,
            seed,
            role,
            settings,
            needs=(model,) if model else (),
        )
        job.after = tuple(dict.fromkeys(self._makers(job, opts, bool(model))))
        self.made[folder] = job
        return job

    def _makers(self, job: Job, opts: list[str], tests_only: bool) -> Iterable[str]:
        """Yield the folders of earlier jobs that make features which this one uses."""
        split = next((opts[i + 1] for i in range(0, len(opts), 2) if "SUBSAMPLE" in opts[i]), "all")
        data = (job.dataset, split, job.config)
        keys = []
        if job.trainer in self.shares and job.settings.embeddings():
            keys.append(("test", *data, job.attack))
        if job.trainer == "AdvPT" and not tests_only:
            keys.append(("bank", *data, job.shots, job.seed, job.settings.training()))
        for key in keys:
            maker = self.first.setdefault(key, job.folder)
            if maker != job.folder:
                yield maker


def variant(opts: Sequence[str], origin: str = "") -> str:
    """Return the part of a folder's name that says the overrides, as scripts/common.sh writes it.

    Args:
        opts: KEY VALUE in turn.
        origin: the data set that was trained on, where it is another.
    """
    text = f"_from-{origin}" if origin else ""
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        text += f"_{key.rpartition('.')[2]}-{value}"
    safe = re.sub(rb"[^A-Za-z0-9._-]", b".", text.encode()).decode()
    return safe if len(safe) <= LONGEST else f"_opts-{cksum(safe.encode())}"


def cksum(data: bytes) -> int:
    """Return the POSIX ``cksum`` of ``data``."""
    length, tail = len(data), b""
    while length:
        tail += bytes([length & 0xFF])
        length >>= 8
    crc = 0
    for byte in data + tail:
        crc = (crc << 8 & 0xFFFFFFFF) ^ _CRC[crc >> 24 ^ byte]
    return ~crc & 0xFFFFFFFF


def _crc_of(byte: int) -> int:
    crc = byte << 24
    for _ in range(8):
        crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


_CRC = [_crc_of(byte) for byte in range(256)]
