"""The way every entry point ends."""

import errno
import sys
from collections.abc import Callable

from .errors import UserError
from .startup import hasten


def run_tool(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Run ``main(argv)`` and return the exit code of the process.

    0 success (or what ``main`` returns), 2 a mistake of the user (printed as ``error: ...``),
    130 interrupted by the keyboard, 141 the reader of the output went away.
    """
    hasten()
    try:
        return main(sys.argv[1:] if argv is None else argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stdout = None  # otherwise flushing it at exit would complain again
        return 141
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {error.filename!r:.80} is too long for the name of a file", file=sys.stderr)
        return 2
