"""What a fork of CoOp looks like, and the two lines that its train.py gets."""

from __future__ import annotations

import ast
import codecs
import hashlib
import os
import re
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..config.shipped import PACKAGE as PACKAGE_FOLDER
from ..utils.errors import UserError

MARK = "# added by advprompt dropin"
# Nothing of the fork is run: not even a file of its called like a module of Python's own
FIND_DASSL = """
import sys
if sys.path[0] == "":
    del sys.path[0]
import importlib.util
sys.path.insert(0, "")
spec = importlib.util.find_spec("dassl")
print(spec.origin if spec and spec.origin else "")
"""


@dataclass(frozen=True)
class Edit:
    """Bytes put into a file.

    Attributes:
        before, after: the whole file; empty when only its undoing is known.
        inserted: (offset in ``after``, bytes), in this order.
    """

    before: bytes
    after: bytes
    inserted: tuple[tuple[int, bytes], ...]
    checksums: tuple[str, str] = ("", "")

    @classmethod
    def of(cls, content: bytes, insertions: list[tuple[int, bytes]]) -> Edit:
        """Return the edit that puts ``(offset in content, bytes)`` into ``content``."""
        after, inserted, shift = content, [], 0
        for offset, text in sorted(insertions):
            after = after[: offset + shift] + text + after[offset + shift :]
            inserted.append((offset + shift, text))
            shift += len(text)
        sums = tuple(hashlib.sha256(text).hexdigest() for text in (content, after))
        return cls(content, after, tuple(inserted), sums)

    def describe(self) -> dict:
        """Return what :meth:`restored` needs, as JSON."""
        return {
            "before": self.checksums[0],
            "after": self.checksums[1],
            "inserted": [[offset, text.decode("latin-1")] for offset, text in self.inserted],
        }

    @classmethod
    def restored(cls, facts: dict) -> Edit:
        """Return the edit that :meth:`describe` described, without the file's content."""
        inserted = tuple((int(o), text.encode("latin-1")) for o, text in facts["inserted"])
        return cls(b"", b"", inserted, (facts["before"], facts["after"]))

    def undone(self, content: bytes) -> tuple[bytes, list[str]]:
        """Return ``content`` without what was inserted, and the inserted lines that are left.

        The file may have been changed elsewhere since; then only whole lines go, and only where
        the rest can still be parsed.
        """
        if hashlib.sha256(content).hexdigest() == self.checksums[1]:
            for offset, text in reversed(self.inserted):
                content = content[:offset] + content[offset + len(text) :]
        else:
            ours, rest = {text.strip(b"\r\n") for _, text in self.inserted}, content
            for _, text in self.inserted:
                if text[:1] in (b"\r", b"\n"):  # the file had no newline at its end
                    rest = rest.removesuffix(text)
            lines = rest.splitlines(keepends=True)
            rest = b"".join(line for line in lines if line.rstrip(b"\r\n") not in ours)
            if _parses(rest) or not _parses(content):
                content = rest
        lines = content.decode("utf-8", errors="replace").splitlines()
        return content, [line.strip() for line in lines if MARK in line]


@dataclass
class Fork:
    """A folder with a CoOp-type ``train.py``."""

    path: Path

    @property
    def train(self) -> Path:
        return self.path / "train.py"

    def check(self) -> None:
        """Raise where this is no fork of CoOp.

        Raises:
            UserError: what is missing.
        """
        path = self.path
        if not path.is_dir():
            raise UserError(f"'{path}' is no folder; give the folder of a fork of CoOp")
        if (path / "trainers").resolve() == PACKAGE_FOLDER:
            raise UserError(f"'{path}' is advprompt itself; give the folder of a fork of CoOp")
        if not self.train.is_file() or not (path / "trainers").is_dir():
            missing = "train.py" if not self.train.is_file() else "trainers/"
            inner = [p.parent.name for p in sorted(path.glob("*/train.py"))]
            inner = [name for name in inner if (path / name / "trainers").is_dir()]
            hint = f"; did you mean '{path / inner[0]}'?" if inner else ""
            raise UserError(
                f"'{path}' is no fork of CoOp: it has no {missing}"
                + (hint or "; give the folder that holds train.py, trainers/ and datasets/")
            )
        for name in ("train.py", "trainers", "configs", "scripts"):
            if not (path / name).resolve().is_relative_to(path.resolve()):
                raise UserError(
                    f"'{path / name}' is a link that leads out of the fork, to "
                    f"'{(path / name).resolve()}', where others may use it; put a copy in its place"
                )
        if self.train.is_symlink():
            raise UserError(
                f"'{self.train}' is a link to '{self.train.resolve()}', which would be replaced by "
                "a file; put a copy in its place"
            )
        if not self._dassl_import:
            raise UserError(
                f"'{self.train}' does not import dassl at its top level, so this is no fork of "
                "CoOp; write the two lines of docs/dropin.md where its configuration is made"
            )
        if b"__main__" not in self.content:
            raise UserError(
                f"'{self.train}' has no 'if __name__ == \"__main__\":', so that importing it would "
                "run it; put what it does below such a line"
            )
        if b"advprompt" in self.content:
            raise UserError(
                f"'{self.train}' mentions advprompt already; remove those lines, or keep to them"
            )

    # --- train.py ---------------------------------------------------------------------------------

    @cached_property
    def content(self) -> bytes:
        return self.train.read_bytes()

    @cached_property
    def _tree(self) -> ast.Module:
        try:
            return ast.parse(self.content)
        except (SyntaxError, ValueError) as error:
            raise UserError(f"'{self.train}' cannot be parsed ({error}); mend it first") from error

    @cached_property
    def _dassl_import(self) -> ast.stmt | None:
        """The first statement at the top level that imports dassl."""
        for statement in self._tree.body:
            if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                continue
            for node in ast.walk(statement):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module]
                if any(name.split(".")[0] == "dassl" for name in names):
                    return statement
        return None

    @cached_property
    def _config_line(self) -> tuple[ast.stmt, str, str]:
        """The statement behind which our keys belong, the configuration's name, and what it is."""
        defaults = None
        for function in ast.walk(self._tree):
            body = getattr(function, "body", None)
            if getattr(function, "name", "") == "extend_cfg" or not isinstance(body, list):
                continue
            for statement in body:
                call = getattr(statement, "value", None)
                if not isinstance(call, ast.Call):
                    continue
                name = getattr(call.func, "id", getattr(call.func, "attr", ""))
                if name == "extend_cfg" and isinstance(statement, ast.Expr) and call.args:
                    return statement, ast.unparse(call.args[0]), "extend_cfg()"
                if name == "get_cfg_default" and isinstance(statement, ast.Assign):
                    defaults = defaults or (
                        statement,
                        ast.unparse(statement.targets[0]),
                        "get_cfg_default()",
                    )
        if defaults is None:
            raise UserError(
                f"'{self.train}' calls neither extend_cfg(cfg) nor get_cfg_default(), so that the "
                "place of our keys is unknown; write the two lines of docs/dropin.md by hand"
            )
        return defaults

    def edit(self) -> Edit:
        """Return train.py with the two lines.

        Raises:
            UserError: it has no place for them.
        """
        lines = self.content.splitlines(keepends=True)
        starts = [0]
        for line in lines:
            starts.append(starts[-1] + len(line))
        first = self._dassl_import.lineno - 1
        if first == 0 and self.content.startswith(codecs.BOM_UTF8):
            starts[0] = len(codecs.BOM_UTF8)
        ending = _ending(lines[first]) or b"\n"
        imports = f"from trainers import advprompt  {MARK}".encode() + ending
        statement, name, _ = self._config_line
        last = lines[statement.end_lineno - 1]
        indent = re.match(rb"[ \t]*", lines[statement.lineno - 1])[0]
        extend = indent + f"advprompt.extend_cfg({name})  {MARK}".encode()
        ends = _ending(last)
        extend = extend + ends if ends else ending + extend  # no newline at the end of the file
        edit = Edit.of(
            self.content, [(starts[first], imports), (starts[statement.end_lineno], extend)]
        )
        try:
            ast.parse(edit.after)
        except SyntaxError as error:
            raise UserError(
                f"the two lines do not fit into '{self.train}' (line {error.lineno}); write them "
                "by hand, as in docs/dropin.md"
            ) from error
        return edit

    # --- what is said of it -----------------------------------------------------------------------

    def facts(self, python: str) -> dict[str, str]:
        """Return what was found, by name: fork, clip, dassl, train.py."""
        status = self.git_status()
        state = "git" if status is not None else "git, unreadable" if self.in_git() else "no git"
        state += f", {len(status)} changes" if status else ""
        statement, name, what = self._config_line
        return {
            "fork": f"{self.path} ({state})",
            "clip": self.clip_signature(),
            "dassl": self.dassl(python),
            "train.py": f"imports dassl in line {self._dassl_import.lineno}, makes its "
            f"configuration '{name}' in line {statement.lineno} ({what})",
        }

    def clip_signature(self) -> str:
        """Describe the fork's ``build_model``, by which its CLIP is told apart."""
        path = self.path / "clip" / "model.py"
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            return "no clip/model.py"
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == "build_model":
                return f"clip/model.py, build_model({', '.join(a.arg for a in node.args.args)})"
        return "clip/model.py, without build_model"

    def dassl(self, python: str) -> str:
        """Say which Dassl the fork's interpreter finds, without importing it.

        Raises:
            UserError: the interpreter cannot be run.
        """
        try:
            done = subprocess.run(
                [python, "-B", "-c", FIND_DASSL], cwd=self.path, capture_output=True, text=True
            )
        except OSError as error:
            raise UserError(f"--python '{python}' cannot be run ({error.strerror})") from error
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise UserError(f"--python '{python}' is no Python that runs here ({why})")
        origin = done.stdout.strip()
        if not origin:
            return "not found; the stand-in that is copied along will serve"
        text = Path(origin).read_text(encoding="utf-8", errors="replace")
        version = re.search(r"__version__ = [\"'](.+?)[\"']", text)
        return f"{version[1] if version else 'of unknown version'}, {Path(origin).parent}"

    # --- git --------------------------------------------------------------------------------------

    def _git(self, *command: str) -> list[str] | None:
        """Return the output, split at NUL; None where git has nothing to say."""
        words = ["git", "--no-optional-locks", "-C", self.path, *command]
        try:
            done = subprocess.run(words, capture_output=True)
        except OSError:
            return None
        return None if done.returncode else [os.fsdecode(w) for w in done.stdout.split(b"\0") if w]

    def git_status(self) -> list[str] | None:
        """Return what differs from the commit in this folder; None outside of git."""
        lines = self._git("status", "--porcelain", "--no-renames", "-z", "--", ".")
        if lines is None:
            return None
        return [line[3:].encode("utf-8", errors="replace").decode() for line in lines]

    def in_git(self) -> bool:
        """Tell whether this folder looks like part of a git repository, whatever git says."""
        return any((p / ".git").exists() for p in (self.path, *self.path.parents))

    def bytecode(self) -> list[str] | None:
        """Return the compiled files that git sees as new; None outside of git."""
        return self._git("ls-files", "-z", "--others", "--exclude-standard", "--", "*.pyc")


def _parses(content: bytes) -> bool:
    try:
        ast.parse(content)
    except (SyntaxError, ValueError):
        return False
    return True


def _ending(line: bytes) -> bytes:
    return line[len(line.rstrip(b"\r\n")) :]
