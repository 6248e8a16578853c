"""Run a host's train.py several times: ``python runner.py JOB.json``, in the host's folder.

Every run has a process of its own, forked where train.py has been imported but not begun, so that
its imports (most of the time of a short run) happen once. JOB lists ``runs``, each with the
arguments ``words``, the file ``log`` for what it prints and, if given, variables ``env``; their
exit codes and seconds are written to ``out``, with where Dassl and the registered classes are from.
"""

import json
import os
import runpy
import sys
import time
import traceback


def run(words, log, env):
    """Run train.py in this process; return its exit code."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(env)
    sys.argv = ["train.py", *words]
    code = 0
    try:
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        code = 1
        traceback.print_exc(file=sys.__stderr__)
    sys.stdout.flush()
    sys.__stdout__.flush()
    sys.__stderr__.flush()
    return code


def origins():
    """Return the version and file of Dassl, and the modules of all trainers and data sets."""
    import dassl
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.engine import TRAINER_REGISTRY

    facts = {"version": dassl.__version__, "dassl": dassl.__file__}
    for key, registry in (("trainers", TRAINER_REGISTRY), ("datasets", DATASET_REGISTRY)):
        names = registry.registered_names()
        facts[key] = {name: registry.get(name).__module__ for name in names}
    return facts


def main(job):
    with open(job, encoding="utf-8") as file:
        job = json.load(file)
    sys.path[0] = os.getcwd()  # as if train.py itself had been started
    clock = time.perf_counter()
    runpy.run_path("train.py", run_name="host")
    facts = {"imports": round(time.perf_counter() - clock, 1)} | origins()
    results = []
    for one in job["runs"]:
        clock = time.perf_counter()
        child = os.fork()
        if child == 0:
            os._exit(run(one["words"], one["log"], one.get("env", {})))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        results.append({"code": code, "seconds": round(time.perf_counter() - clock, 1)})
    with open(job["out"], "w", encoding="utf-8") as file:
        json.dump(facts | {"runs": results}, file)


if __name__ == "__main__":
    main(sys.argv[1])
