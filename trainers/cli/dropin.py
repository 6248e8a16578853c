"""Copy the trainers into a fork of CoOp, or remove them.

    python -m advprompt dropin FORK  # shows what would change
    python -m advprompt dropin FORK --apply
    python -m advprompt dropin FORK --undo

The package goes to trainers/advprompt/, config files and scripts go to folders called advprompt,
and train.py gets two marked lines. trainers/advprompt/dropin.json lists the copies with their
checksums; --undo removes exactly these. Only --apply runs code of the fork: it imports train.py.
"""

import argparse
import ast
import contextlib
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ..config.shipped import PACKAGE
from ..utils.errors import UserError
from ..utils.io import atomic_write, read_json, sha256_file, write_json
from ..utils.version import __version__

HOME = "trainers/advprompt"
MANIFEST = f"{HOME}/dropin.json"
TARGETS = (HOME, "configs/advprompt", "scripts/advprompt")
MARK = b"# added by advprompt dropin"
FOLDERS = ("", "datasets", "configs", "scripts")  # "": the package itself
BY_HAND = "add the two lines of docs/dropin.md by hand"
LEFT_OUT = ("setup.sh", "test.sh", "quickstart.sh", "results.sh")  # of our own repository

# Run in the fork's folder: can it be imported, and are our trainers registered?
VERIFY = """
import json, sys
sys.path.insert(0, "")
import train
from dassl.engine import TRAINER_REGISTRY
from trainers import advprompt
ours = [n for n in TRAINER_REGISTRY.registered_names()
        if TRAINER_REGISTRY.get(n).__module__.startswith(advprompt.__name__ + ".")]
import dassl
print("\\n" + json.dumps({"trainers": sorted(ours), "dassl": dassl.__file__}))
"""


def sources() -> dict[str, Path]:
    """Map places in a fork to the files copied there; UserError without configs or scripts."""
    found = {}
    for name, target in zip(FOLDERS, (HOME, f"{HOME}/datasets", *TARGETS[1:]), strict=True):
        places = (PACKAGE / name, PACKAGE.parent / name) if name else (PACKAGE,)
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise UserError(f"'{PACKAGE}' has no '{name}' with it; run dropin from a clone")
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(folder)
            other = inner.as_posix() in LEFT_OUT or (not name and inner.parts[0] in FOLDERS)
            if path.is_file() and path.suffix != ".pyc" and not other:
                found[f"{target}/{inner.as_posix()}"] = path
    return found


# --- the fork and its train.py --------------------------------------------------------------------


def check_fork(fork: Path) -> None:
    """Refuse (UserError) a folder that is not a fork of CoOp, or has files of ours."""
    if (fork / "trainers").resolve() == PACKAGE:
        raise UserError(f"'{fork}' is advprompt itself; give the folder of a fork of CoOp")
    for name in ("train.py", "trainers"):
        if not (fork / name).exists():
            inner = [str(path.parent) for path in sorted(fork.glob("*/train.py"))]
            hint = f"did you mean '{inner[0]}'?" if inner else "give the folder that has train.py"
            raise UserError(f"'{fork}' is not a fork of CoOp: it has no {name}; {hint}")
    for name in ("train.py", "trainers", "configs", "scripts"):
        place, target = fork / name, (fork / name).resolve()
        if not target.is_relative_to(fork.resolve()) or (place.is_file() and place.is_symlink()):
            raise UserError(f"'{place}' is a link to '{target}'; put a copy in its place")
    if (fork / MANIFEST).exists():
        raise UserError(f"'{fork}' has been changed by dropin already; run --undo first")
    for target in TARGETS:
        if os.path.lexists(fork / target):
            raise UserError(f"'{fork / target}' exists and is not from dropin; move it away")


def edited(train: Path) -> bytes:
    """Return train.py's content with the two lines; UserError if there is no place for them."""
    content = train.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"'{train}' cannot be parsed ({error}); correct it first") from error
    if b"advprompt" in content:
        raise UserError(f"'{train}' mentions advprompt already; remove those lines first")
    if b"__main__" not in content:
        raise UserError(f"'{train}' has no '__main__' guard: importing it would run it; add one")
    if not (first := next(filter(_imports_dassl, tree.body), None)):
        raise UserError(f"'{train}' does not import dassl at its top level; {BY_HAND}")
    statement, name = _configuration(tree, train)
    lines = content.splitlines(keepends=True)
    ending = re.search(rb"[\r\n]*$", lines[first.lineno - 1])[0] or b"\n"
    indent = re.match(rb"[ \t]*", lines[statement.lineno - 1])[0]
    extend = indent + f"advprompt.extend_cfg({name})  ".encode() + MARK
    if lines[statement.end_lineno - 1].endswith((b"\n", b"\r")):
        extend += ending
    else:  # no newline at the end of the file
        lines[statement.end_lineno - 1] += ending
    lines.insert(statement.end_lineno, extend)
    lines.insert(first.lineno - 1, b"from trainers import advprompt  " + MARK + ending)
    after = b"".join(lines)
    try:
        ast.parse(after)
    except SyntaxError as error:
        raise UserError(f"no place for two lines in '{train}' ({error}); {BY_HAND}") from error
    return after


def restored(content: bytes) -> bytes:
    """Return the content of train.py without the marked lines."""
    lines = content.splitlines(keepends=True)
    kept = [line for line in lines if MARK not in line]
    if kept and MARK in lines[-1] and not lines[-1].endswith((b"\n", b"\r")):
        kept[-1] = kept[-1].rstrip(b"\r\n")  # the file had no newline at its end
    return b"".join(kept)


def _imports_dassl(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return False
    imports = (n for n in ast.walk(statement) if isinstance(n, (ast.Import, ast.ImportFrom)))
    return any(re.match(r"(import|from) dassl\b", ast.unparse(node)) for node in imports)


def _configuration(tree: ast.Module, train: Path) -> tuple[ast.stmt, str]:
    """Return the statement after which our keys belong, and the configuration's name."""
    found: dict[str, tuple[ast.stmt, str]] = {}
    for function in ast.walk(tree):
        body = getattr(function, "body", None)
        if getattr(function, "name", "") == "extend_cfg" or not isinstance(body, list):
            continue
        for statement in body:
            call = getattr(statement, "value", None)
            called = ast.unparse(call.func).split(".")[-1] if isinstance(call, ast.Call) else ""
            if called == "extend_cfg" and isinstance(statement, ast.Expr) and call.args:
                found.setdefault("extend_cfg", (statement, ast.unparse(call.args[0])))
            elif called == "get_cfg_default" and isinstance(statement, ast.Assign):
                found.setdefault("default", (statement, ast.unparse(statement.targets[0])))
    if not found:
        raise UserError(f"'{train}' calls neither extend_cfg nor get_cfg_default; {BY_HAND}")
    return found.get("extend_cfg") or found["default"]


# --- show, apply, undo ----------------------------------------------------------------------------


def show(fork: Path, after: bytes, copies: dict[str, Path]) -> None:
    texts = ((fork / "train.py").read_bytes(), after)
    lines = (text.decode(errors="replace").splitlines() for text in texts)
    print(*difflib.unified_diff(*lines, "a/train.py", "b/train.py", n=2, lineterm=""), sep="\n")
    for target in TARGETS:
        inside = [path for place, path in copies.items() if place.startswith(f"{target}/")]
        size = sum(path.stat().st_size for path in inside)
        print(f"+ {target}/  ({len(inside)} files, {size / 2**20:.1f} MiB)")


def apply(fork: Path, after: bytes, copies: dict[str, Path], python: str) -> None:
    """Copy the files, edit train.py and import the result; undo everything if that fails."""
    try:
        listed = {place: sha256_file(path) for place, path in copies.items()}
        write_json(fork / MANIFEST, {"advprompt": __version__, "files": listed})
        for place, path in copies.items():
            (fork / place).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(fork / place) as temporary:
                shutil.copyfile(path, temporary)
                shutil.copymode(path, temporary)
        rewrite(fork / "train.py", after)
        facts = verify(fork, python)
    except (UserError, OSError) as error:
        if (fork / MANIFEST).is_file():
            undo(fork)
        else:
            _remove_empty(fork)
        raise UserError(f"{error}; the fork is as it was") from error
    print(f"applied; {len(facts['trainers'])} trainers: {', '.join(facts['trainers'])}")
    print(f"Dassl: {facts['dassl']}")


def rewrite(train: Path, content: bytes) -> None:
    """Replace the content of train.py and keep its permissions."""
    with atomic_write(train) as temporary:
        temporary.write_bytes(content)
        shutil.copymode(train, temporary)


def verify(fork: Path, python: str) -> dict:
    """Import the changed fork in a separate process; return its report, or raise a UserError."""
    words = [python, "-B", "-c", VERIFY]
    done = subprocess.run(words, cwd=fork, capture_output=True, text=True)
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        why = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
        raise UserError(
            f"the changed fork cannot be imported by '{python}' ({why}); install what is missing, "
            "or name the interpreter that the fork runs with: --python PATH"
        ) from error


def undo(fork: Path) -> list[str]:
    """Remove copies and marked lines; return the files kept. UserError for a bad manifest."""
    if not (fork / MANIFEST).is_file():
        raise UserError(f"'{fork}' has no {MANIFEST}, so there is nothing to undo")
    try:
        listed = dict(read_json(fork / MANIFEST)["files"])
        if any(
            ".." in place or not place.startswith(tuple(f"{t}/" for t in TARGETS))
            for place in listed
        ):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"'{fork / MANIFEST}' is damaged; remove {', '.join(TARGETS)} by hand"
        ) from error
    train = fork / "train.py"
    if train.is_file() and MARK in (content := train.read_bytes()):
        rewrite(train, restored(content))
    for place, checksum in listed.items():
        path = fork / place
        inside = path.parent.resolve().is_relative_to(fork.resolve())
        if inside and path.is_file() and sha256_file(path) == checksum:
            path.unlink()
    (fork / MANIFEST).unlink()
    _remove_empty(fork)
    left = (p for target in TARGETS for p in (fork / target).rglob("*") if p.is_file())
    return sorted(path.relative_to(fork).as_posix() for path in left)


def _remove_empty(fork: Path) -> None:
    """Remove compiled and temporary files from our folders, then the folders that are empty."""
    for target in TARGETS:
        inside = sorted((fork / target).rglob("*"), key=lambda p: len(p.parts), reverse=True)
        for path in (*inside, fork / target):
            if path.suffix == ".pyc" or re.fullmatch(r"\..+\.tmp", path.name):
                path.unlink()
            elif path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):  # it holds files of the user
                    path.rmdir()
    for name in ("configs", "scripts"):  # folders that the fork may have lacked
        with contextlib.suppress(OSError):
            (fork / name).rmdir()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("advprompt dropin", description=__doc__.split("\n")[0])
    parser.add_argument("fork", metavar="FORK", help="folder with the fork's train.py")
    what = parser.add_mutually_exclusive_group()
    for name, about in (("--apply", "make the changes"), ("--undo", "remove them")):
        what.add_argument(name, action="store_true", help=about)
    parser.add_argument("--python", default=sys.executable, help="the fork's (default: ours)")
    args = parser.parse_args(argv)
    fork = Path(args.fork).expanduser().absolute()
    if args.undo:
        kept = undo(fork)
        print("undone" + "".join(f"\nkept, because you changed or added it: {p}" for p in kept))
        return
    check_fork(fork)
    after, copies = edited(fork / "train.py"), sources()
    if args.apply:
        apply(fork, after, copies, shutil.which(args.python) or args.python)
    else:
        show(fork, after, copies)
        print("nothing was changed; --apply makes these changes")
