"""Dassl's files of a training, written whole and resumed exactly."""

import sys
from pathlib import Path

from dassl.engine import TrainerX

from .. import records
from ..utils.errors import UserError
from ..utils.io import atomic_write, read_json
from . import checkpoints, released, run_folder

# how prompts were trained whose checkpoint does not say it
UNKNOWN = {"shots": None, "epochs": None, "train_threat": None, "seed": -1}


class SavingTrainer(TrainerX):
    """A Dassl trainer whose checkpoints hold tensors, plain values and what they are of.

    A subclass has ``checkpoint_facts()`` and ``training_facts()`` (see :class:`RobustTrainer`) and
    the times of ``train``, ``bank`` and ``eval`` as ``seconds``.
    """

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        """Write Dassl's files ``<directory>/<name>/model.pth.tar-<epoch>``, atomically."""
        for name in self.get_model_names():
            folder = Path(directory) / name
            state = {
                "state_dict": {k: v.cpu() for k, v in self._models[name].state_dict().items()},
                "epoch": epoch + 1,
                "optimizer": self._optims[name].state_dict() if self._optims[name] else None,
                "scheduler": self._scheds[name].state_dict() if self._scheds[name] else None,
                "val_result": None if val_result is None else float(val_result),
                "seconds": dict(self.seconds),
                "best_result": float(self.best_result),
                "advprompt": self.checkpoint_facts(),
                "training": self.training_facts(),
            }
            if hasattr(self, "scaler"):
                state["scaler"] = self.scaler.state_dict()
            file = model_name or f"model.pth.tar-{epoch + 1}"
            checkpoints.save_checkpoint(folder / file, state)
            if is_best:
                checkpoints.save_checkpoint(folder / "model-best.pth.tar", state)
            # Dassl's pointer to the newest file, which resuming reads
            with atomic_write(folder / "checkpoint") as temporary:
                temporary.write_text(f"{file}\n", encoding="utf-8")
            print(f"Checkpoint saved to {folder / file}")

    def resume_model_if_exist(self, directory):
        """Resume from the newest checkpoint; return the epoch to start with.

        The run's own folder comes before ``directory``, which differs from it under ``--resume``
        (UserError if that has no checkpoint, or one that does not fit).
        """
        start = 0
        for name in self.get_model_names():
            folders = [Path(self.output_dir) / name, Path(directory) / name]
            path = next(filter(None, map(checkpoints.newest_checkpoint, folders)), None)
            if path is None and self.cfg.RESUME:
                raise UserError(
                    f"there is no checkpoint to resume from in '{folders[-1]}'; give --resume the "
                    "folder of a run, or leave it out to train from the start"
                )
            if path is None:
                return 0
            state = checkpoints.load_checkpoint(path)
            if not is_ours(state):
                raise UserError(
                    f"checkpoint '{path}' does not say how it was trained, so its training cannot "
                    "be continued; test it with --eval-only --model-dir, or start from it with "
                    "MODEL.INIT_WEIGHTS"
                )
            facts = state.get("advprompt") or {}
            checkpoints.check_facts(facts, self.checkpoint_facts(), path, resuming=True)
            self._check_data(state, path)
            checkpoints.load_prompts(self._models[name], state["state_dict"], path)
            parts = {"optimizer": self._optims[name], "scheduler": self._scheds[name]}
            for part, live in (parts | {"scaler": getattr(self, "scaler", None)}).items():
                if state.get(part):
                    live.load_state_dict(state[part])
            self.seconds = dict(state["seconds"])
            self.best_result = state["best_result"]
            start = state["epoch"]
            print(f"Resuming {name} from {path} (epoch {start})")
        return start

    def _check_data(self, state: dict, path) -> None:
        """Refuse to continue a training on other data; older checkpoints do not know theirs."""
        theirs = (state["training"].get("data") or {}).get("data_sha256")
        if theirs and theirs != self.data.of_training["data_sha256"]:
            raise UserError(
                f"checkpoint '{path}' was trained on other images or classes than "
                f"'{self.cfg.DATASET.ROOT}' has now; choose another output folder (OUTPUT, "
                "--output-dir), or give the data it was trained on"
            )

    def load_model(self, directory, epoch=None):
        """Load prompts for evaluation: of ``epoch``, else the best on validation, else the newest.

        UserError if none is there, or if it is damaged or of another trainer, width or class set.
        """
        self.tested = run_folder.test_facts(True, directory, epoch)
        if not directory and self.trainable:
            asked = any(word.startswith("--eval") for word in sys.argv)
            if self.task is None and not asked:  # a fork's train.py
                raise UserError(
                    "train.py was started without --eval-only and loads a trained model all the "
                    "same, so this fork trains only when told to; see 'python train.py --help' "
                    "for its argument (such as --train), or give --model-dir RUN to test"
                )
            raise UserError(
                f"--eval-only tests trained prompts, but --model-dir, the run folder of a trained "
                f"{type(self).__name__}, was not given"
            )
        for name in self.get_model_names():
            own = name == checkpoints.LEARNER
            folder = checkpoints.learner_of(directory) if own else Path(directory) / name
            path = checkpoints.chosen_checkpoint(folder, epoch) or folder / "model-best.pth.tar"
            state = checkpoints.load_checkpoint(path)
            facts = state.get("advprompt") or {}
            if state["released"]:
                self.released = released.fit(self, state["released"], path)
            else:
                self.before_loading(facts)
            checkpoints.check_facts(facts, self.checkpoint_facts(), path)
            checkpoints.load_prompts(self._models[name], state["state_dict"], path)
            self.origin = self._origin(state, Path(directory))
            if epoch is not None and self.origin is not UNKNOWN:
                self.origin["epochs"] = epoch
            print(f"Loaded {name} from {path} (epoch {state.get('epoch')})")

    def before_loading(self, facts: dict) -> None:
        """Prepare for testing a checkpoint; ``facts`` is what it states of itself."""

    @staticmethod
    def _origin(state: dict, run: Path) -> dict:
        """Return how the prompts of a checkpoint were trained; older versions noted less of it."""
        if not is_ours(state):
            return UNKNOWN
        found = dict(state["training"])
        if "dataset" not in found and (record := records.completed_record(run)):
            found["dataset"] = record["dataset"]
        config = run / run_folder.CONFIG_FILE
        stored = read_json(config) if "data" not in found and config.is_file() else {}
        if stored and "eval_only" not in stored:
            split = stored.get("DATASET.SUBSAMPLE_CLASSES", "all")
            others = dict.fromkeys(("name", "classes", "data_sha256", "set_sha256"))
            found["data"] = {"split": split} | others
        return found


def is_ours(state: dict) -> bool:
    """Return True if a checkpoint says how its prompts were trained, as ours do."""
    training = state.get("training")
    return isinstance(training, dict) and training.keys() >= {"shots", "epochs", "train_threat"}
