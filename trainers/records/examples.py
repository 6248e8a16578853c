"""The examples of an attack that a run keeps next to its record."""

from pathlib import Path

from ..utils.errors import UserError
from ..utils.io import load_tensors

EXAMPLES = "examples.safetensors"
MAGNIFICATION = 10  # of perturbations in pictures


def load_examples(path) -> dict:
    """Return the examples in ``examples.safetensors`` or the run folder that holds it.

    These are clean, adversarial: tensors (N, 3, H, W) in [0, 1]; labels: N class names; before,
    after: N pairs of class name and probability; eps in [0, 1] or None; title. UserError: missing,
    damaged, or another kind of file.
    """
    path = Path(path)
    path = path / EXAMPLES if path.is_dir() else path
    tensors, facts = load_tensors(path)
    names = {"clean", "adversarial", "labels", "before", "after", "eps", "title"}
    examples = tensors | {key: value for key, value in facts.items() if key in names}
    if set(examples) != names:
        raise UserError(
            f"'{path}' holds no examples of an attack; give the {EXAMPLES} of a finished run"
        )
    return examples


def perturbation(clean, adversarial):
    """Return the change of each pixel times ``MAGNIFICATION`` around grey, in [0, 1]."""
    return (0.5 + MAGNIFICATION * (adversarial - clean)).clamp(0, 1)
