"""What stops a training, and what it warns about."""

import math

from ..utils.errors import UserError

COLLAPSED_LOSS = 0.9  # of ln K
COLLAPSED_CONSISTENCY = 0.02  # nats


class NonFiniteLoss(UserError, RuntimeError):
    """Training stopped at an infinite or NaN loss or gradient; no checkpoint was touched."""

    def __init__(self, what: str, where: str):
        super().__init__(
            f"{what} at {where}; checkpoints are unchanged, lower OPTIM.LR or set "
            "TRAINER.ADVERSARIAL.PREC fp32"
        )


def collapse_warning(
    clean_loss: float | None, consistency: float | None, n_classes: int, key: str
) -> str | None:
    """Return a warning where the model has become consistent by answering all images alike.

    ``clean_loss`` is the mean cross-entropy on clean images over an epoch, ``consistency`` the mean
    divergence between clean and attacked answers in nats, ``key`` the config key to change.
    """
    if clean_loss is None or consistency is None or n_classes < 2:
        return None
    chance = math.log(n_classes)
    if clean_loss < COLLAPSED_LOSS * chance or consistency > COLLAPSED_CONSISTENCY:
        return None
    return (
        f"training may have collapsed: the clean loss is {clean_loss:.3f} (guessing gives "
        f"ln {n_classes} = {chance:.3f}) while the consistency is {consistency:.2g}; lower {key}"
    )
