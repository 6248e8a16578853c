"""Train and test with CoOp's command line.

    python train.py --root $DATA --seed 1 --trainer AdvPT \
        --dataset-config-file configs/datasets/oxford_pets.yaml \
        --config-file configs/trainers/AdvPT/vit_b16.yaml \
        --attack-config-file configs/attacks/advpt16.yaml \
        --output-dir output/oxford_pets/AdvPT/seed1 DATASET.NUM_SHOTS 16

With --dry-run it says what would be done and does nothing.
Many GPUs: one run each, by `python -m advprompt sweep` (docs/sweep.md).
"""

import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent


def other_advprompt() -> str:
    """Return why the package that `import advprompt` finds is not this clone's; "" if it is."""
    spec = find_spec("advprompt")
    if spec is None:
        return "advprompt is not installed here; run 'bash scripts/setup.sh' in this clone"
    found = Path(spec.origin).resolve().parent
    if found == HERE / "trainers":
        return ""
    return (
        f"'import advprompt' finds '{found}', not this clone; run 'bash scripts/setup.sh' here, or "
        "activate the environment in which this clone is installed"
    )


if __name__ == "__main__":
    if why := other_advprompt():
        sys.exit(print(f"error: {why}", file=sys.stderr) or 2)
    from advprompt.cli.train import main
    from advprompt.utils.entry import run_tool

    sys.exit(run_tool(main))
