"""What the scripts' commands do: jobs to run in this order, and tables to show afterwards.

Everything on the command line and in the environment is checked here, before any work; what is
wrong raises a UserError.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..testtime import METHODS
from ..utils.errors import UserError
from . import protocols
from .jobs import Job, Planner, method_names, parse_tests, unknown
from .protocols import PROTOCOLS, ZERO_SHOT, is_tiny


@dataclass
class Step:
    """Jobs in their order, and commands of advprompt that show what they left.

    A command is a list of words; of its first words those with a slash are folders, which may be
    patterns, and are left out where there are none.
    """

    jobs: list[Job]
    shows: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Call:
    """The words DATASET SHOTS [CFG] [KEY VALUE ...], checked."""

    dataset: str
    shots: int
    config: str
    opts: tuple[str, ...] = ()


class Context:
    """The environment variables that docs/protocols.md describes; ``usage`` is for errors."""

    def __init__(self, env: Mapping[str, str], usage: str):
        self.env, self.usage, self.notes = env, usage, set()
        self.root = _absolute(env.get("DATA") or "data")
        self.output = _absolute(env.get("OUTPUT") or "output")
        seeds = self.words("SEEDS", "1 2 3")
        if wrong := [word for word in seeds if not word.isdigit()]:
            expected = "numbers with blanks between them, such as '1 2 3'"
            raise UserError(f"SEEDS has '{wrong[0]}', expected {expected}")
        self.seeds = [int(word) for word in seeds]
        self.targets, self.source_only = self.words("TARGETS"), self.words("SOURCE_ONLY")
        self.names = Planner(self.root, self.output)  # which knows the names of everything
        self.attack = env.get("ATTACK", "")
        for word in self.targets:
            self.names.dataset(word, "TARGETS")
        if self.attack:
            self.names.known_threat(self.attack, "ATTACK")
        self.tests = env.get("TESTS", "")

    def words(self, name: str, default: str = "") -> list[str]:
        return (self.env.get(name) or default).split()

    def shots(self, word: str, where: str = "SHOTS is") -> int:
        """Return a number of images per class, -1 for all."""
        word = "-1" if word == "all" else word
        if not re.fullmatch("-1|[1-9][0-9]*", word):
            raise UserError(f"{where} '{word}', expected a number such as 16, or all; {self.usage}")
        return int(word)

    def note(self, text: str) -> None:
        """Say something on stderr, once."""
        if text not in self.notes:
            self.notes.add(text)
            print(f"note: {text}", file=sys.stderr)

    def call(self, words: Sequence[str], *, zero: bool = False) -> Call:
        """Read DATASET SHOTS [CFG] [KEY VALUE ...]; zero-shot CLIP needs no SHOTS."""
        dataset, *words = words or [""]
        if not dataset or not (words or zero):
            raise UserError(self.usage)
        dataset, shots = self.names.dataset(dataset, "DATASET"), 0
        if not zero or (words and re.fullmatch("-1|[0-9]+|all", words[0])):
            number, *words = words
            shots = 0 if zero else self.shots(number)
        configs, opts = self.configs(words)
        config = configs.pop(0) if configs else self.default_config()
        return Call(dataset, shots, config, self.pairs([*configs, *opts]))

    def default_config(self) -> str:
        """Return the config of a call that names none: ViT-B/16 if its weights are there."""
        if (Path.home() / ".cache/clip/ViT-B-16.pt").is_file():
            return "vit_b16"
        self.note(
            "no ViT-B-16.pt in ~/.cache/clip, so this runs the built-in small CLIP (config "
            "'tiny'); name the config 'vit_b16' to insist on ViT-B/16"
        )
        return "tiny"

    @staticmethod
    def configs(words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the words before the first key, and the others."""
        keys = [i for i, word in enumerate(words) if "." in word or word == "SEED"]
        first = min(keys, default=len(words))
        return list(words[:first]), list(words[first:])

    def pairs(self, words: Sequence[str]) -> tuple[str, ...]:
        """Return overrides, which come in pairs."""
        if len(words) % 2:
            alone = f"overrides come in pairs KEY VALUE, but '{words[-1]}' stands alone"
            raise UserError(f"{alone}; {self.usage}")
        return tuple(words)

    def planner(self, tests: str | None = None, source_only=(), folder: str = "") -> Planner:
        """Return a planner with the tests that a text such as TESTS names."""
        found = parse_tests(self.tests if tests is None else tests, self.names)
        alone = [*self.source_only, *source_only]
        return Planner(self.root, self.output, folder, found, self.targets, alone)


def run(words: Sequence[str], context: Context) -> list[Step]:
    """METHOD PROTOCOL DATASET SHOTS [CFG] [KEY VALUE ...]: one method on all seeds.

    PROTOCOL is one of main, base2new, xd, dg; or ablate_NAME, which a method of one's own has
    after it as KEY=VALUES.
    """
    if len(words) < 2:
        raise UserError(context.usage)
    method, protocol, *words = words
    trainer, _ = context.names.method(method, "METHOD")
    if protocol.startswith("ablate_"):
        name, own = f"{method.lower()}_{protocol.removeprefix('ablate_')}", None
        if words and "=" in words[0]:
            key, values = words[0].split("=", 1)
            own, words = {"key": key, "values": values}, words[1:]
        return [ablation(name, context, context.call(words), context.attack, own)]
    call = context.call(words, zero=trainer == ZERO_SHOT)
    return [methods([method], context, call, protocol, context.attack, own_threat=True)]


def every_method(words: Sequence[str], context: Context) -> list[Step]:
    """DATASET SHOTS [CFG] [KEY VALUE ...]: all methods, or METHODS, under one threat model."""
    chosen, protocol = context.words("METHODS"), context.env.get("PROTOCOL") or "main"
    call, lenient = context.call(words), not chosen
    names = chosen or method_names()
    return [methods(names, context, call, protocol, context.attack, lenient=lenient)]


def methods(
    names: Sequence[str],
    context: Context,
    call: Call,
    protocol: str = "main",
    attack: str = "",
    *,
    own_threat: bool = False,
    lenient: bool = False,
    part: Sequence[str] = (),
    planner: Planner | None = None,
    role: str = "",
) -> Step:
    """Return some methods on all seeds, and the tables of what they train on.

    Args:
        attack: threat model; "" for the default of the config and the data set.
        own_threat: the default is the method's own.
        lenient: leave out methods without this config; else they are refused.
        role: keep the jobs of this role alone.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS, "PROTOCOL: main, base2new, xd or dg")
    planner = planner or context.planner()
    if not own_threat:
        if lenient:
            planner.config(ZERO_SHOT, call.config, "CFG")
        attack = attack or planner.threat("", call.config, call.dataset)
    jobs = []
    for name in names:
        trainer, ending = planner.method(name, "METHODS")
        config, zero = call.config + ending, trainer == ZERO_SHOT
        if lenient and config not in planner.known_configs.get(trainer, ()):
            context.note(f"{trainer} has no config '{config}' and is left out")
            continue
        planner.config(trainer, config, "CFG")
        inner = tuple(part) if own_threat else (*part, name)
        for seed in context.seeds[: 1 if zero else None]:  # nothing is drawn: one says all
            common = (protocol, trainer, call.dataset, call.shots, config, attack, seed)
            jobs += planner.add(*common, call.opts, inner)
    homes = dict.fromkeys(os.path.relpath(job.run, context.output).split("/")[0] for job in jobs)
    report = ["report", *(f"{context.output}/{name}" for name in homes)]
    return Step([job for job in jobs if role in ("", job.role)], [report])


def ablation(name, context, call, attack, given=None, part=(), planner=None) -> Step:
    """Return all values of an ablation on all seeds, its table and its curve.

    Runs, table and curve.png lie in OUTPUT/ablations/NAME/DATASET, apart from the main results.
    ``given`` is an ablation that is none of configs/experiments/ablations.yaml.
    """
    known = protocols.table("ablations")
    what = given or known.get(name)
    if not what:
        raise unknown("ablation", name, known, context.usage)
    planner = planner or context.planner(folder=f"ablations/{name}")
    trainer, ending = planner.method(name.partition("_")[0], "METHOD")
    config = planner.config(trainer, call.config + ending, "CFG")
    if what["key"] in call.opts[::2]:
        raise UserError(f"{what['key']} is what this ablation varies; set VALUES instead")
    values = (is_tiny(config) and what.get("tiny")) or what["values"]
    runs = [
        (what["key"], value, *fixed.split())
        for fixed in what.get("fixed", [""])
        for value in context.words("VALUES", str(values))
    ]
    jobs = []
    for own in (*runs, *(more.split() for more in what.get("more", []))):
        for seed in context.seeds:
            common = ("main", trainer, call.dataset, call.shots, config, attack, seed)
            jobs += planner.add(*common, (*own, *call.opts), part)
    home = f"{context.output}/ablations/{name}/{call.dataset}"
    curve = ["curves", home, "--over", what["key"], "--out", f"{home}/curve.png"]
    return Step(jobs, [["report", home], curve])


def reproduce(words: Sequence[str], context: Context) -> list[Step]:
    """PAPER [CFG ...] [KEY VALUE ...]: a paper's tables, of configs/experiments/papers.yaml."""
    papers = protocols.table("papers")
    name, *words = words or [""]
    if name not in papers:
        raise UserError((f"there is no paper '{name}' here; " if name else "") + context.usage)
    paper, names = papers[name], context.names
    configs, opts = context.configs(words)
    configs, opts = configs or paper["configs"].split(), context.pairs(opts)
    shots = context.words("SHOTS", str(paper.get("shots", "16")))
    last = shots[-1] if context.env.get("SHOTS") else str(paper.get("source_shots", "16"))
    numbers = [context.shots(word, "SHOTS has") for word in shots]
    chosen, threats = context.words("METHODS", paper["methods"]), context.words("ATTACKS")
    tests = paper.get("tests", ["aa"])
    if "TESTS" in context.env:
        tests = context.words("TESTS")
        for test in tests:
            if test.partition("+")[0] not in ("", "aa"):
                names.known_threat(test.partition("+")[0], "TESTS", "test")
    model = context.env.get("DIFFPURE", "")
    tests = [test.replace("{DIFFPURE}", model) for test in tests if model or "{" not in test]
    sets = context.words("DATASETS", paper["datasets"])
    sets = [names.dataset(word, "DATASETS") for word in sets]
    for threat in threats:
        names.known_threat(threat, "ATTACKS")

    def threats_of(config: str, dataset: str) -> list[str]:
        if threats or not is_tiny(config):
            return threats or paper["threats"].split()
        return [names.threat("AdvPT" if name == "advpt" else "", config, dataset)]

    def part(protocol: str, config: str, dataset: str, number: int) -> list[Step]:
        special, steps = paper.get(dataset, {}), []  # of one data set
        opts_of, alone = special.get("opts", "").split(), []
        if special and not {"TEST.SUBSET", "TEST.FIRST"} & set(opts[::2]):
            opts_of, alone = opts_of + special["images"].split(), ["TEST.SUBSET"]
        call = Call(dataset, number, config, (*opts_of, *opts))
        for threat in threats_of(config, dataset):
            planner = context.planner(_that_apply(tests, config, threat, context), alone)
            count = "all" if number == -1 else number
            label = f"{protocol}/{dataset}/{config}/{threat}/{count}shots"
            own = {"lenient": not context.env.get("METHODS"), "part": [label], "planner": planner}
            steps.append(methods(chosen, context, call, protocol, threat, **own))
        return steps

    source = "imagenet" if "imagenet" in sets else sets[0]
    needed, beyond = set(sets), []
    for protocol in paper.get("beyond", "").split():
        try:
            needed |= {*context.planner().targets_of(protocol, source)}
            beyond.append(protocol)
        except UserError as error:
            context.note(f"{protocol} is left out: {error}")
    needed = sorted(name for name in needed if not name.startswith("shapes"))  # which are drawn
    steps = [Step([], [["data", "check", *needed]])] if needed else []
    for config in configs:
        for dataset in sets:
            for number in numbers:
                steps += part("main", config, dataset, number)
        for protocol in beyond:
            steps += part(protocol, config, source, context.shots(last))
        if what := paper.get("ablation"):
            call = Call(sets[0], context.shots(last), config, opts)
            planner = context.planner("", folder=f"ablations/{what}")
            label, threat = f"{what}/{sets[0]}/{config}", threats_of(config, sets[0])[0]
            steps.append(ablation(what, context, call, threat, part=[label], planner=planner))
    return steps


def _that_apply(tests: Sequence[str], config: str, threat: str, context: Context) -> str:
    """Return a paper's tests that apply to a threat model and a config, as TESTS names them."""
    kept = []
    for test in tests:
        first, plus, rest = test.partition("+")
        full = {"": threat, "aa": f"{threat}_aa"}.get(first, first)
        why = "" if full in context.names.threats else "there is no such threat model"
        if is_tiny(config) and full.startswith("rap"):
            why = f"its surrogate takes larger images than config '{config}'"
        if why:
            context.note(f"test {full} is left out: {why}")
        else:
            kept.append(f"{full}{plus}{rest}")
    return " ".join(kept)


def testtime(words: Sequence[str], context: Context) -> list[Step]:
    """METHOD DATASET [CFG] [KEY VALUE ...]: zero-shot CLIP under a test-time defence, untrained."""
    method, *words = words or [""]
    if method not in METHODS:
        raise unknown("test-time defence", method, METHODS, context.usage)
    call, table = context.call(words, zero=True), protocols.table("testtime")
    own = f"TESTTIME.NAME {method} {table['opts']} {table['tiny'] * is_tiny(call.config)}".split()
    call = replace(call, opts=(*own, *call.opts))
    return [methods(["zsclip"], context, call, attack=context.attack)]


def results(words: Sequence[str], context: Context) -> list[Step]:
    """Every run of configs/experiments/results.yaml, seed by seed, and what is shown of them."""
    if words:
        raise UserError(context.usage)
    table = protocols.table("results")
    page = Path(_absolute(context.env.get("PAGE") or "docs/results.md"))
    places = {"output": context.output, "page": page, "folder": page.parent}
    places["stem"] = page.with_suffix("")
    steps, seeds = [], context.seeds
    for seed in seeds:
        context.seeds = [seed]
        for entry in table["runs"]:
            if entry.get("seed", seed) != seed:
                continue
            opts = tuple(f"{table['opts']} {entry.get('opts', '')}".split())
            call = Call(entry["dataset"], table["shots"], entry["config"], opts)
            if name := entry.get("ablation"):
                planner = context.planner("", folder=f"ablations/{name}")
                steps.append(ablation(name, context, call, "", part=[name], planner=planner))
                continue
            protocol, names = entry.get("protocol", "main"), entry.get("methods", "").split()
            own = {"role": entry.get("role", ""), "lenient": not names}
            own["part"] = [f"{protocol}/{call.dataset}/{call.config}"]
            own["planner"] = context.planner(entry.get("tests", ""))
            names = names or list(protocols.table("protocols")["methods"])
            steps.append(methods(names, context, call, protocol, **own))
        steps.append(Step([], [shlex.split(show.format(**places)) for show in table["show"]]))
    context.seeds = seeds
    return steps


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
