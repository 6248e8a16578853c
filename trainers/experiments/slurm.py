"""Runs jobs on a Slurm cluster through submitit, an optional dependency: ``advprompt[slurm]``.

Login node and compute nodes must share the output folder: a job's lock and its record lie there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..utils import errors
from . import worker as jobs_worker
from .jobs import Job
from .pool import REFUSED
from .state import FOLDER, held, last_lines


class Submitted:
    """A job in the queue of the cluster, or past it.

    Results of submitit are pickles, which are not read: the record and the log say how it ended.
    """

    def __init__(self, job, log: Path):
        self.job, self.log, self.pid = job, log, f"{job.job_id}"

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        if held(f"{self.log}"):  # by another, so that this one had nothing to do
            return jobs_worker.BUSY
        said = last_lines(self.log)
        return REFUSED if said and said[0].startswith("error: ") else 0

    def stop(self) -> None:
        self.job.cancel(check=False)

    kill = stop


class Slurm:
    """Submits jobs, so many at a time.

    Args:
        jobs: in the queue or running, at most.
        output: of the sweep; submitit keeps its own files in ``OUTPUT/sweep/slurm``.
        minutes: limit of one job.
        cwd: folder to run in.
        cluster: ``local`` for processes of this machine in its place.
        options: of the cluster, such as ``slurm_partition``.

    Raises:
        UserError: submitit is not installed, or there is no Slurm here.
    """

    def __init__(
        self,
        jobs: int,
        output: str,
        *,
        minutes: int,
        cwd: str | None = None,
        cluster: str = "slurm",
        **options,
    ):
        try:
            import submitit
        except ImportError as error:
            raise errors.UserError(
                "--slurm needs submitit, which is not installed; run pip install 'submitit' (or "
                "'advprompt[slurm]')"
            ) from error
        self.helpers, self.cwd = submitit.helpers, cwd
        self.slots = [f"slurm.{i}" for i in range(jobs)]
        try:
            self.executor = submitit.AutoExecutor(
                folder=Path(output) / FOLDER / "slurm" / "%j", cluster=cluster
            )
        except RuntimeError as error:
            raise errors.UserError(
                f"--slurm finds no cluster here ({error}); start it where sbatch works"
            ) from error
        self.executor.update_parameters(timeout_min=minutes, **options)

    def start(self, job: Job, command: list[str], log: Path, slot: str) -> Submitted:
        words = ["env", "TQDM_MININTERVAL=5"]  # lines of a log, not frames of a screen
        words += [sys.executable, jobs_worker.__file__, str(log), *command]
        run = self.helpers.CommandFunction(words, verbose=False, cwd=self.cwd)
        self.executor.update_parameters(name=os.path.basename(os.path.dirname(job.folder))[:60])
        return Submitted(self.executor.submit(run), log)
