"""A run in the place of train.py, for tests of sweeps; imports nothing heavy."""

import json
import os
import shutil
import socket
import sys
import time

from filelock import FileLock


class Fake:
    """Leaves a record that was made before, or fails as ``how`` says of the job's trainer.

    Args:
        made: run and test, joined by a blank -> file of the record.
        how: trainer, with " new" for tests of new classes -> fail, once, refuse, nothing or kill.
        seconds: that a run takes.
    """

    def __init__(self, made: dict, how: dict, seconds: float):
        self.made, self.how, self.seconds = made, how, seconds

    def __call__(self, words: list[str]) -> None:
        after = dict(zip(words, words[1:], strict=False))
        run, test = after.get("--output-dir") or after["--model-dir"], after["--test-name"]
        name = after["--trainer"] + (" new" if test.startswith("new") else "")
        how = self.how.get(name, self.how.get(after["--trainer"], "work"))
        os.makedirs(run, exist_ok=True)
        with FileLock(f"{run}/.lock"):
            with open(f"{run}/.lock", "w") as file:
                file.write(f"{os.getpid()}@{socket.gethostname()}")
            self.work(run, test, how)

    def work(self, run: str, test: str, how: str) -> None:
        env = [os.environ.get(n, "") for n in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")]
        self.note(run, [test, os.getpid(), *env, time.time()])
        print("epoch [1/2] batch [1/1]", flush=True)
        time.sleep(self.seconds)
        tries = sum(line[0] == test for line in lines(run))
        if how == "refuse":
            print("error: there is no such thing", file=sys.stderr)
            sys.exit(2)
        if how == "fail" or (how == "once" and tries == 1):
            raise RuntimeError("it broke")
        if how == "kill":
            os.kill(os.getpid(), 9)
        if how != "nothing":
            target = f"{run}/tests/{test}" if os.path.exists(f"{run}/record.json") else run
            os.makedirs(target, exist_ok=True)
            shutil.copy(self.made[f"{run} {test}"], f"{target}/record.json")
        self.note(run, ["end", test, time.time()])

    @staticmethod
    def note(run: str, facts: list) -> None:
        with open(f"{run}/notes", "a") as file:
            file.write(json.dumps(facts) + "\n")


def lines(run: str) -> list[list]:
    """What the runs in a folder have noted: test, pid, threads, GPU, time; and ends."""
    if not os.path.exists(f"{run}/notes"):
        return []
    with open(f"{run}/notes") as file:
        return [json.loads(line) for line in file]
