"""Fetching data sets: several files at once, each downloaded, unpacked aside and moved in place."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..datasets import base, sources, splits
from .download import DownloadError, Monitor, Rules, download
from .inventory import Inventory
from .unpack import BadArchive, disk_error, unpack

try:
    import fcntl
except ImportError:  # Windows: two fetches of one set at a time are not kept apart
    fcntl = None

from ..utils import errors
from ..utils import io as files

RULES = Rules()
STORE = ".downloads"  # folder in the data root for what is on its way
GROWTH = 2.05  # an archive of images and what it unpacks to, relative to the archive


@dataclass(frozen=True)
class Job:
    """One piece of one data set that is to be fetched."""

    name: str  # of the data set
    piece: object
    folder: Path  # of the data set
    root: Path

    @property
    def size(self) -> int:
        """Bytes to download, 0 where nobody recorded them."""
        return self.piece.addresses[0].size or 0

    def store(self, address) -> Path:
        """Return where the file of this address lies until it is in its place."""
        return self.root / STORE / self.name / address.name

    def todo(self) -> list[str]:
        """Return what is not there yet of what the piece makes."""
        return [name for name in self.piece.makes if not os.path.lexists(self.folder / name)]


def jobs_of(inventory: Inventory, root: Path) -> tuple[list[Job], list[str]]:
    """Return what can be fetched of what is missing, and what a person must do about the rest."""
    jobs, advice = {}, {}
    for finding in inventory.findings:
        piece = finding.piece
        if not finding.missing or piece is None:
            continue
        if not finding.absent:
            advice[finding.path] = (
                f"'{finding.path}' is not complete ({finding.state}) but it is yours, so it is "
                "left as it is: complete it, or move it away and fetch again"
            )
        elif piece.addresses:
            jobs[piece] = Job(inventory.name, piece, inventory.folder, root)
        else:
            places = " and ".join(f"'{inventory.folder / name}'" for name in piece.makes)
            advice[piece] = f"to have {places}: {piece.by_hand}"
    return list(jobs.values()), list(advice.values())


@contextlib.contextmanager
def locked(path: Path, monitor: Monitor) -> Iterator[None]:
    """Hold a lock file, waiting for another process that has it; a killed one gives it up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        with open(path, "ab") as handle:
            if _is_mine(handle, path):
                try:
                    yield
                finally:
                    with contextlib.suppress(OSError):
                        path.unlink()
                return
        if not told:
            monitor.tell(f"{path.stem}: waiting for another process that fetches it")
        told = True
        monitor.wait(0.2)


def _is_mine(handle, path: Path) -> bool:
    """Try to lock an open file; it must still be the one at ``path``."""
    try:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except (BlockingIOError, FileNotFoundError):  # held, or removed by its holder just now
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return True  # a network disk without locks
        raise


def _check_file(job: Job, path: Path) -> None:
    """Check that a single file is what it is called."""
    if path.suffix != ".json":
        return
    try:
        if path.name == sources.SOURCES[job.name].data_class.split_file:
            splits.read_split(path)
        elif not files.read_json(path):
            raise DownloadError("it is empty")
    except errors.UserError as error:
        raise DownloadError("it is not the JSON file that was expected") from error


def _place_file(job: Job, path: Path) -> None:
    """Put a downloaded file in its place, which may be on another disk."""
    _check_file(job, path)
    target = job.folder / job.piece.makes[0]
    staged = target.with_name(f".unpacking-{target.name}")
    shutil.copyfile(path, staged)
    with open(staged, "rb+") as handle:
        os.fsync(handle.fileno())
    if not os.path.lexists(target):
        os.rename(staged, target)
    staged.unlink(missing_ok=True)


def _place_archive(job: Job, address, path: Path, monitor: Monitor) -> None:
    """Unpack an archive beside its place, then move in what is not there yet."""
    staging = job.folder / f".unpacking-{address.name}"
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    todo = job.todo()

    def take(archive: Path, folder: Path, wanted: dict[str, str]) -> None:
        size = archive.stat().st_size
        unpack(
            archive,
            folder,
            wanted,
            progress=lambda done: monitor.progress("unpacking", done, size),
            stop=monitor.stop,
        )
        for inside, made in wanted.items():
            found = folder / made
            if not (any(found.iterdir()) if found.is_dir() else found.is_file()):
                raise BadArchive(f"it has no '{inside}'")

    try:
        archive = path
        if address.inner:
            take(path, staging / "outer", {address.inner: "inner"})
            archive = staging / "outer" / "inner"
        take(archive, staging / "made", {address.inside(name): name for name in todo})
        if hasattr(os, "sync"):
            os.sync()  # before anything gets its name
        for name in todo:
            target = job.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(target):
                os.rename(staging / "made" / name, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def run(job: Job, monitor: Monitor, rules: Rules) -> str:
    """Fetch one piece and return what to tell about it.

    Raises:
        DownloadError: no address gave it; the text says why and what to do.
        UserError: the disk is full or cannot be written to.
    """
    failed = []
    for address in job.piece.addresses:
        path = job.store(address)
        try:
            with locked(path.with_name(f"{address.name}.lock"), monitor):
                if not job.todo():
                    return f"{job.name}: {address.name} was fetched by another process"
                digest = download(address, path, monitor, rules)
                job.folder.mkdir(parents=True, exist_ok=True)
                try:
                    if address.is_archive:
                        _place_archive(job, address, path, monitor)
                    else:
                        _place_file(job, path)
                except (BadArchive, DownloadError):
                    path.unlink(missing_ok=True)
                    raise
                path.unlink(missing_ok=True)
        except BadArchive as error:
            failed.append(f"{address.url}: the archive was refused: {error}")
        except DownloadError as error:
            failed.append(f"{address.url}: {error}")
        except OSError as error:
            raise disk_error(error, job.folder) from error
        else:
            known = "checksum verified" if address.digests else f"SHA-256 {digest}, none is known"
            made = ", ".join(job.piece.makes[:2]) + (", ..." if job.piece.makes[2:] else "")
            return f"{job.name}: {address.name} -> {job.folder}: {made} ({known})"
    last = job.piece.addresses[0]
    verb = "unpack it" if last.is_archive else "put it"
    places = " and ".join(f"'{job.folder / name}'" for name in job.piece.makes)
    raise DownloadError(
        f"{job.name}: {last.name} could not be fetched ({'; '.join(failed)}); try again later, or "
        f"get it by hand from {last.page or last.url} and {verb} so that there is {places}"
    )


def check_space(jobs: list[Job], root: Path) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        UserError: it cannot.
    """
    needed = 0
    for job in jobs:
        part = job.store(job.piece.addresses[0])
        part = part.with_name(f"{part.name}.part")
        done = part.stat().st_size if part.is_file() else 0
        growth = GROWTH if job.piece.addresses[0].is_archive else 1.0
        needed += max(0, int(job.size * growth) - done)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise errors.UserError(
            f"the disk of '{root}' has {free / 1e9:.1f} GB free and this needs about "
            f"{needed / 1e9:.1f} GB (archives and what they unpack to); free some space, name "
            "fewer data sets or choose another --root"
        )


def _with_bar(job: Job, stop: threading.Event, rules: Rules) -> str:
    """Run one job behind its own progress bar."""
    name = f"{job.name}/{job.piece.addresses[0].name}"
    bar = tqdm(total=job.size or None, desc=name, unit="B", unit_scale=True, leave=False)
    doing = ""

    def progress(what: str, done: int, total: int | None) -> None:
        nonlocal doing
        if what != doing:
            doing, bar.start_t = what, time.time()
            bar.set_description_str(f"{what} {name}", refresh=False)
        bar.total = total or bar.total
        bar.update(done - bar.n)

    def tell(line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    with bar:
        return run(job, Monitor(progress, tell, stop), rules)


def fetch_all(jobs: list[Job], root: Path, at_once: int) -> list[str]:
    """Fetch the pieces, ``at_once`` of them at a time, small ones first.

    Returns:
        one sentence for each that could not be had.

    Raises:
        UserError: ``root`` cannot be written to, or its disk is or runs full; what has arrived
            is kept.
    """
    files.writable_dir(root)
    if not base.writable(root):
        raise errors.UserError(
            f"'{root}' is read-only; choose another folder with --root, or change its permissions"
        )
    check_space(jobs, root)
    stop, failed = threading.Event(), []
    with ThreadPoolExecutor(at_once) as pool:
        ordered = sorted(jobs, key=lambda job: (job.piece.addresses[0].is_archive, job.size))
        futures = [pool.submit(_with_bar, job, stop, RULES) for job in ordered]
        try:
            for future in as_completed(futures):
                try:
                    tqdm.write(future.result())
                except DownloadError as error:
                    failed.append(str(error))
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    for folder in (*{root / STORE / job.name for job in jobs}, root / STORE):
        with contextlib.suppress(OSError):  # something is left in it
            folder.rmdir()
    return failed
