"""Copy everything printed into ``log.txt``."""

import os
import os.path as osp
import sys
import time

from .tools import mkdir_if_missing

__all__ = ["Logger", "setup_logger"]


class Logger:
    """Replaces ``sys.stdout`` and also writes to ``fpath``; closing leaves the console open."""

    file = None

    def __init__(self, fpath=None):
        self.console = sys.stdout
        if fpath is not None:
            mkdir_if_missing(osp.dirname(fpath))
            self.file = open(fpath, "w", encoding="utf-8")  # noqa: SIM115

    def __getattr__(self, name):  # isatty, encoding, fileno, ...
        if name == "console":  # not set yet: __init__ failed
            raise AttributeError(name)
        return getattr(self.console, name)

    def write(self, msg):
        self.console.write(msg)
        self._log(lambda file: file.write(msg))
        return len(msg)

    def flush(self):
        self.console.flush()
        self._log(lambda file: (file.flush(), os.fsync(file.fileno())))

    def close(self):
        self._log(lambda file: file.close())
        self.file = None

    def _log(self, do):
        """Write the log; a failure ends the log only, not the run."""
        try:
            if self.file is not None:
                do(self.file)
        except OSError as error:  # such as a full disk
            self.file = None
            self.console.write(f"note: nothing more is written to the log ({error.strerror})\n")

    __del__ = close


def setup_logger(output=None) -> None:
    """Copy what is printed from now on to ``output`` (a .txt or .log file, or a folder).

    An existing log is kept: the new one gets the time as a suffix. A second call ends the first
    log, so that several runs in one process do not write into each other's files.
    """
    if output is None:
        return
    fpath = output if output.endswith((".txt", ".log")) else osp.join(output, "log.txt")
    if osp.exists(fpath):
        fpath += time.strftime("-%Y-%m-%d-%H-%M-%S")
    if isinstance(sys.stdout, Logger):
        previous, sys.stdout = sys.stdout, sys.stdout.console
        previous.close()
    sys.stdout = Logger(fpath)
