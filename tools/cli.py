"""The ``advprompt`` command, and the way every entry point ends."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from . import core

errors = importlib.import_module(f"{core.__name__}.errors")

# command -> (module beside this one, what it does); the module offers main(argv)
TOOLS = {
    "train": ("train", "train and test, with CoOp's command line"),
    "sweep": ("sweep", "many runs: trainers x data sets x shots x seeds, locally or on Slurm"),
    "report": ("report", "clean and robust accuracy from result records: tables, or one page"),
    "curves": ("curves", "accuracy over one setting (an ablation), drawn from result records"),
    "robustness": ("robustness", "finished runs tested under other threat models"),
    "transfer": ("transfer", "images made against one run, tested on others: a square table"),
    "explain": ("explain", "the words nearest to a run's learned text vectors"),
    "data": ("data", "data sets: what is there, what is missing, and fetching it"),
    "export": ("export", "what a run learned, with a card: an entry of a prompt zoo"),
    "configs": ("configs", "the config files that come along: trainers, data sets, threat models"),
    "dropin": ("dropin", "our trainers copied into a fork of CoOp, or taken out again"),
    "picture": ("picture", "clean | perturbation | adversarial, from a run's saved examples"),
}


def run_tool(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Run ``main(argv)`` and return the exit code of the process.

    0 success (or what ``main`` returns), 2 a mistake of the user (printed as ``error: ...``),
    130 interrupted by the keyboard, 141 the reader of the output went away.
    """
    try:
        return main(sys.argv[1:] if argv is None else argv) or 0
    except errors.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stdout = None  # otherwise flushing it at exit would complain again
        return 141


def usage() -> str:
    """Return the list of commands."""
    width = max(map(len, TOOLS))
    lines = [f"  {name:{width}}  {about}" for name, (_, about) in TOOLS.items()]
    return "usage: advprompt COMMAND [options]\n\ncommands:\n" + "\n".join(lines)


def dispatch(argv: list[str]) -> int | None:
    """Run the command named first in ``argv`` with the rest as its arguments.

    Raises:
        UserError: the command is unknown.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    name = argv[0]
    if name not in TOOLS:
        raise errors.UserError(f"unknown command '{name}'.{errors.nearest(name, TOOLS)}")
    return importlib.import_module(f".{TOOLS[name][0]}", __package__).main(argv[1:])


def main() -> None:
    """Entry point of the console command."""
    sys.exit(run_tool(dispatch))


if __name__ == "__main__":
    main()
