"""The commands of the scripts: one method, all methods, a paper's tables, our own results.

Their environment variables are described in docs/protocols.md.
"""

import argparse
import os
import signal
import sys

from ..experiments import commands, local, state
from ..utils.errors import UserError
from . import train

WORDS = "DATASET SHOTS [CFG] [KEY VALUE ...]"
PLANS = {
    "run": (commands.run, f"METHOD main|base2new|xd|dg|ablate_NAME [KEY=VALUES] {WORDS} "),
    "all": (commands.every_method, f"{WORDS} "),
    "reproduce": (commands.reproduce, "advpt|nap|capt|apd [CFG ...] [KEY VALUE ...] "),
    "results": (commands.results, ""),
    "testtime": (commands.testtime, "METHOD DATASET [CFG] [KEY VALUE ...] "),
}


def main(name: str, show: local.Command, argv: list[str]) -> int:
    """Run one of these commands, or list its jobs and what is missing; return the exit code.

    ``show`` is any command of advprompt, for the tables afterwards. UserError if the settings of a
    job are wrong, or some jobs did not finish.
    """
    plan, words = PLANS[name]
    usage = f"advprompt {name} {words}[--dry-run]"
    if {"-h", "--help"} & set(argv):
        about = plan.__doc__.splitlines()[0].rpartition(": ")[2]
        argparse.ArgumentParser(usage=usage, description=about).parse_args(["--help"])
    context = commands.Context(os.environ, f"usage: {usage}")
    steps = plan([word for word in argv if word != "--dry-run"], context)
    jobs = list({job.key: job for step in steps for job in step.jobs}.values())
    wrong = local.refused(jobs, train.build_cfg)
    if "--dry-run" in argv:
        for words in (words for step in steps for words in step.shows if words[0] == "data"):
            show(words)
        table, refused = state.listing(jobs, context.output, wrong=wrong)
        print(table)
        return 2 if refused else 0
    local.refuse(wrong)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = local.run(steps, train.main, show)
    if failed and "" not in failed:
        text = f"these did not finish, see above: {' '.join(failed)}"
        if name != "reproduce":
            raise UserError(text)
        print(f"error: {text}", file=sys.stderr)
        return 1
    return 2 if failed else 0
