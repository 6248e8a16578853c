"""Which small faults do the tests notice? ``python -m tests.mutate [MODULE ...] [--seed 0]``

Changes one token of a module at a time (in memory; no file is written), runs the module's own tests
in a forked process, and prints what the tests did not notice. A mutant costs seconds, because torch
is imported once. Numbers change by a factor of ten, not by one, so that a wrong tolerance shows.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import Phase

PACKAGE = Path(__file__).resolve().parents[1] / "trainers"
HEAVY = ("torch", "numpy", "scipy.stats", "PIL.Image", "matplotlib.pyplot", "jinja2")
LIMIT = 3  # times the time of the unchanged module, and 10 s
MEMORY = 8 << 30  # bytes, which an endless loop may fill
hypothesis.settings.register_profile(  # no example that fails is made smaller; all see the same
    "mutants", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate)
)
TABLE = yaml.safe_load((Path(__file__).parent / "mutate.yaml").read_text(encoding="utf-8"))
TESTS, OTHER = TABLE["tests"], TABLE["other"]


def changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Yield a field of the node and what else may stand there."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for new in OTHER.get(type(op).__name__, ()):
                yield "ops", [*node.ops[:i], getattr(ast, new)(), *node.ops[i + 1 :]]
    elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        for new in OTHER.get(type(node.op).__name__, ()):
            yield "op", getattr(ast, new)()
    elif isinstance(node, ast.UnaryOp):
        yield "operand", ast.UnaryOp(node.op, node.operand)  # twice: as if it were not there
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        value, is_bool = node.value, isinstance(node.value, bool)
        whole = (
            (value + 1, value - 1) if isinstance(value, int) else (value * 10, value / 10 or 1.0)
        )
        yield from (("value", new) for new in ((not value,) if is_bool else whole))
    elif isinstance(node, (ast.Name, ast.Attribute)):
        field = "id" if isinstance(node, ast.Name) else "attr"
        yield from ((field, new) for new in OTHER.get(getattr(node, field), ()))
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield "test", ast.UnaryOp(ast.Not(), node.test)


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs, which annotations do not."""
    yield node
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                yield from nodes(child)


def run(tests: str, path: Path, source: str, limit: float) -> str:
    """Run the tests with ``source`` in place of the file ``path``: passed, noticed or timed out."""
    pid, end = os.fork(), time.monotonic() + limit
    if not pid:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for stream in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        hypothesis.settings.load_profile("mutants")
        code, load = compile(source, str(path), "exec"), SourceFileLoader.get_code
        SourceFileLoader.get_code = lambda self, name: (
            code if Path(self.path).resolve() == path else load(self, name)
        )
        with tempfile.TemporaryDirectory() as folder:
            words = [
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                f"--basetemp={folder}/t",
                "-m",
                "not slow",
            ]
            status = pytest.main([*words, *tests.split()])
        os._exit(int(status))
    try:
        while time.monotonic() < end:
            if (done := os.waitpid(pid, os.WNOHANG))[0]:
                return "noticed" if done[1] else "survived"
            time.sleep(0.05)
        return "timed out"
    finally:
        with suppress(ProcessLookupError):  # also its own processes
            os.killpg(pid, signal.SIGKILL)


def examine(module: str, n: int, seed: int) -> Counter:
    """Sample ``n`` changes of a module, print the survivors, return the counts."""
    path, tests = PACKAGE / f"{module}.py", TESTS[module]
    source = path.read_text(encoding="utf-8")
    tree, start = ast.parse(source), time.monotonic()
    if run(tests, path, ast.unparse(tree), 600) != "survived":
        sys.exit(f"{module}: its tests fail without any change: pytest {tests}")
    limit = 10 + LIMIT * (time.monotonic() - start)
    if run(tests, path, "raise ImportError", limit) != "noticed":
        sys.exit(
            f"{module}: its tests do not import {path}: install this clone with pip install -e ."
        )
    sites, line, counts = [], 0, Counter()
    for node in nodes(tree):
        line = getattr(node, "lineno", line)
        sites += [(line, node, *change) for change in changes(node)]
    sample = random.Random(f"{seed} {module}").sample(sites, min(n, len(sites)))
    for line, node, field, new in sorted(sample, key=lambda site: site[0]):
        old, before = getattr(node, field), ast.unparse(node)
        setattr(node, field, new)
        after, changed = ast.unparse(node), ast.unparse(tree)
        setattr(node, field, old)
        counts[verdict := run(tests, path, changed, limit)] += 1
        if verdict != "noticed":
            print(f"  {verdict}: {path.relative_to(PACKAGE.parent)}:{line}", end=" ")
            print(*(text.partition("\n")[0] for text in (before, after)), sep="  ->  ", flush=True)
    shown = ", ".join(f"{counts[key]} {key}" for key in ("noticed", "survived", "timed out"))
    print(f"{module}: {shown} ({time.monotonic() - start:.0f} s, {len(sites)} places)", flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "modules", nargs="*", default=[*TESTS], metavar="MODULE", help="attacks/checks"
    )
    parser.add_argument("--n", type=int, default=8, help="changes of each module")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in HEAVY:
        importlib.import_module(name)
    total = sum((examine(module, args.n, args.seed) for module in args.modules), Counter())
    caught = total["noticed"] + total["timed out"]  # CI would hang, which nobody overlooks
    print(f"{caught} of {total.total()} noticed ({caught / max(total.total(), 1):.1%})")


if __name__ == "__main__":
    main()
