"""Many runs: trainers x data sets x shots x seeds, some at a time, and their tables in the end.

    python -m advprompt sweep --trainers zsclip advpt naptuning --datasets shapes eurosat \\
        --shots 1 16 --seeds 1 2 3 --config-file tiny --root $DATA --output output --dry-run

Runs, folders and records are those of scripts/<method>/<protocol>.sh: what is completed is
skipped, what was cut goes on. docs/sweep.md has the rest.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from ..cli import robustness
from ..config import host, merging, shipped
from ..config import keys as config
from ..config.keys import extend_cfg
from ..config.shipped import CLONE
from ..report import render
from ..utils import errors
from ..utils.entry import run_tool
from .jobs import COMMON, METHODS, PROTOCOLS, SHORT, TARGETS, ZERO_SHOT, Job, Sweep
from .pool import Local, Pool, cores, failures
from .slurm import Slurm
from .state import Place, state_of
from .view import view

CORES_PER_JOB = 4  # on a CPU, where --jobs is not given
OWN_KEYS = {  # what the sweep sets itself
    "SEED": "--seeds",
    "DATASET.NUM_SHOTS": "--shots",
    "DATASET.SUBSAMPLE_CLASSES": "--protocols",
    "TEST.PROTOCOL": "--protocols",
    "DATASET.NAME": "--datasets",
    "TRAINER.NAME": "--trainers",
    "OUTPUT_DIR": "--output",
    "DATASET.ROOT": "--root",
    merging.THREAT: "--attack-config-file",
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="sweep", description=__doc__.split("\n")[0])
    many = {"nargs": "+", "metavar": "NAME"}
    p.add_argument("--trainers", required=True, **many, help="such as NAPTuning; or: all")
    p.add_argument("--datasets", required=True, **many, help="short or full names")
    p.add_argument("--shots", nargs="+", default=["16"], help="numbers, or: all (default: 16)")
    p.add_argument("--seeds", nargs="+", default=["1", "2", "3"], help="default: 1 2 3")
    p.add_argument("--protocols", **many, default=["few_shot"], help=" ".join(PROTOCOLS))
    p.add_argument(
        "--config-file",
        "--config",
        "--backbone",
        dest="config_file",
        **many,
        help="configs of the trainers, such as vit_b16",
    )
    p.add_argument(
        "--attack-config-file",
        default=[""],
        **many,
        help="threat models of configs/attacks (default: each method's own; "
        f"'{COMMON}': one for all methods, as in scripts/all.sh)",
    )
    p.add_argument("--targets", default=[], **many, help="data sets tested under xd and dg")
    p.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides")
    p.add_argument("--root", default=os.environ.get("DATA", "data"), help="folder of the data sets")
    p.add_argument("--output", default=os.environ.get("OUTPUT", "output"), help="of all runs")
    p.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help=f"at a time (default: one per GPU, else per {CORES_PER_JOB} CPU cores; 32 on Slurm)",
    )
    p.add_argument("--gpus", default="all", help="all, none, or indices such as 0,1")
    p.add_argument("--retries", type=int, default=1, help="of a run that failed (default: 1)")
    p.add_argument("--dry-run", action="store_true", help="list the runs and their states")
    p.add_argument("--slurm", action="store_true", help="submit through submitit")
    p.add_argument("--partition", help="of Slurm")
    p.add_argument("--time", default="720", help="of Slurm, per run: minutes or H:MM:SS")
    p.add_argument(
        "--slurm-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="further parameters of submitit, such as slurm_account=vision",
    )
    return p


def plan(args: argparse.Namespace) -> Sweep:
    """Return the sweep that the command line describes.

    Raises:
        UserError: an argument is unknown or makes no sense.
    """
    folder = shipped.configs_folder()
    sets = [SHORT.get(name, name) for name in (*args.datasets, *args.targets)]
    known = {path.stem for path in folder.glob("datasets/*.yaml")}
    for name in sets:
        _known("data set", name, known, "--datasets or --targets")
    for name in args.protocols:
        _known("protocol", name, PROTOCOLS, "--protocols")
    threats = {path.stem for path in folder.glob("attacks/*.yaml")}
    attacks = [_threat(name, folder / "attacks") for name in args.attack_config_file]
    for name in attacks:
        _known("threat model", name, {*threats, COMMON, ""}, "--attack-config-file")
    datasets, targets = sets[: len(args.datasets)], sets[len(args.datasets) :]
    for protocol in {"xd", "dg"} & set(args.protocols):
        for name in datasets:
            if not targets and (protocol, name) not in TARGETS:
                raise errors.UserError(
                    f"no data sets to test on are known for source '{name}' under {protocol}; name "
                    "some with --targets, or give this protocol a sweep of its own"
                )
    methods = _methods(args.trainers)
    backbones = args.config_file or [_default_backbone()]
    everyone = "all" in map(str.lower, args.trainers)
    widest = {path.stem for path in folder.glob(f"trainers/{ZERO_SHOT}/*.yaml")}
    for trainer, ending in methods:
        there = {path.stem for path in folder.glob(f"trainers/{trainer}/*.yaml")}
        for name in backbones:
            if everyone and name in widest and f"{name}{ending}" not in there:
                print(f"note: {trainer} has no config '{name}{ending}' and is left out")
            else:
                _known(f"config of {trainer}", f"{name}{ending}", there, "--config-file")
    seeds = [_integer(word, "--seeds", 0) for word in args.seeds]
    shots = [-1 if word == "all" else _integer(word, "--shots", 1) for word in args.shots]
    if args.retries < 0:
        raise errors.UserError(f"--retries is {args.retries}, expected 0 or more")
    _check_overrides(args.opts)
    output = os.path.abspath(os.path.expanduser(args.output))
    return Sweep(
        methods,
        _once(datasets),
        _once(shots),
        _once(seeds),
        _root(args.root, sets, folder),
        output,
        folder,
        _once(args.protocols),
        _once(backbones),
        _once(attacks),
        _once(targets),
        args.opts,
        {n for n, method in config.METHODS.items() if method.frozen_image_tower},
    )


def _known(what: str, name: str, choices, option: str) -> None:
    if name not in choices:
        hint = errors.nearest(name, filter(None, choices))
        raise errors.UserError(f"{what} '{name}' ({option}) is unknown.{hint}")


def _threat(name: str, folder: Path) -> str:
    """Return the name of a threat model, for its file in ``folder`` as well."""
    path = Path(name)
    return path.stem if path.name == name or path.resolve().parent == folder else name


def _once(words: Sequence) -> list:
    return list(dict.fromkeys(words))


def _methods(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return (trainer, ending of its config) for names of trainers or of their scripts."""
    names = {name.lower(): (name, "") for name in config.METHODS} | METHODS
    found = []
    for word in words:
        if word.lower() == "all":
            found += METHODS.values()
            continue
        if word.lower() not in names:
            choices = {*config.METHODS, "tecoa_finetune", "all"}
            _known("trainer", word, choices, "--trainers")
        found.append(names[word.lower()])
    return _once(found)


def _integer(word: str, option: str, least: int) -> int:
    try:
        value = int(word)
    except ValueError:
        value = least - 1
    if value >= least:
        return value
    also = " (zero-shot CLIP is the trainer 'zsclip', which needs none)" if word == "0" else ""
    other = ", or all" if option == "--shots" else ""
    raise errors.UserError(
        f"{option} has '{word}', expected whole numbers of at least {least}{other}{also}"
    )


def _default_backbone() -> str:
    """Return vit_b16 where its weights are at hand, else the built-in CLIP, as the scripts do."""
    if (Path.home() / ".cache/clip/ViT-B-16.pt").is_file():
        return "vit_b16"
    print(
        "note: no ViT-B-16.pt in ~/.cache/clip, so this runs the built-in small CLIP (config "
        "'tiny'); give --config-file vit_b16 to insist on ViT-B/16",
        file=sys.stderr,
    )
    return "tiny"


def _check_overrides(opts: Sequence[str]) -> None:
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    host.extend_cfg(cfg)  # a fork's keys, where it is around us
    extend_cfg(cfg)
    merging.merge_opts(cfg, list(opts))
    for key in opts[::2]:
        if key in OWN_KEYS:
            raise errors.UserError(f"--opts has {key}, which the sweep sets; use {OWN_KEYS[key]}")


def _root(word: str, names: Sequence[str], folder: Path) -> str:
    """Return the absolute folder of the data sets; drawn ones do without it."""
    root = os.path.abspath(os.path.expanduser(word))
    drawn = [name for name in names if name.startswith("shapes")]
    if not os.path.isdir(root) and len(drawn) < len(names):
        raise errors.UserError(
            f"the folder of the data sets, '{root}', does not exist; give --root (or set DATA)"
        )
    return root


def check_data(described: Sweep, todo: Sequence[Job]) -> None:
    """Look whether the data sets are there, before every run of one finds out by itself.

    Raises:
        UserError: the folder of a data set does not exist.
    """
    from dassl.config import get_cfg_default
    from dassl.data.datasets import DATASET_REGISTRY

    robustness.register_datasets()
    for name in sorted({job.dataset for job in todo}):
        cfg = get_cfg_default()
        host.extend_cfg(cfg)
        extend_cfg(cfg)
        merging.merge_file(cfg, described.configs / f"datasets/{name}.yaml")
        merging.merge_opts(cfg, list(described.opts))
        made = DATASET_REGISTRY.get(cfg.DATASET.NAME)
        if hasattr(made, "counts") or not hasattr(made, "locate"):  # drawn, or a fork's own
            continue
        data = object.__new__(made)  # without its images, which __init__ reads
        data.name, data.root = made.__name__, Path(described.root)
        data.locate(cfg)


def command(job: Job) -> list[str]:
    """Return what to start for a job: train.py of the clone, else ``advprompt train``."""
    if CLONE and (CLONE / "train.py").is_file():
        return [sys.executable, "train.py", *job.words]
    return [sys.executable, "-m", f"{__package__}.train", *job.words]


def gpus(word: str) -> list[str]:
    """Return the indices of the GPUs to use; none where there are none.

    Raises:
        UserError: ``word`` is neither all, nor none, nor a list of indices.
    """
    if word == "none":
        return []
    if word != "all":
        chosen = word.split(",")
        if not all(index.isdigit() for index in chosen) or len(set(chosen)) < len(chosen):
            raise errors.UserError(
                f"--gpus is '{word}', expected all, none, or indices such as 0,1"
            )
        return chosen
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [index for index in visible.split(",") if index not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(found))]


def launcher(args: argparse.Namespace, output: str) -> Local | Slurm:
    """Return where the jobs run.

    Raises:
        UserError: --jobs, --gpus or --time is no such thing, or there is no Slurm.
    """
    if args.jobs is not None and args.jobs < 1:
        raise errors.UserError(f"--jobs is {args.jobs}, expected 1 or more")
    cwd = str(CLONE) if CLONE else None
    if args.slurm:
        options = {"gpus_per_node": 1, "slurm_partition": args.partition} | _options(args)
        options = {key: value for key, value in options.items() if value is not None}
        return Slurm(args.jobs or 32, output, minutes=_minutes(args.time), cwd=cwd, **options)
    devices = gpus(args.gpus)
    return Local(args.jobs or len(devices) or max(cores() // CORES_PER_JOB, 1), devices, cwd)


def _options(args: argparse.Namespace) -> dict:
    for text in args.slurm_options:
        if "=" not in text:
            raise errors.UserError(f"--slurm-options has '{text}', expected KEY=VALUE")
    pairs = (text.split("=", 1) for text in args.slurm_options)
    return {key: int(value) if value.isdigit() else value for key, value in pairs}


def _minutes(text: str) -> int:
    parts = text.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) not in (1, 3):
        raise errors.UserError(f"--time is '{text}', expected minutes or H:MM:SS")
    if len(parts) == 1:
        return max(int(parts[0]), 1)
    return max(int(parts[0]) * 60 + int(parts[1]) + (int(parts[2]) > 0), 1)


def listing(todo: Sequence[Job], place: Place) -> str:
    """Return every job with its state, and the totals."""
    rows, counts = [], Counter()
    for job in todo:
        state = state_of(job)
        if state != "done" and place.busy(job):
            state = "running"
        elif state != "done" and place.last.get(job.place, {}).get("event") == "failed":
            state = "failed"  # last time; a sweep tries it again
        counts[state] += 1
        rows.append((state, job.name, job.place))
    table = tabulate(rows, ["", "run", f"folder in {place.output}"], disable_numparse=True)
    order = {"run": "to run", "resume": "to resume", "failed": "failed before, to run again"}
    order |= {"other": "completed with other settings, which train.py will refuse"}
    order |= {"running": "running", "done": "done"}
    said = ", ".join(f"{counts[s]} {words}" for s, words in order.items() if counts[s])
    return f"{table}\n\n{len(todo)} runs: {said}."


def note_threats(todo: Sequence[Job]) -> None:
    """Say on stderr if methods are tested under threat models that share no table."""
    used: dict[tuple, set[str]] = {}
    for job in todo:
        used.setdefault((job.dataset, job.config.removesuffix("_finetune")), set()).add(job.attack)
    several = [names for names in used.values() if len(names) > 1]
    if several:
        print(
            f"note: methods differ in their threat models ({', '.join(sorted(several[0]))}), so "
            f"that their figures share no table; --attack-config-file {COMMON} gives them one",
            file=sys.stderr,
        )


def main(argv: list[str]) -> int:
    """Run what the command line describes; 1 if any run failed."""
    args = parser().parse_args(argv)
    described = plan(args)
    todo = described.jobs()
    if args.attack_config_file == [""]:
        note_threats(todo)
    place = Place(described.output)
    if args.dry_run:
        print(listing(todo, place.read()))
        return 0
    slots = launcher(args, described.output)
    check_data(described, todo)
    place.take()
    return work(todo, place.read(), slots, retries=args.retries)


def work(todo: Sequence[Job], place: Place, slots, *, retries: int = 1) -> int:
    """Run the jobs and print the report; 0 if all are completed, else 1."""
    # Ctrl-C, kill and a closed terminal end it alike; nohup ignores the last
    ends = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in ends:
        signal.signal(number, _interrupt)
    show = view()
    pool = Pool(todo, place, slots, command, show.tell, show.watch, retries)
    try:
        done = pool.run()
    finally:
        show.close(pool)
        for number in ends:
            signal.signal(number, signal.SIG_DFL)
    trouble = failures(pool)
    try:
        print(render.render([place.output])[0])
    except errors.UserError as error:
        print(f"note: no tables: {error}", file=sys.stderr)
    if trouble:
        print(f"\n{trouble}", file=sys.stderr)
    return 0 if done else 1


def _interrupt(number, frame):
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(run_tool(main))
