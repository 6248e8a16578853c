"""Train a public repository's own trainer: ``python released_run.py JOB.json``, in its folder.

Nothing of it is edited, and of our package only what lets Dassl be imported is used: its checkpoint
is what its code writes. ``out`` gets the answers of its own ``model_inference`` in its last clean
test, and how many its evaluator counted.
"""

import importlib.util
import json
import os
import runpy
import sys
import types
from pathlib import Path


def let_dassl_import(repaired):
    """Do what Dassl, or AdvPT's renamed copy of it, needs on this machine; or all our repairs."""
    ours = str(Path(__file__).resolve().parents[2] / "trainers")
    sys.path += [str(Path(ours).parent), ours]
    import compat
    import torch

    compat.guard_torchvision()
    compat.ensure_dassl()
    for name in compat.UNUSED_IMPORTS:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = compat._stub(name)
    package = types.ModuleType("ruamel")  # AdvPT imports ruamel.yaml and never calls it
    package.yaml = types.ModuleType("ruamel.yaml")
    sys.modules.update({"ruamel": package, "ruamel.yaml": package.yaml})
    if repaired:
        compat.modernize_dassl()
    sys.path.remove(ours)  # its `utils` would hide a host's
    for name in [name for name in sys.modules if name.partition(".")[0] == "utils"]:
        del sys.modules[name]
    schedule = torch.optim.lr_scheduler.LRScheduler
    start = schedule.__init__  # PyTorch 2.7 dropped `verbose`, which Dassl's warm-up gives
    schedule.__init__ = lambda self, optimizer, last=-1, verbose=False: start(self, optimizer, last)


def main(file):
    job = json.loads(Path(file).read_text())
    sys.path[0] = os.getcwd()
    let_dassl_import("by_hand" in job)
    engine = importlib.import_module(f"{job['dassl']}.engine")
    evaluator = importlib.import_module(f"{job['dassl']}.evaluation.evaluator").Classification
    build, process, evaluate = engine.build_trainer, evaluator.process, evaluator.evaluate
    trainers, logits, found = [], [], {}

    def build_trainer(cfg):
        trainers.append(build(cfg))
        if hasattr(trainers[0], "before_adv_test"):  # its own attack is not needed
            trainers[0].before_adv_test = lambda *args, **options: sys.exit(0)
        return trainers[0]

    def kept(self, output, label):
        logits.extend(output.float().tolist() if self is trainers[0].evaluator else [])
        process(self, output, label)

    def told(self):
        if self is trainers[0].evaluator:  # FAP has another one for attacked images
            found.update(logits=list(logits), correct=self._correct, n=self._total)
            logits.clear()
        return evaluate(self)

    engine.build_trainer, evaluator.process, evaluator.evaluate = build_trainer, kept, told
    sys.argv = ["train.py", *job["words"]]
    try:  # AdvPT's train.py uses two names that it does not define
        runpy.run_path("train.py", {"os": os, "path": "pkl"}, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    if "by_hand" in job:
        import torch

        from tests.hosts import by_hand

        if not found:  # CLAP's training ends without a test
            trainers[0].test()
        torch.save(by_hand.attack(trainers[0], trainers[0].cfg.TRAINER.NAME), job["by_hand"])
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
