"""The ``advprompt`` command: ``python -m advprompt`` is the same."""

import sys
from functools import partial

from ..utils.entry import run_tool
from ..utils.errors import UserError, nearest
from ..utils.version import __version__

COMMANDS = {
    "train": "train and test, with CoOp's command line",
    "test": "a trained model under attack: ours, or of your fork's own trainer",
    "run": "one method in one protocol, all seeds: what scripts/METHOD/PROTOCOL.sh call",
    "all": "every method under one threat model",
    "reproduce": "the tables of a paper",
    "results": "the tables of docs/results.md",
    "testtime": "zero-shot CLIP under a test-time defence",
    "sweep": "many runs: trainers x data sets x shots x seeds, locally or on Slurm",
    "report": "clean and robust accuracy from result records: tables, or one page",
    "curves": "accuracy over one setting (an ablation), drawn from result records",
    "robustness": "finished runs tested under other threat models",
    "transfer": "images made against one run, tested on others: a square table",
    "data": "data sets: what is present, what is missing, and where to get it",
    "export": "what a run learned, with a card: an entry of a prompt zoo",
    "classify": "the likeliest classes of images, by a run or an export",
    "configs": "the shipped config files: trainers, data sets, threat models",
    "dropin": "our trainers copied into a fork of CoOp, or removed again",
    "picture": "clean | perturbation | adversarial, from a run's saved examples",
}


def command(name: str):
    """Return ``main(argv)`` of a command; its module, which may be slow, is imported here."""
    match name:
        case "train":
            from .train import main as found
        case "test":
            from .test import main as found
        case "run" | "all" | "reproduce" | "results" | "testtime":
            from .run import main as run

            found = partial(run, name, dispatch)
        case "sweep":
            from .sweep import main as sweep

            found = partial(sweep, dispatch)
        case "report":
            from .report import main as found
        case "curves":
            from .curves import main as found
        case "robustness":
            from .robustness import main as found
        case "transfer":
            from .transfer import main as found
        case "data":
            from .data import main as found
        case "export":
            from .export import main as found
        case "classify":
            from .classify import main as found
        case "configs":
            from .configs import main as found
        case "dropin":
            from .dropin import main as found
        case "picture":
            from .picture import main as found
    return found


def usage() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {about}" for name, about in COMMANDS.items()]
    return "usage: advprompt COMMAND [options]\n\ncommands:\n" + "\n".join(lines)


def dispatch(argv: list[str]) -> int | None:
    """Run the command that ``argv`` begins with; UserError if it is unknown."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"advprompt {__version__}")
        return 0
    name, *words = argv
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'.{nearest(name, COMMANDS)}")
    return command(name)(words)


def main() -> None:
    """Entry point of the console command."""
    sys.exit(run_tool(dispatch))
