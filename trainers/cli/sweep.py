"""Many runs: trainers x data sets x shots x seeds, some at a time, and their tables at the end.

    advprompt sweep --trainers zsclip advpt naptuning --datasets shapes eurosat \\
        --shots 1 16 --seeds 1 2 3 --config-file tiny --root $DATA --output output --dry-run

Runs, folders and records are those of scripts/<method>/<protocol>.sh: completed runs are skipped,
interrupted ones resume. Details: docs/sweep.md.
"""

import argparse
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..config import keys, merging
from ..experiments import commands, local, state
from ..experiments.jobs import Job, method_names
from ..experiments.pool import LOGS, Local, Pool, Slurm, Work, failures, holder
from ..experiments.view import View
from ..utils.errors import UserError
from ..utils.io import writable_dir
from ..utils.machine import cores
from . import train

COMMON = "common"  # in place of a threat model: the one that scripts/all.sh chooses
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
WORK = Work(train.main)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="advprompt sweep", description=__doc__.split("\n")[0])
    add, many = p.add_argument, {"nargs": "+", "metavar": "NAME"}
    add("--trainers", required=True, **many, help="such as NAPTuning; or: all")
    add("--datasets", required=True, **many, help="short or full names")
    add("--shots", nargs="+", default=["16"], help="numbers, or: all (default: 16)")
    add("--seeds", nargs="+", default=["1", "2", "3"], help="default: 1 2 3")
    add("--protocols", **many, default=["main"], help="main (few_shot) base2new xd dg")
    config = {"dest": "configs", "help": "configs of the trainers, such as vit_b16"}
    add("--config-file", "--config", "--backbone", **many, **config)
    threats = f"threat models (default: each method's own; '{COMMON}': that of scripts/all.sh)"
    add("--attack-config-file", dest="attacks", default=[""], **many, help=threats)
    add("--targets", default=[], **many, help="data sets tested under xd and dg")
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides")
    add("--root", default=os.environ.get("DATA", ""), help="folder of the data sets")
    add("--output", default=os.environ.get("OUTPUT", ""), help="of all runs")
    at_a_time = f"default: one per GPU, else per {CORES_PER_JOB} CPU cores; 32 on Slurm"
    add("--jobs", type=int, metavar="N", help=f"at a time ({at_a_time})")
    add("--gpus", default="all", help="all, none, or indices such as 0,1")
    add("--retries", type=int, default=1, help="of a run that failed (default: 1)")
    add("--dry-run", action="store_true", help="list the runs and their states")
    add("--slurm", action="store_true", help="submit to a Slurm cluster")
    add("--time", type=int, default=720, help="of Slurm, minutes per run (default: 720)")
    option = {"metavar": "KEY=VALUE", "help": "parameters of submitit: slurm_partition=gpu"}
    add("--slurm-options", nargs="+", default=[], **option)
    return p


def plan(args: argparse.Namespace) -> tuple[list[Job], commands.Context]:
    """Return the jobs that the command line describes, seed by seed, for early tables."""
    env = {"SEEDS": " ".join(args.seeds), "TARGETS": " ".join(args.targets)}
    env |= {"DATA": args.root, "OUTPUT": args.output}
    context = commands.Context(env, "see advprompt sweep --help")
    merging.merge_opts(keys.default_cfg(), args.opts)
    for key in args.opts[::2]:
        if key in OWN_KEYS:
            raise UserError(f"--opts has {key}, which the sweep sets; use {OWN_KEYS[key]}")
    planner = context.planner()
    planner.shares = {n for n, method in keys.METHODS.items() if method.frozen_image_tower}
    every = "all" in map(str.lower, args.trainers)
    methods = method_names() if every else args.trainers
    # zero-shot CLIP first: other runs use the images that its test makes
    methods = sorted(methods, key=lambda name: name != "zsclip")
    seeds, attacks = context.seeds, [_threat(word) for word in args.attacks]
    for seed, config, attack, name, protocol, shots in itertools.product(
        *(seeds, args.configs or [context.default_config()], attacks, args.datasets),
        *(args.protocols, args.shots),
    ):
        context.seeds = [seed]
        dataset = planner.dataset(name, "--datasets")
        protocol = protocol.replace("few_shot", "main")
        call = commands.Call(dataset, context.shots(shots), config, tuple(args.opts))
        threat = planner.threat("", config, dataset) if attack == COMMON else attack
        if threat:
            planner.known_threat(threat, "--attack-config-file")
        kept = methods if seed == seeds[0] else [name for name in methods if name != "zsclip"]
        own = {"own_threat": not threat, "lenient": every, "planner": planner}
        commands.methods(kept, context, call, protocol, threat, **own)
    context.seeds = seeds
    return list(planner.made.values()), context


def _threat(word: str) -> str:
    """Return the name of a threat model, which may be given by its shipped file."""
    path = Path(word)
    return path.stem if path.match("attacks/*.yaml") and path.is_file() else word


def note_threats(jobs: Sequence[Job]) -> None:
    """Print a note if methods are tested under threat models that share no table."""
    used: dict[tuple, set[str]] = {}
    for job in jobs:
        config = job.config.removesuffix("_finetune").removesuffix("_comp")
        used.setdefault((job.dataset, config), set()).add(job.attack)
    if several := [names for names in used.values() if len(names) > 1]:
        print(
            f"note: methods differ in their threat models ({', '.join(sorted(several[0]))}), so "
            f"that their figures share no table; --attack-config-file {COMMON} gives them one",
            file=sys.stderr,
        )


def gpus(word: str) -> list[str]:
    """Return the indices of the GPUs that all, none or a list means; none where none are."""
    if word in ("all", "none"):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            visible = ",".join(map(str, range(torch.cuda.device_count())))
        return [name for name in visible.split(",") if name not in ("", "-1") and word == "all"]
    chosen = word.split(",")
    if not all(index.isdigit() for index in chosen) or len(set(chosen)) < len(chosen):
        raise UserError(f"--gpus is '{word}', expected all, none, or indices such as 0,1")
    return chosen


def launcher(args: argparse.Namespace) -> Local | Slurm:
    """Return where the jobs run; a UserError if an argument makes no sense."""
    for name, least in ("jobs", 1), ("retries", 0), ("time", 1):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}, expected {least} or more")
    if not args.slurm:
        devices = gpus(args.gpus)
        return Local(args.jobs or len(devices) or max(cores() // CORES_PER_JOB, 1), devices)
    options = {"timeout_min": args.time, "gpus_per_node": 1}
    for text in args.slurm_options:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--slurm-options has '{text}', expected KEY=VALUE")
        options[key] = int(value) if value.isdigit() else value
    return Slurm(args.jobs or 32, **options)


def main(show: local.Command, argv: list[str]) -> int:
    """Run what the command line describes; 1 if any run failed. ``show`` makes the report."""
    args = parser().parse_args(argv)
    slots = launcher(args)
    jobs, context = plan(args)
    if args.attacks == [""]:
        note_threats(jobs)
    wrong = local.refused(jobs, train.build_cfg)
    if args.dry_run:
        table, refused = state.listing(jobs, context.output, held=holder, wrong=wrong)
        print(table)
        return 2 if refused else 0
    local.refuse(wrong)
    for job in {job.dataset: job for job in jobs}.values():
        state.check_data(state.cfg_of(job))
    writable_dir(Path(context.output) / LOGS)
    with interruptible():
        return work(jobs, context.output, slots, show, retries=args.retries)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let kill and a closed terminal end a sweep as Ctrl-C does; nohup ignores the last."""
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    for number, handler in before.items():
        # jobs would inherit an ignored Ctrl-C, as in a shell's background, and could not be stopped
        if handler == signal.SIG_DFL or number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work(
    jobs: Sequence[Job], output: str, slots: Local | Slurm, show: local.Command, *, retries: int = 1
) -> int:
    """Run the jobs and print the report; 0 if all are completed, else 1."""
    view = View()
    pool = Pool(jobs, output, slots, WORK, view.tell, view.watch, retries)
    try:
        done = pool.run()
    finally:
        view.close(pool)
    try:
        show(["report", output])
    except UserError as error:
        print(f"note: no tables: {error}", file=sys.stderr)
    if trouble := failures(pool):
        print(f"\n{trouble}", file=sys.stderr)
    return 0 if done else 1
