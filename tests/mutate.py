"""Which small faults do the tests notice? See CONTRIBUTING.md; ``python -m tests.mutate --help``.

Changes one token of a module at a time (in memory, no file is written) and runs the module's tests
of ``mutate.yaml`` in a forked process: first those that call the changed function, the quickest in
front, and all of them if none of these notices. That takes seconds, as torch is imported once.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from importlib.machinery import SourceFileLoader
from pathlib import Path

import hypothesis
import pytest
import yaml

PACKAGE = Path(__file__).resolve().parents[1] / "trainers"
TABLE = yaml.safe_load((Path(__file__).parent / "mutate.yaml").read_text(encoding="utf-8"))
HEAVY = ("torch", "scipy.stats", "matplotlib.pyplot", "jinja2")  # imported once
ONCE = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # without making an example smaller
hypothesis.settings.register_profile("once", derandomize=True, database=None, phases=ONCE)


def changes(node: ast.AST):
    """Yield each field of the node that may change, and its other value."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for new in TABLE["other"].get(type(op).__name__, ()):
                yield "ops", [*node.ops[:i], getattr(ast, new)(), *node.ops[i + 1 :]]
    elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        for new in TABLE["other"].get(type(node.op).__name__, ()):
            yield "op", getattr(ast, new)()
    elif isinstance(node, ast.UnaryOp):
        yield "operand", ast.UnaryOp(node.op, node.operand)  # twice: as if it were not there
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        v = node.value  # a tolerance changes by a factor of ten
        new = (v + 1, v - 1) if isinstance(v, int) else (v * 10 or 1.0, v / 10 or -1.0)
        yield from (("value", value) for value in ((not v,) if isinstance(v, bool) else new))
    elif isinstance(node, (ast.Name, ast.Attribute)):
        field = "id" if isinstance(node, ast.Name) else "attr"
        yield from ((field, new) for new in TABLE["other"].get(getattr(node, field), ()))
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield "test", ast.UnaryOp(ast.Not(), node.test)


class Watch:
    """A plugin of pytest that writes down which functions of the package each test calls."""

    def __init__(self, out: str):
        self.out, self.calls = Path(out), {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        start, called, package = time.monotonic(), set(), str(PACKAGE)

        def note(frame, event, arg):
            if frame.f_code.co_filename.startswith(package):
                called.add(f"{frame.f_code.co_filename}:{frame.f_code.co_firstlineno}")

        sys.settrace(note)
        result = yield
        sys.settrace(None)
        self.calls[item.nodeid] = [time.monotonic() - start, *called]
        return result

    def pytest_sessionfinish(self):
        self.out.write_text(json.dumps(self.calls))


def run(tests: list[str], path: Path, source: str, limit: float, *plugins) -> str:
    """Run the tests with ``source`` in place of the file; return what became of it."""
    pid = os.fork()
    if not pid:
        signal.alarm(round(limit))
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))  # for endless loops
        for stream in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        hypothesis.settings.load_profile("once")
        code, load = compile(source, str(path), "exec"), SourceFileLoader.get_code
        SourceFileLoader.get_code = lambda self, name: (
            code if Path(self.path).resolve() == path else load(self, name)
        )
        words = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]
        with tempfile.TemporaryDirectory() as folder:
            status = pytest.main([*words, f"--basetemp={folder}/t"], plugins)
        os._exit(int(status))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    names = {0: "survived", pytest.ExitCode.USAGE_ERROR: "not found", -signal.SIGALRM: "timed out"}
    return names.get(status, "noticed")


def watched(modules: list[str]) -> dict[str, dict[str, list]]:
    """Run all tests of modules as they are; return of each: test -> seconds, functions called."""
    path = PACKAGE / f"{modules[0]}.py"
    tests = [*dict.fromkeys(test for module in modules for test in TABLE["tests"][module].split())]
    with tempfile.NamedTemporaryFile() as file:
        found = run(tests, path, path.read_text(encoding="utf-8"), 7200, Watch(file.name))
        calls = json.loads(Path(file.name).read_text() or "{}")
    if found != "survived":
        sys.exit(f"without a change it fails: pytest {next(reversed(calls), tests)}")
    own = {module: tuple(TABLE["tests"][module].split()) for module in modules}
    return {
        module: {test: calls[test] for test in calls if test.partition("[")[0].startswith(names)}
        for module, names in own.items()
    }


def callers(path: Path, tree: ast.AST, calls: dict[str, list]) -> dict[ast.AST, list[str]]:
    """Return the tests that call the function around each node, the quickest first."""
    found = {}
    for function in ast.walk(tree):  # outer functions come before inner ones
        if isinstance(function, (ast.FunctionDef, ast.Lambda)):
            above = getattr(function, "decorator_list", [])
            first = f"{path}:{min(node.lineno for node in (function, *above))}"
            tests = sorted((t for t in calls if first in calls[t]), key=lambda t: calls[t][0])
            found |= dict.fromkeys(ast.walk(function), tests)
    return found


def examine(module: str, calls: dict[str, list], n: int, seed: int) -> Counter:
    """Sample ``n`` changes of a module, print those not noticed, return the counts."""
    path, start = PACKAGE / f"{module}.py", time.monotonic()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tests, near = sorted(calls, key=lambda test: calls[test][0]), callers(path, tree, calls)
    limit = 20 + 3 * sum(seconds for seconds, *_ in calls.values())
    if run(tests, path, "raise ImportError", limit) in ("survived", "timed out"):
        sys.exit(f"{module}: its tests do not import {path}; install this clone: pip install -e .")
    whole, numbers = [*ast.walk(tree)], ast.Constant if module in TABLE["look"] else ()
    apart = [getattr(node, key, None) for node in whole for key in ("annotation", "returns")]
    apart += [n for n in whole if isinstance(n, numbers) or getattr(n, "arg", "") in TABLE["idle"]]
    apart = {node for top in apart if top for node in ast.walk(top)}
    sites = [(node, *new) for node in whole if node not in apart for new in changes(node)]
    sample = random.Random(f"{seed} {module}").sample(sites, min(n, len(sites)))
    counts = Counter()
    for node, field, new in sorted(sample, key=lambda site: site[0].lineno):
        old, before = getattr(node, field), ast.unparse(node)
        setattr(node, field, new)
        after, changed = ast.unparse(node), ast.unparse(tree)
        setattr(node, field, old)
        first = near.get(node, [])
        verdict = run(first, path, changed, limit) if first else ""
        if verdict not in ("noticed", "timed out"):  # the others may see what was made before
            rest = [test for test in tests if test not in first]
            verdict = run(rest, path, changed, limit) if rest else verdict
        counts[verdict := "noticed" if verdict == "not found" else verdict] += 1
        if verdict != "noticed":
            words = "  ->  ".join(text.partition("\n")[0] for text in (before, after))
            print(f"  {verdict}: trainers/{module}.py:{node.lineno}  {words}", flush=True)
    shown = ", ".join(f"{counts[key]} {key}" for key in ("noticed", "survived", "timed out"))
    print(f"{module}: {shown} ({time.monotonic() - start:.0f} s, {len(sites)} places)", flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="such as attacks/checks")
    parser.add_argument("--n", type=int, default=8, help="changes of each module")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rooms = {name.partition("/")[0] for name in TABLE["tests"]}
    found = {f"{room}/{p.stem}" for room in rooms for p in (PACKAGE / room).glob("[!_]*.py")}
    if left := sorted(found - TABLE["tests"].keys()):
        sys.exit(f"tests/mutate.yaml names no tests of {', '.join(left)}")
    modules, _ = args.modules or [*TABLE["tests"]], [*map(importlib.import_module, HEAVY)]
    calls = watched(modules)
    total = sum((examine(m, calls[m], args.n, args.seed) for m in modules), Counter())
    noticed = total["noticed"] + total["timed out"]  # CI would hang, which nobody overlooks
    print(f"{noticed} of {total.total()} noticed ({noticed / max(total.total(), 1):.1%})")


if __name__ == "__main__":
    main()
