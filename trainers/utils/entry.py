"""How every entry point ends: exit codes and one-line errors."""

import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

from .errors import UserError, plainly
from .startup import hasten
from .text import Visible


def run_tool(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Run ``main(argv)`` and return the exit code of the process.

    0 success (or what ``main`` returns), 2 a mistake of the user (printed as ``error: ...``),
    130 interrupted by the keyboard, 141 the reader of the output closed it.
    """
    hasten()
    out, err = (stream and Visible(stream) for stream in (sys.stdout, sys.stderr))  # None: closed
    with redirect_stdout(out), redirect_stderr(err):
        code = _code_of(main, sys.argv[1:] if argv is None else argv)
    if code == 141:
        sys.stdout = None  # otherwise flushing it at exit would fail again
    return code


def _code_of(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    try:
        with plainly():
            return main(argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141


def end_plainly() -> None:
    """Let a program that is not ours, such as a fork's train.py, end with our mistakes as we do."""
    own = sys.excepthook

    def hook(kind, error, trace):
        if not isinstance(error, UserError):
            return own(kind, error, trace)
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2)

    if own.__module__ != __name__:
        sys.excepthook = hook
