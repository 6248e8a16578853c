"""Put the trainers into a fork of CoOp, or take them out again.

    python -m advprompt dropin FORK  # what the fork looks like, and what would be changed
    python -m advprompt dropin FORK --apply
    python -m advprompt dropin FORK --undo

Copies the package to trainers/advprompt/, config files and scripts to folders called advprompt,
and adds two lines to train.py. What is copied is listed with checksums in
trainers/advprompt/dropin.json; --undo removes exactly that.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ..config.shipped import PACKAGE as PACKAGE_FOLDER
from ..utils import errors
from ..utils import io as files
from ..utils.entry import run_tool
from ..utils.version import __version__
from .fork import Edit, Fork

UserError = errors.UserError

PACKAGE = "trainers/advprompt"
MANIFEST = f"{PACKAGE}/dropin.json"
BESIDE = ("compat", "datasets", "tools")  # part of the package, wherever they lie
TARGETS = (PACKAGE, "configs/advprompt", "scripts/advprompt")
SUFFIXES = (".py", ".yaml", ".json", ".md", ".safetensors", ".sh")
# scripts that set this repository up, or make its own pages
LEFT_OUT = ("setup.sh", "test.sh", "quickstart.sh", "results.sh")
ABOVE = ("configs", "scripts")  # folders that a fork may lack
PART = ".dropin-part"  # of a copy under way

# Runs in the fork's folder: are our trainers there, and do the keys reach its configuration?
VERIFY = """
import json, sys, warnings
sys.path.insert(0, "")
with warnings.catch_warnings(record=True) as caught:
    import train
from dassl.engine import TRAINER_REGISTRY
from trainers import advprompt
class Unset:
    def __getattr__(self, name):
        return [] if name == "opts" else 0
if hasattr(train, "setup_cfg"):
    cfg = train.setup_cfg(Unset())
    assert "TRAIN" in cfg.ATTACK and "ADVPT" in cfg.TRAINER, "its configuration lacks our keys"
ours = [n for n in TRAINER_REGISTRY.registered_names()
        if TRAINER_REGISTRY.get(n).__module__.startswith(advprompt.__name__ + ".")]
ours.sort(key=lambda name: ("." in name, name))
assert "AdvPT" in ours, "AdvPT is not registered"
import dassl
notes = [text for text in map(str, (w.message for w in caught)) if text.startswith("Dassl at ")]
print("\\n" + json.dumps({"ours": ours, "dassl": dassl.__file__, "notes": notes}))
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="dropin", description=__doc__.split("\n")[0])
    p.add_argument("fork", metavar="FORK", help="folder with the fork's train.py")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--apply", action="store_true", help="make the changes")
    what.add_argument("--undo", action="store_true", help="take them back")
    p.add_argument("--force", action="store_true", help="apply though git has uncommitted changes")
    p.add_argument("--python", default=sys.executable, help="interpreter the fork runs with")
    return p


def sources() -> dict[str, Path]:
    """Map every file's place in a fork to the file that is copied there.

    Raises:
        UserError: this copy of the package lies without its config files or scripts.
    """
    package = PACKAGE_FOLDER
    folders = {PACKAGE: package}
    for name in (*BESIDE, "configs", "scripts"):
        folder = next((f for f in (package / name, package.parent / name) if f.is_dir()), None)
        if folder is None:
            raise UserError(
                f"'{package}' lies without the folder '{name}'; run dropin from a clone or from an "
                "installed advprompt, not from a fork"
            )
        folders[f"{PACKAGE}/{name}" if name in BESIDE else f"{name}/advprompt"] = folder
    found = {}
    for target, folder in folders.items():
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(folder)
            if path.suffix not in SUFFIXES or not path.is_file() or inner.as_posix() in LEFT_OUT:
                continue
            if target == PACKAGE and inner.parts[0] in (*BESIDE, "configs", "scripts"):
                continue  # of an installed package: they have a target of their own
            found[f"{target}/{inner.as_posix()}"] = path
    return found


# --- show -----------------------------------------------------------------------------------------


def show(fork: Fork, edit: Edit, copies: dict[str, Path], python: str) -> None:
    """Print what the fork looks like and what would be changed."""
    print("\n".join(f"{name:9} {text}" for name, text in fork.facts(python).items()), "\n")
    before, after = (
        text.decode("utf-8", errors="replace").splitlines(keepends=True)
        for text in (edit.before, edit.after)
    )
    for line in difflib.unified_diff(before, after, "a/train.py", "b/train.py", n=2):
        print(line.rstrip("\r\n"))
    for target in TARGETS:
        inside = [path for place, path in copies.items() if place.startswith(f"{target}/")]
        size = sum(path.stat().st_size for path in inside)
        print(f"+ {target}/  ({len(inside)} files, {size / 2**20:.1f} MiB)")


# --- apply ----------------------------------------------------------------------------------------


def refuse_apply(fork: Fork, force: bool) -> None:
    """Raise where the changes must not be made.

    Raises:
        UserError: something is in the way, or git has uncommitted changes.
    """
    for target in TARGETS:
        if os.path.lexists(fork.path / target) and not only_folders(fork.path / target):
            raise UserError(
                f"'{fork.path / target}' is there already and not from dropin; move it away"
            )
    dirty = fork.git_status()
    if dirty is None and fork.in_git() and not force:
        raise UserError(
            f"git cannot say whether '{fork.path}' has uncommitted changes; see what 'git status' "
            "says there, or add --force"
        )
    if dirty and not force:
        raise UserError(
            f"git has uncommitted changes in '{fork.path}' ({', '.join(dirty[:3])}"
            f"{', ...' if len(dirty) > 3 else ''}); commit or stash them, or add --force"
        )


def refuse_applied(path: Path) -> None:
    """Raise where the changes have been made.

    Raises:
        UserError: there is a manifest.
    """
    if (path / MANIFEST).exists():
        raise UserError(
            f"'{path}' has been changed by dropin already, perhaps not to the end; give the same "
            "command with --undo first"
        )


def only_folders(path: Path) -> bool:
    """Tell whether there is nothing but empty folders and parts of files that dropin wrote."""
    if path.is_symlink() or not path.is_dir():
        return False
    return all(
        p.is_dir() and not p.is_symlink() or unfinished(p, MANIFEST) for p in path.rglob("*")
    )


def unfinished(path: Path, place: str) -> bool:
    """Tell whether ``path`` is what a killed write of the file ``place`` left beside it."""
    name = re.escape(Path(place).name)
    return re.fullmatch(rf"\.{name}\.\d+\.[0-9a-f]{{8}}\.tmp", path.name) is not None


def apply(fork: Fork, edit: Edit, copies: dict[str, Path], python: str) -> None:
    """Copy the files, edit train.py and verify; what fails is undone.

    Raises:
        UserError: a file cannot be written, or the changed fork cannot be imported.
    """
    folders = sorted(
        {
            parent.as_posix()
            for place in copies
            for parent in Path(place).parents
            if not (fork.path / parent).exists()
        }
    )
    manifest = {
        "advprompt": __version__,
        "files": {place: files.sha256_file(path) for place, path in copies.items()},
        "folders": folders,
        "train.py": edit.describe(),
        "bytecode": fork.bytecode(),
    }
    try:
        files.write_json(fork.path / MANIFEST, manifest)
        for place, path in copies.items():
            copy(path, fork.path / place)
        write(fork.train, edit.after)
        facts = verify(fork, python)
    except (UserError, OSError) as error:
        if (fork.path / MANIFEST).is_file():
            undo(fork.path, silent=True)
        else:
            with contextlib.suppress(OSError):
                (fork.path / PACKAGE).rmdir()
        raise UserError(f"{error}; everything is as it was") from error
    print(f"applied; {len(facts['ours'])} trainers are there: {', '.join(facts['ours'])}")
    print("\n".join([f"Dassl: {facts['dassl']}", *facts.get("notes", ())]))


def copy(source: Path, target: Path) -> None:
    """Copy a file with its permissions; it appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + PART)
    shutil.copyfile(source, part)
    shutil.copymode(source, part)
    os.replace(part, target)


def write(path: Path, content: bytes) -> None:
    """Replace the content of a file and keep its owner and permissions."""
    before = path.stat()
    with files.atomic_write(path) as temporary:
        temporary.write_bytes(content)
        with contextlib.suppress(OSError):  # whoever is not root keeps his own files only
            os.chown(temporary, before.st_uid, before.st_gid)
        temporary.chmod(before.st_mode)


def verify(fork: Fork, python: str) -> dict:
    """Import the changed fork in a process of its own.

    Raises:
        UserError: what stopped it.
    """
    done = subprocess.run(
        [python, "-B", "-c", VERIFY], cwd=fork.path, capture_output=True, text=True
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(
            f"the changed fork cannot be imported by '{python}' ({why}); install what is missing, "
            "or name the interpreter that the fork runs with: --python PATH"
        )
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise UserError(
            "importing the changed train.py ended the process; what it runs belongs below "
            "'if __name__ == \"__main__\":'"
        ) from error


# --- undo -----------------------------------------------------------------------------------------


def undo(path: Path, *, silent: bool = False) -> None:
    """Remove what the manifest lists, and nothing else.

    Raises:
        UserError: there is no manifest, or it is damaged.
    """
    if not (path / MANIFEST).is_file():
        raise UserError(
            f"there is nothing to undo in '{path}': it has no {MANIFEST}; was --apply run there?"
        )
    manifest = files.read_json(path / MANIFEST)
    try:
        listed, folders = dict(manifest["files"]), list(manifest["folders"])
        edit, bytecode = Edit.restored(manifest["train.py"]), set(manifest["bytecode"] or ())
        inside = all(
            place.startswith(tuple(f"{target}/" for target in TARGETS)) and ".." not in place
            for place in (*listed, *(f"{folder}/" for folder in folders if folder not in ABOVE))
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        inside = False
    if not inside:
        raise UserError(f"'{path / MANIFEST}' is damaged; remove the advprompt folders by hand")
    kept = []
    train = path / "train.py"
    if train.is_file():
        content = train.read_bytes()
        restored, left = edit.undone(content)
        if restored != content:
            write(train, restored)
        if left:
            lines = "; ".join(left)
            kept.append(f"train.py, in which lines were changed; remove them by hand: {lines}")
    for near, place in ((path, "train.py"), ((path / MANIFEST).parent, MANIFEST)):
        for temporary in near.glob(".*.tmp"):  # of a write that was killed
            if unfinished(temporary, place):
                temporary.unlink()
    for place, checksum in listed.items():
        target = path / place
        if not target.parent.resolve().is_relative_to(path):
            kept.append(f"{place}, behind a link that leads out of the fork")
            continue
        target.with_name(target.name + PART).unlink(missing_ok=True)
        if target.is_file():
            if files.sha256_file(target) != checksum:
                kept.append(f"{place}, which was changed since")
                continue
            target.unlink()
        if target.suffix == ".py":
            for compiled in target.parent.glob(f"__pycache__/{target.stem}.*.pyc"):
                compiled.unlink()
    fork = Fork(path)
    for place in set(fork.bytecode() or ()) - bytecode:  # Python's, from running the fork since
        if (path / place).parent.parent.joinpath(Path(place).name.split(".")[0] + ".py").exists():
            (path / place).unlink()
            with contextlib.suppress(OSError):
                (path / place).parent.rmdir()
    (path / MANIFEST).unlink()
    for folder in sorted(folders, key=len, reverse=True):
        for empty in (path / folder / "__pycache__", path / folder):
            with contextlib.suppress(OSError):  # gone, or it holds something of the user's
                empty.rmdir()
    for target in TARGETS:
        kept += [
            f"{place}, which dropin did not put there"
            for place in sorted(
                p.relative_to(path).as_posix() for p in (path / target).rglob("*") if p.is_file()
            )
            if place not in listed and not place.endswith(".pyc")
        ]
    if not silent:
        print("undone" + ("; kept:" if kept else ""))
        print("".join(f"  {line}\n" for line in kept), end="")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    path = Path(args.fork).expanduser().resolve()
    if args.undo:
        undo(path)
        return 0
    refuse_applied(path)
    if os.sep in args.python:  # else it would be looked for in the fork's folder
        args.python = os.path.abspath(os.path.expanduser(args.python))
    fork = Fork(path)
    fork.check()
    if args.apply:
        refuse_apply(fork, args.force)
    edit, copies = fork.edit(), sources()
    show(fork, edit, copies, args.python)
    if args.apply:
        apply(fork, edit, copies, args.python)
    else:
        print("\nnothing was changed; --apply makes these changes, --undo takes them back")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
