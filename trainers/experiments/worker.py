"""Become the command of a job: ``python jobs_worker.py LOG COMMAND ...``.

What the command prints goes to the end of LOG, which is locked for as long as it lives. The lock is
the kernel's: no process that is gone, however it went, leaves one behind. Runs on its own, without
anything of this package, on this machine or on one that shares the folder.
"""

import fcntl
import os
import sys

BUSY = 75  # exit code: another process has this job (sysexits' "temporary failure")
MISSING = 127  # as of a shell: there is no such command


def lock(file: int) -> bool:
    """Lock an open file if nobody else has; True where the file system knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def main(words: list[str]) -> int:
    """Lock LOG, send all output there and turn into the command; return only if it cannot."""
    log, *command = words
    file = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    if not lock(file):
        return BUSY
    os.dup2(file, 1)  # these two share the lock and survive exec
    os.dup2(file, 2)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"error: cannot start '{command[0]}' ({error.strerror})", file=sys.stderr)
    return MISSING


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
