"""What a run was made with: versions, commit, device."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from .version import __version__

# import name -> name on the package index
_PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "open_clip": "open_clip_torch",
    "numpy": "numpy",
}


def versions() -> dict[str, str]:
    """Return the versions of Python, advprompt and the packages that shape the figures."""
    found = {"python": platform.python_version(), "advprompt": __version__}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """Return the commit of the clone this code lies in (``-dirty`` where it was edited).

    None for an installed package: a repository that merely contains the virtual
    environment does not track this file.
    """
    here = Path(__file__).resolve()
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", here.name],
            check=True,
            capture_output=True,
            timeout=20,
        )
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def _cpu_name() -> str:
    name = platform.processor()
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE):
            name = match[1]
    except OSError:
        pass
    name = re.sub(r"\((R|TM)\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", name or platform.machine())
    return " ".join(name.split())


def device_name(device="cpu") -> str:
    """Return the device in words, such as ``2 x CPU AMD EPYC 7763`` or ``NVIDIA H200``."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not offered by macOS and Windows
        cores = os.cpu_count() or 1
    return f"{cores} x CPU {_cpu_name()}"


def environment(device="cpu") -> dict:
    """Return ``versions``, ``git_commit`` and ``device`` as a record states them."""
    return {
        "versions": versions(),
        "git_commit": git_commit(),
        "device": device_name(device),
    }
