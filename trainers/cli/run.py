"""The commands of the scripts: one method, all methods, a paper's tables, our own results.

Their environment variables are described in docs/protocols.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

from ..experiments import commands, local, state
from ..utils.errors import UserError
from . import train

WORDS = "DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]"
USAGES = {
    "run": f"METHOD main|base2new|xd|dg|ablate_NAME [KEY=VALUES] {WORDS}",
    "all": WORDS,
    "reproduce": "advpt|nap|capt|apd [CFG ...] [KEY VALUE ...] [--dry-run]",
    "results": "[--dry-run]",
}
PLANS = {
    "run": commands.run,
    "all": commands.every_method,
    "reproduce": commands.reproduce,
    "results": commands.results,
}


def main(name: str, show: local.Command, argv: list[str]) -> int:
    """Run one of these commands.

    Args:
        show: any command of advprompt, for the tables afterwards.
    """
    usage = f"usage: advprompt {name} {USAGES[name]}"
    if {"-h", "--help"} & set(argv):
        about = PLANS[name].__doc__.splitlines()[0].partition(": ")[2]
        p = argparse.ArgumentParser(usage=usage.removeprefix("usage: "), description=about)
        p.parse_args(["--help"])
    context = commands.Context(os.environ, usage)
    steps = PLANS[name]([word for word in argv if word != "--dry-run"], context)
    return _list(steps, context, show) if "--dry-run" in argv else _do(name, steps, context, show)


def _list(steps: list[commands.Step], context: commands.Context, show: local.Command) -> int:
    """List the jobs and what is missing for them; return the exit code."""
    for words in (words for step in steps for words in step.shows if words[0] == "data"):
        show(words)
    jobs = _jobs(steps)
    wrong = local.refused(jobs, train.build_cfg)
    table, refused = state.listing(jobs, context.output, wrong=wrong)
    print(table)
    return 2 if refused else 0


def _jobs(steps: list[commands.Step]) -> list:
    return list({job.key: job for step in steps for job in step.jobs}.values())


def _do(
    name: str, steps: list[commands.Step], context: commands.Context, show: local.Command
) -> int:
    """Run the jobs and show their tables; return the exit code.

    Raises:
        UserError: the settings of a job are wrong, or some jobs did not finish.
    """
    for why in local.refused(_jobs(steps), train.build_cfg).values():
        raise UserError(why)
    signal.signal(signal.SIGTERM, _interrupt)
    failed = local.run(steps, train.main, show, int(context.env.get("PROCESSES") or 1))
    if failed and "" not in failed:
        text = f"these did not finish, see above: {' '.join(failed)}"
        if name != "reproduce":
            raise UserError(text)
        print(f"error: {text}", file=sys.stderr)
        return 1
    return 2 if failed else 0


def _interrupt(number, frame):
    raise KeyboardInterrupt
