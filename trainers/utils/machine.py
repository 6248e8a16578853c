"""The versions, commit and device of a run."""

import contextlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from .version import __version__

PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy")  # names on the package index


def versions() -> dict[str, str]:
    """Return the versions of Python, advprompt and the packages that shape the figures."""
    found = {"python": platform.python_version(), "advprompt": __version__}
    for name in PACKAGES:
        key = name.removesuffix("_torch")
        found[key] = "not installed"
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[key] = metadata.version(name)
    return found


def git_commit() -> str | None:
    """Return the commit of the clone that holds this code (``-dirty`` if it was edited).

    None for an installed package: a repository that merely contains the virtual
    environment does not track this file.
    """
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        # a fork's git settings are not ours, and this one may name a program to run
        command = ["git", "-C", str(here.parent), "-c", "core.fsmonitor=false", *words]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=20
        ).stdout

    try:
        git("ls-files", "--error-unmatch", here.name)
        described = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
    return described.strip() or None


def cores() -> int:
    """Return the number of CPU cores this process may use."""
    mine = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))  # not on macOS
    return len(mine(0))


def device_name(device="cpu") -> str:
    """Return the device in words, such as ``2 x CPU AMD EPYC 7763`` or ``NVIDIA H200``."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE):
            name = match[1]
    name = re.sub(r"\((R|TM)\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", name)
    return f"{cores()} x CPU {' '.join(name.split())}"


def environment(device="cpu") -> dict:
    """Return ``versions``, ``git_commit`` and ``device`` as a record states them."""
    return {"versions": versions(), "git_commit": git_commit(), "device": device_name(device)}
