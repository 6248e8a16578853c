"""What is done of some jobs, what is missing for the rest, and the list of both: a dry run."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from tabulate import tabulate

from ..backbone import loading
from ..config import host
from ..engine import run_folder
from ..engine.checkpoints import LEARNER, chosen_checkpoint
from ..engine.data import Data, listed
from ..records import FILE_NAME
from ..utils.errors import UserError
from .jobs import Job
from .settings import recorded

STATES = {"run": "to run", "test": "to test (trained before)", "resume": "to resume"}
STATES |= {"running": "running", "refuse": "refused", "done": "done"}


def register_datasets() -> None:
    """Make the data sets known to Dassl: those of the fork around us, and ours."""
    host.join()
    from .. import datasets  # noqa: F401  registers them


class Look:
    """Compares completed records with the data and the models that are there now."""

    def __init__(self):
        self.data: dict[tuple, Data | None] = {}  # of several jobs, listed once

    def refusal(self, job: Job, record: dict, place: Path) -> str:
        """Return why a record of a job is of something else; "" where nothing speaks against it.

        A model is read only where it is newer than the record in ``place``.
        """
        model = chosen_checkpoint(Path(job.run, LEARNER))
        changed = model and model.stat().st_mtime > (place / FILE_NAME).stat().st_mtime
        try:
            if changed:
                run_folder.check_model(place, record, Path(job.run))
            if record.get("data_sha256") and (data := self._listed(job)):
                data.check(place, record, trained=not job.needs)
        except UserError as error:
            return str(error)
        return ""

    def _listed(self, job: Job) -> Data | None:
        key = job.settings.files, job.settings.opts
        if key not in self.data:
            self.data[key] = None
            with contextlib.suppress(UserError):  # without its data nothing can be compared
                self.data[key] = listed(cfg_of(job))
        return self.data[key]


def state_of(job: Job, look: Look | None = None) -> tuple[str, str]:
    """Return a job's state in its run folder, one of ``STATES``, and why it would be refused."""
    record, place = recorded(job.settings, job.run)
    if record:
        why = (look or Look()).refusal(job, record, place)
        return "refuse" if why else "done", why
    path = Path(job.run, run_folder.CONFIG_FILE)
    if not path.is_file():
        return "run", ""
    try:
        if not job.needs:
            run_folder.check(Path(job.run), job.settings.training())
    except UserError as error:
        return "refuse", str(error)
    begun = os.path.exists(f"{job.run}/{run_folder.TESTS}/{job.test}/{run_folder.UNFINISHED}")
    return ("test" if place and not begun else "resume"), ""


def listing(
    jobs: Sequence[Job],
    output: str,
    *,
    held: Callable[[str], bool] = lambda run: False,
    wrong: dict | None = None,
) -> tuple[str, bool]:
    """Return the table of jobs with their states, and whether any is refused.

    ``held`` says whether another process works in a run's folder, ``wrong`` why settings of jobs
    are refused, by their keys.
    """
    rows, notes, todo, look = [], [], {}, Look()
    for job in jobs:
        state, why = state_of(job, look)
        if wrong and job.key in wrong:
            state, why = "refuse", str(wrong[job.key])
        elif state != "done" and held(job.run):
            state = "running"
        if state not in ("done", "refuse"):
            todo[job.dataset, job.config] = job
        notes += [why] if why else []
        place = os.path.relpath(job.run, output) + (f" ({job.test})" if job.needs else "")
        rows.append((state, job.name, place))
    table = tabulate(rows, ["", "run", f"folder in {output}"], disable_numparse=True)
    counts = Counter(state for state, *_ in rows)
    notes += missing(cfg_of(job) for job in todo.values())
    lines = [table, "", summary(counts), *(f"note: {why}" for why in dict.fromkeys(notes))]
    return "\n".join(lines), bool(counts["refuse"])


def summary(counts: Counter) -> str:
    """Return how many jobs are in which state, as a sentence."""
    said = ", ".join(f"{counts[state]} {words}" for state, words in STATES.items() if counts[state])
    return f"{counts.total()} run{'s' * (counts.total() != 1)}: {said or 'nothing to do'}."


def cfg_of(job: Job):
    """Return a configuration with a job's data and backbone."""
    register_datasets()
    cfg = job.settings.cfg()
    cfg.DATASET.ROOT = job.words[job.words.index("--root") + 1]
    cfg.DATASET.CACHE_DIR = job.words[job.words.index("DATASET.CACHE_DIR") + 1]
    return cfg


def missing(cfgs: Iterable) -> list[str]:
    """Return a short line for each data set and each backbone that is not there."""
    found = set()
    for cfg in cfgs:
        try:
            check_data(cfg)
        except UserError as error:
            found.add(
                str(error).partition("; ")[0] + "; 'advprompt data check' says where to get it"
            )
        name = cfg.MODEL.BACKBONE.NAME
        path, hint = Path(name.removeprefix("file:").partition("?")[0]).expanduser(), ""
        if name in loading.OPENAI:
            path = Path(loading.CACHE).expanduser() / Path(loading.openai_url(name)).name
            hint = "; the first run fetches them"
        if (name.startswith("file:") or hint) and not path.exists():
            found.add(f"the weights of {name} are not at '{path}'{hint}")
    return sorted(found)


def check_data(cfg) -> None:
    """Raise a UserError if the folder of a data set does not exist; nothing is read."""
    made = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if not hasattr(made, "locate"):  # drawn, or a fork's own
        return
    data = object.__new__(made)  # without its images, which __init__ reads
    data.name, data.root = made.__name__, Path(cfg.DATASET.ROOT).expanduser().absolute()
    data.locate(cfg)
