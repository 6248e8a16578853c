"""Fetching data sets: several files at once, each downloaded, unpacked aside and moved in place."""

import contextlib
import errno
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import filelock
import pooch
from tqdm import tqdm

from ..datasets import splits
from ..datasets.sources import Address, Piece
from ..utils import errors, io
from .download import DownloadError, Progress, download
from .inventory import Inventory
from .unpack import unpack

STORE = ".downloads"  # folder in the data root for what is on its way
GROWTH = 2.05  # an archive of images and what it unpacks to, relative to the archive


@dataclass(frozen=True)
class Job:
    """One piece of one data set that is to be fetched."""

    name: str  # of the data set
    piece: Piece
    folder: Path  # of the data set
    store: Path  # folder of what is on its way

    @property
    def size(self) -> int:
        """Bytes to download, 0 where unknown."""
        return self.piece.addresses[0].size or 0

    @property
    def places(self) -> str:
        return " and ".join(f"'{self.folder / name}'" for name in self.piece.makes)

    def todo(self) -> list[str]:
        """Return what is still missing of what the piece makes."""
        return [name for name in self.piece.makes if not os.path.lexists(self.folder / name)]


def jobs_of(inventories: list[Inventory], root: Path) -> tuple[list[Job], list[str]]:
    """Return what can be fetched of what is missing, and what a person must do about the rest."""
    jobs, advice = {}, {}
    for found in inventories:
        for finding in found.findings:
            if not finding.missing or finding.piece is None:
                continue
            job = Job(found.name, finding.piece, found.folder, root / STORE / found.name)
            if os.path.lexists(finding.path):
                advice[finding.path] = (
                    f"'{finding.path}' is not complete ({finding.state}) but it is yours, so it is "
                    "left as it is: complete it, or move it away and fetch again"
                )
            elif job.piece.addresses:
                jobs[job] = None
            else:
                advice[job] = f"to have {job.places}: {job.piece.by_hand}"
    return list(jobs), list(advice.values())


@contextlib.contextmanager
def locked(path: Path, bar: Progress) -> Iterator[None]:
    """Hold a lock file, waiting while another process has it; a killed one gives it up."""
    lock, waiting = filelock.FileLock(path), False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            break
        except filelock.Timeout:
            if not waiting:
                tqdm.write(f"{path.stem}: waiting for another process that fetches it", sys.stderr)
            waiting = True
        except FileNotFoundError:  # its holder is done and removed the folder just now
            pass
        bar.pause(0.2)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def place(job: Job, address: Address, path: Path, bar: Progress) -> None:
    """Unpack or copy a download next to its place, then move in what is still missing."""
    staging, made = job.folder / f".unpacking-{address.name}", job.todo()
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    inside = {name: address.path_of(name) for name in made}
    try:
        (staging / "made").mkdir(parents=True)
        if address.inner:
            unpack(path, staging / "outer", [address.inner], bar)
            path = staging / "outer" / address.inner
            if not path.is_file():
                raise DownloadError(f"the archive has no '{address.inner}'")
        if address.is_archive:
            unpack(path, staging / "made", inside.values(), bar)
        else:
            if path.name.startswith("split_"):
                splits.read_split(path)
            shutil.copyfile(path, staging / "made" / inside[made[0]])
        for name in inside.values():
            found = staging / "made" / name
            if not (any(found.iterdir()) if found.is_dir() else found.is_file()):
                raise DownloadError(f"the archive has no '{name}'")
        for name in made:
            target = job.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(target):
                os.rename(staging / "made" / inside[name], target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def run(job: Job, stop: threading.Event) -> str:
    """Fetch one piece with its own progress bar and return what to report about it.

    Raises:
        DownloadError: no address gave it; the text says why and what to do.
        OSError: the disk is full or cannot be written to; what has arrived is kept.
    """
    failed = []
    name = f"{job.name}/{job.piece.addresses[0].name}"
    bar = Progress(total=job.size or None, desc=name, unit="B", unit_scale=True, leave=False)
    bar.stop = stop
    for address in job.piece.addresses:
        path = job.store / address.name
        with bar, locked(job.store / f"{address.name}.lock", bar):
            if not job.todo():
                return f"{job.name}: {address.name} was fetched by another process"
            try:
                download(address, job.store, bar)
                known = "checksum verified"
                if not address.checksum:
                    known = f"SHA-256 {pooch.file_hash(path)}, none is known"
                place(job, address, path, bar)
            except errors.UserError as error:
                path.unlink(missing_ok=True)
                failed.append(f"{address.url}: {error}")
            else:
                path.unlink()
                made = ", ".join(job.piece.makes[:2]) + (", ..." if job.piece.makes[2:] else "")
                return f"{job.name}: {address.name} -> {job.folder}: {made} ({known})"
    last = job.piece.addresses[0]
    verb = "unpack it" if last.is_archive else "put it"
    raise DownloadError(
        f"{job.name}: {last.name} could not be fetched ({'; '.join(failed)}); try again later, or "
        f"get it by hand from {last.page} and {verb} so that there is {job.places}"
    )


def fetch_all(jobs: list[Job], root: Path, at_once: int) -> list[str]:
    """Fetch the pieces, small ones first; return a sentence for each that no address gave.

    Raises:
        UserError: ``root`` cannot be written to, or its disk is or runs full; what has arrived
            is kept.
    """
    io.writable_dir(root)
    growth = {job: GROWTH if job.piece.addresses[0].is_archive else 1 for job in jobs}
    needed, free = sum(job.size * growth[job] for job in jobs), shutil.disk_usage(root).free
    if needed > free:
        raise errors.UserError(
            f"the disk of '{root}' has {free / 1e9:.1f} GB free and this needs about "
            f"{needed / 1e9:.1f} GB (archives and what they unpack to); free some space, name "
            "fewer data sets or choose another --root"
        )
    stop, failed = threading.Event(), []
    with ThreadPoolExecutor(at_once) as pool:
        ordered = sorted(jobs, key=lambda job: (growth[job], job.size))
        futures = [pool.submit(run, job, stop) for job in ordered]
        try:
            for future in as_completed(futures):
                try:
                    tqdm.write(future.result())
                except DownloadError as error:
                    failed.append(str(error))
        except BaseException as error:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if not isinstance(error, OSError):
                raise
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise errors.UserError(
                f"the disk of '{root}' is full; free some space, then run the same command again"
                if full
                else f"cannot write into '{root}' ({error}); change its permissions or choose "
                "another folder with --root"
            ) from error
    for folder in (*{job.store for job in jobs}, root / STORE):
        with contextlib.suppress(OSError):  # something is left in it
            folder.rmdir()
    return failed
