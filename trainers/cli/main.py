"""The ``advprompt`` command, and the way every entry point ends."""

from __future__ import annotations

import sys

from ..utils import errors
from ..utils.entry import run_tool
from ..utils.version import __version__

# command -> what it does; the functions below import its module, which may be slow, when it is used
COMMANDS = {
    "train": "train and test, with CoOp's command line",
    "sweep": "many runs: trainers x data sets x shots x seeds, locally or on Slurm",
    "report": "clean and robust accuracy from result records: tables, or one page",
    "curves": "accuracy over one setting (an ablation), drawn from result records",
    "robustness": "finished runs tested under other threat models",
    "transfer": "images made against one run, tested on others: a square table",
    "explain": "the words nearest to a run's learned text vectors",
    "data": "data sets: what is there, what is missing, and fetching it",
    "export": "what a run learned, with a card: an entry of a prompt zoo",
    "configs": "the config files that come along: trainers, data sets, threat models",
    "dropin": "our trainers copied into a fork of CoOp, or taken out again",
    "picture": "clean | perturbation | adversarial, from a run's saved examples",
}


def command(name: str):
    """Return the module of a command, which offers ``main(argv)``."""
    match name:
        case "train":
            from . import train as module
        case "sweep":
            from ..experiments import sweep as module
        case "report":
            from . import report as module
        case "curves":
            from . import curves as module
        case "robustness":
            from . import robustness as module
        case "transfer":
            from . import transfer as module
        case "explain":
            from . import explain as module
        case "data":
            from . import data as module
        case "export":
            from . import export as module
        case "configs":
            from . import configs as module
        case "dropin":
            from . import dropin as module
        case "picture":
            from . import picture as module
    return module


def usage() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {about}" for name, about in COMMANDS.items()]
    return "usage: advprompt COMMAND [options]\n\ncommands:\n" + "\n".join(lines)


def dispatch(argv: list[str]) -> int | None:
    """Run the command named first in ``argv`` with the rest as its arguments.

    Raises:
        UserError: the command is unknown.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"advprompt {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        raise errors.UserError(f"unknown command '{name}'.{errors.nearest(name, COMMANDS)}")
    return command(name).main(argv[1:])


def main() -> None:
    """Entry point of the console command."""
    sys.exit(run_tool(dispatch))


if __name__ == "__main__":
    main()
