"""The runs of a protocol: what is trained where, and which tests follow.

Nothing is started, and nothing is read but yaml files. A job's words are arguments of train.py.
"""

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ..config import identity, keys, shipped
from ..utils.errors import UserError, nearest
from . import protocols
from .protocols import ZERO_SHOT, is_tiny
from .settings import Settings

LONGEST = 80  # characters of a folder's name that overrides may take
Key = tuple[str, str]


@dataclass(slots=True)
class Job:
    """One run of train.py: a training with its test, or a further test of a finished run."""

    run: str  # folder of what is trained, absolute
    test: str  # whose record lies in the run's folder
    trainer: str  # this and the next five: for people
    dataset: str  # the tested one
    config: str
    attack: str
    shots: int
    seed: int
    role: str  # "", or the part of a protocol: base, new, xd, dg; ``test`` for further tests
    settings: Settings  # what the record of this job must say
    part: tuple[str, ...] = ()  # what it belongs to, outermost first; a failure ends its part alone
    words: list[str] = field(default_factory=list)  # arguments of train.py
    needs: Key | None = None  # the job that must be completed before; None for what trains
    after: tuple[Key, ...] = ()  # jobs that should have ended: they make what both use

    @property
    def key(self) -> Key:
        return self.run, self.test

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


Test = tuple[str, tuple[str, ...]]  # of a finished run: threat model, overrides KEY VALUE in turn


def method_names() -> list[str]:
    """Return the names of all methods: ours in the order of the tables, then a user's own."""
    ours = protocols.table("protocols")["methods"]
    return [*ours, *sorted(keys.METHODS.keys() - {trainer for trainer, _ in ours.values()})]


@dataclass
class Planner:
    """Makes the jobs of protocols, each once."""

    root: str  # folder of the data sets
    output: str  # folder of all results
    folder: str = ""  # of these runs in ``output``
    tests: Sequence[Test] = ()  # of every finished run, besides its own
    targets: Sequence[str] = ()  # data sets to test on under xd and dg; empty for the known ones
    source_only: Sequence[str] = ()  # keys of overrides that the targets do not get
    shares: Collection[str] = ()  # trainers whose tests share features of one frozen image tower
    made: dict[Key, Job] = field(default_factory=dict)
    trained: dict[str, Key] = field(default_factory=dict)  # run -> who trains it
    names: dict[tuple, tuple[str, str]] = field(default_factory=dict)  # parts of folders' names
    first: dict[tuple, Key] = field(default_factory=dict)  # shared features -> who makes them

    @cached_property
    def known_configs(self) -> dict[str, set[str]]:
        """Trainer -> names of its configs."""
        found: dict[str, set[str]] = {}
        for path in sorted((shipped.configs_folder() / "trainers").glob("*/*.yaml")):
            found.setdefault(path.parent.name, set()).add(path.stem)
        return found

    @cached_property
    def threats(self) -> set[str]:
        return {path.stem for path in (shipped.configs_folder() / "attacks").glob("*.yaml")}

    def dataset_file(self, name: str) -> str:
        """Return the config file of a data set; one of the folder we are in comes first."""
        own = Path("configs/datasets", f"{name}.yaml").absolute()
        return str(own if own.is_file() else shipped.configs_folder() / "datasets" / own.name)

    def dataset(self, word: str, where: str) -> str:
        """Return the full name of a data set, which must exist."""
        short = protocols.table("protocols")["datasets"]
        name = short.get(word, word)
        if not os.path.isfile(self.dataset_file(name)):
            ours = (path.stem for path in shipped.configs_folder().glob("datasets/*.yaml"))
            raise unknown("data set", word, {*short, *ours}, where)
        return name

    def method(self, word: str, where: str) -> tuple[str, str]:
        """Return (trainer, ending of its config) for the name of a method or a trainer."""
        ours = protocols.table("protocols")["methods"]
        names = {name.lower(): (name, "") for name in (*self.known_configs, *keys.METHODS)}
        found = (names | ours).get(word.lower())
        if not found:
            raise unknown("method", word, [*keys.METHODS, *ours], where)
        return tuple(found)

    def config(self, trainer: str, word: str, where: str) -> str:
        """Return the name of a trainer's config, which must exist."""
        there = self.known_configs.get(trainer, set())
        if word not in there:
            raise unknown(f"config of {trainer}", word, there, where)
        return word

    def known_threat(self, word: str, where: str, what: str = "threat model") -> str:
        """Return the name of a threat model, which must exist."""
        if word not in self.threats:
            raise unknown(what, word, self.threats, where)
        return word

    def threat(self, trainer: str, config: str, dataset: str) -> str:
        """Return the default threat model; of ``trainer`` "", one for all methods."""
        return protocols.default_threat(trainer, config, dataset, self.threats)

    def targets_of(self, protocol: str, source: str) -> list[str]:
        """Return the full names of the data sets that prompts from ``source`` are tested on."""
        known = protocols.table("protocols")["targets"][protocol].get(source, "").split()
        if not (self.targets or known):
            missing = f"no data sets to test on are known for source '{source}' under {protocol}"
            raise UserError(f"{missing}; name some: TARGETS='pets dtd' (--targets of a sweep)")
        return [self.dataset(name, "TARGETS") for name in self.targets or known]

    def add(self, protocol, trainer, dataset, shots, config, attack, seed, opts=(), part=()):
        """Return the jobs of one protocol for one method, data set and seed, in their order.

        Args:
            protocol: one of :data:`protocols.PROTOCOLS`.
            shots: images per class; -1 for all of them.
            attack: threat model; "" for the method's default.
            opts: overrides, KEY VALUE in turn.
            part: what the jobs belong to.
        """
        zero, opts = trainer == ZERO_SHOT, tuple(opts)
        attack = attack or self.threat(trainer, config, dataset)
        epochs = protocols.table("protocols")["epochs"].get(trainer, {}).get(shots)
        if epochs and not is_tiny(config) and "OPTIM.MAX_EPOCH" not in opts[::2]:
            opts += "OPTIM.MAX_EPOCH", epochs
        common = (trainer, config, attack, 0 if zero else shots, seed)
        half = "DATASET.SUBSAMPLE_CLASSES"
        if protocol == "base2new":
            jobs = self._train(*common, dataset, (half, "base", *opts), part, "base")
            return jobs + self._test(jobs[0], "new", dataset, (half, "new", *opts), "new")
        jobs = self._train(*common, dataset, opts, part)
        if protocol == "main":
            return jobs
        alone = {*protocols.table("protocols")["source_only"], *self.source_only}
        pairs = zip(opts[::2], opts[1::2], strict=True)
        shared = tuple(word for pair in pairs if pair[0] not in alone for word in pair)
        for target in self.targets_of(protocol, dataset):
            inner = (*part, f"{trainer}/{target}/seed{seed}")
            if zero:  # has no source: plain tests
                jobs += self._train(*common, target, shared, inner)
            else:
                own = ("TEST.PROTOCOL", protocol, *shared)
                source = replace(jobs[0], part=inner)
                jobs += self._test(source, f"{protocol}_{target}", target, own, protocol)
        return jobs

    def _train(self, trainer, config, attack, shots, seed, dataset, opts, part, role=""):
        """Return the job of a training with its test, and its further tests."""
        train = protocols.training_threat(trainer, config, attack)
        settings = self._settings(trainer, dataset, config, train, attack, shots, seed, opts)
        threat, variant = self._names(settings, train)
        where = f"{config}{threat}" + ("" if trainer == ZERO_SHOT else f"_{shots}shots") + variant
        home = f"{self.output}/{self.folder}".rstrip("/")
        run = f"{home}/{dataset}/{trainer}/{where}/seed{seed}"
        test = _test_name("", attack, opts)
        names = (run, test, trainer, dataset, config, attack, shots, seed, role)
        job = Job(*names, settings, tuple(part))
        job.words = ["--output-dir", run, "--test-name", test, *self._words(settings)]
        return [self._keep(job), *self._more(job, "", dataset, opts)]

    def _test(self, trained: Job, prefix, dataset, opts, role, attack="", more=True) -> list[Job]:
        """Return the job of a test of what ``trained`` trains, and further tests like it."""
        attack, train = attack or trained.attack, Path(trained.settings.files[2]).stem
        common = (trained.trainer, dataset, trained.config, train, attack)
        settings = self._settings(*common, trained.shots, trained.seed, opts)
        test = _test_name(prefix, attack, opts)
        job = replace(trained, test=test, dataset=dataset, role=role, attack=attack, after=())
        job.settings, job.needs = settings, trained.needs or trained.key
        job.words = ["--eval-only", "--model-dir", job.run, "--test-name", test]
        job.words += self._words(settings)
        return [self._keep(job), *(self._more(job, prefix, dataset, opts) if more else ())]

    def _more(self, job: Job, prefix: str, dataset: str, opts) -> list[Job]:
        """Return the jobs of the tests that every finished run gets."""
        pairs = zip(opts[::2], opts[1::2], strict=True)
        kept = tuple(w for pair in pairs if not pair[0].startswith("ATTACK.TEST.") for w in pair)
        jobs = []
        for threat, own in self.tests:
            name, role = _test_name(prefix, threat, own), job.role or "test"
            inner = replace(job, part=(*job.part, f"{job.trainer}/{dataset}/seed{job.seed}/{name}"))
            jobs += self._test(inner, prefix, dataset, (*kept, *own), role, threat, more=False)
        return jobs

    def _settings(self, trainer, dataset, config, train, attack, shots, seed, opts) -> Settings:
        home = shipped.configs_folder()
        files = (f"{home}/trainers/{trainer}/{config}.yaml", f"{home}/attacks/{train}.yaml")
        test = f"{home}/attacks/{attack}.yaml" if attack != train else ""
        files = (self.dataset_file(dataset), *files)
        return Settings(trainer, files, test, tuple(opts), shots, seed)

    def _words(self, settings: Settings) -> list[str]:
        data, trainer, threat = settings.files
        words = ["--root", self.root, "--seed", str(settings.seed), "--trainer", settings.trainer]
        words += ["--dataset-config-file", data, "--config-file", trainer]
        words += ["--attack-config-file", threat]
        test = settings.test_file
        words += ["--test-attack-config-file", test] if test else []
        cache = f"{self.output}/cache"  # few-shot draws, drawings and banks: what runs can share
        words += ["DATASET.NUM_SHOTS", str(settings.shots), "DATASET.CACHE_DIR", cache]
        return [*words, "DATASET.FEATURE_DIR", f"{cache}/banks", *settings.opts]

    def _names(self, settings: Settings, threat: str) -> tuple[str, str]:
        """Return the parts of a run folder's name that say threat model and overrides."""
        key = (settings.trainer, settings.files, settings.opts)
        if key not in self.names:
            used = settings.training()
            given = dict(zip(settings.opts[::2], settings.opts[1::2], strict=True))
            own = [f"_{k.rpartition('.')[2]}-{v}" for k, v in given.items() if k in used]
            base = threat.removesuffix("_aa")  # which differs in its test alone
            threat = base if base in self.threats else threat
            self.names[key] = f"_{threat}" if settings.attacked() else "", _shortened("".join(own))
        return self.names[key]

    def _keep(self, job: Job) -> Job:
        """Return the job, or the same one that was made before."""
        if job.key in self.made:
            return self.made[job.key]
        maker = self.trained.setdefault(job.run, job.key)
        if maker != job.key:  # a run is trained once, whatever is tested
            job.needs = maker
        self.made[job.key] = job
        if job.trainer in self.shares and job.settings.embeddings():  # made once for all
            data = (job.dataset, job.settings.asked()["DATASET.SUBSAMPLE_CLASSES"])
            first = self.first.setdefault((*data, job.config, job.attack), job.key)
            job.after = (first,) if first != job.key else ()
        return job


def unknown(what: str, word: str, known: Iterable[str], where: str) -> UserError:
    """Return the error for a name that does not exist."""
    return UserError(f"there is no {what} '{word}'; check {where}.{nearest(word, known)}")


def _test_name(prefix: str, attack: str, opts: Sequence[str]) -> str:
    given = dict(zip(opts[::2], opts[1::2], strict=True))
    tested = {k: v for k, v in given.items() if identity.is_test(k) and k != "TEST.PROTOCOL"}
    defence = tested.pop("TESTTIME.NAME", "")
    own = "".join(f"_{k}-{v}" for k, v in tested.items() if not identity.is_neutral(k))
    return "_".join(filter(None, [prefix, attack, defence])) + _shortened(own)


def _shortened(text: str) -> str:
    """Return text that suits a folder's name; a digest in place of a long one."""
    safe = re.sub(r"[^A-Za-z0-9._-]", ".", text)
    if len(safe) <= LONGEST:
        return safe
    return f"_opts-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def parse_tests(text: str, planner: Planner) -> list[Test]:
    """Return the tests of ``linf1_aa linf1+DEFENCE.NAME=jpeg``; UserError where one is wrong."""
    found = []
    for word in text.split():
        threat, *settings = word.split("+")
        planner.known_threat(threat, "TESTS", "test")
        if wrong := [setting for setting in settings if "=" not in setting]:
            raise UserError(f"TESTS has '{wrong[0]}' in '{word}', expected KEY=VALUE")
        found.append((threat, tuple(p for s in settings for p in s.split("=", 1))))
    return found
