"""Train a public repository's own trainer: ``python released_run.py JOB.json``, in its folder.

Nothing of it is edited, and of our package only what lets Dassl be imported is used, so that its
checkpoint is what its code writes, with the pickled schedule. JOB's ``out`` gets what its own
``model_inference`` answered in its last clean test, and the accuracy that its evaluator printed.
"""

import importlib.util
import json
import os
import runpy
import sys
import types
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def let_dassl_import():
    """Do what is needed before Dassl, or a renamed copy of it, is imported on this machine."""
    sys.path.append(str(REPO / "trainers"))
    import compat
    import torch

    compat.guard_torchvision()
    compat.ensure_dassl()
    for name in compat.UNUSED_IMPORTS:  # AdvPT's copy needs them, too
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = compat._stub(name)
    if importlib.util.find_spec("ruamel") is None:  # AdvPT imports it and never calls it
        for name in ("ruamel", "ruamel.yaml"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["ruamel"].yaml = sys.modules["ruamel.yaml"]
    schedule = torch.optim.lr_scheduler.LRScheduler
    start = schedule.__init__
    # PyTorch 2.7 dropped `verbose`, which Dassl's warm-up gives
    schedule.__init__ = lambda self, optimizer, last_epoch=-1, verbose=False: start(
        self, optimizer, last_epoch
    )


def main(file):
    job = json.loads(Path(file).read_text())
    sys.path[0] = os.getcwd()
    let_dassl_import()
    engine = importlib.import_module(f"{job['dassl']}.engine")
    evaluator = importlib.import_module(f"{job['dassl']}.evaluation.evaluator").Classification
    build, process, evaluate = engine.build_trainer, evaluator.process, evaluator.evaluate
    trainers, logits, found = [], [], {}

    def stop(*args, **options):
        raise SystemExit(0)  # its own attack is not needed

    def build_trainer(cfg):
        trainers.append(build(cfg))
        if hasattr(trainers[0], "before_adv_test"):
            trainers[0].before_adv_test = stop
        return trainers[0]

    def kept(self, output, label):
        if self is trainers[0].evaluator:  # FAP has another one for attacked images
            logits.extend(output.float().tolist())
        process(self, output, label)

    def told(self):
        results = evaluate(self)
        if self is trainers[0].evaluator:
            found.update(logits=list(logits), correct=self._correct, n=self._total)
            logits.clear()
        return results

    engine.build_trainer, evaluator.process, evaluator.evaluate = build_trainer, kept, told
    sys.argv = ["train.py", *job["words"]]
    try:  # AdvPT's train.py uses two names that it does not define
        runpy.run_path("train.py", {"os": os, "path": "pkl"}, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
