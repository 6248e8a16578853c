"""The exception for mistakes of the user, and the hint for a misspelt name."""

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator

# errors of the file system, not of the program
LACKING = ("out of memory", "can't allocate memory")  # CUDA's message, and torch's on a CPU
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SYSTEM = (*FULL, errno.EROFS, errno.EACCES, errno.EIO, errno.ENAMETOOLONG)


class UserError(Exception):
    """A mistake the user can fix; its text is one sentence that says how.

    Entry points print it as ``error: ...`` and exit with code 2. Several mistakes, each of which is
    an argument, are a line each.
    """

    def __str__(self):
        if len(self.args) < 2:
            return super().__str__()
        return "\n".join([f"{len(self.args)} mistakes", *(f"  {text}" for text in self.args)])


class Mistakes(list):
    """Collects the UserErrors of several calls, to raise them as one."""

    def of(self, check, *arguments):
        """Call ``check`` and return its result; None where it raises a UserError."""
        try:
            return check(*arguments)
        except UserError as error:
            self.extend(error.args)
            return None

    def end(self) -> None:
        """Raise one UserError with all of them, if there are any."""
        if self:
            raise UserError(*dict.fromkeys(self))


def reason(error: OSError) -> str:
    """Describe an error of the file system in words."""
    where = f"'{error.filename!s:.200}': " if error.filename else ""
    return f"{where}{error.strerror or error}"


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Turn a full disk, a lack of permission, and a lack of memory into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in SYSTEM:
            raise
        what = reason(error) if error.filename else f"the output: {error.strerror}"
        text = f"cannot read or write {what}; change that, then run the same command again"
        raise UserError(text) from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(w in str(error) for w in LACKING):
            raise
        raise UserError(
            f"memory ran out ({str(error).partition('. ')[0]:.100}); lower "
            "DATALOADER.TEST.BATCH_SIZE, in training DATALOADER.TRAIN_X.BATCH_SIZE (or set "
            "TRAINER.ADVERSARIAL.CLASS_CHUNK 16, which changes no result), and under a "
            "test-time defence TESTTIME.VIEWS or DEFENCE.EOT; then run the same command again"
        ) from error


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean A or B?``, or all choices where none is close."""
    by_lower = {str(c).lower(): str(c) for c in choices}
    close = difflib.get_close_matches(str(name).lower(), sorted(by_lower), n=3)
    if close:
        return f" Did you mean {' or '.join(by_lower[c] for c in close)}?"
    return f" Choose one of: {', '.join(sorted(by_lower.values()))}."
