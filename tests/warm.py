"""A Python that is warm: train.py and tools start in a fork of a process that has imported them.

The scripts call ``$PYTHON train.py ...`` some twenty times in a test, and importing torch takes
longer than each of these toy runs. :func:`serve` waits on a socket with everything imported; the
executable that :func:`command` writes stands in for ``python`` and asks it. Arguments, working
folder, environment and standard streams are the caller's.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def command(folder: Path, address: Path) -> Path:
    """Write the executable into ``folder`` and return its path."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" "{address}" "$@"\n')
    path.chmod(0o755)
    return path


def ask(address: str, words: list[str]) -> int:
    """Have the words run by the server; anything but train.py and modules runs here, cold."""
    if words[:1] != ["train.py"] and words[:1] != ["-m"]:
        os.execv(sys.executable, [sys.executable, *words])
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        job = {"words": words, "cwd": os.getcwd(), "env": dict(os.environ)}
        socket.send_fds(server, [b"."], [0, 1, 2])
        server.sendall(json.dumps(job).encode() + b"\n")
        answer = server.makefile().readline()
    return int(answer) if answer else 137  # it died


def serve(address: str) -> None:
    """Import everything, then answer until killed; each job has a process of its own."""
    sys.path.insert(0, str(REPO))
    import matplotlib.pyplot  # noqa: F401

    from advprompt.cli import train  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            caller, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                answer(caller)
            caller.close()


def answer(caller: socket.socket) -> None:
    """Do one job in this process and end it."""
    import runpy

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(caller, 1, 3)
    job = json.loads(caller.makefile().readline())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    code = 1
    try:
        words = job["words"]
        sys.argv = words
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        caller.sendall(f"{code}\n".encode())
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
