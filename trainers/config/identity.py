"""Which keys identify a training, which a test, and which neither.

A run folder holds what was trained; a test is a record inside it. These lists are the only ones.
"""

from collections.abc import Iterable, Mapping

from ..utils.errors import UserError

# Keys that change neither a training nor a result.
NEUTRAL = (
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "USE_CUDA",
    "DATASET.ROOT",
    "DATASET.CACHE_DIR",
    "DATASET.FEATURE_DIR",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.TEST.BATCH_SIZE",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TRAIN.ROBUST_FREQ",
    "TRAIN.ROBUST_SUBSET",
    "TEST.PICTURE",
    "TEST.PROBES",
    "TRAINER.ADVPT.BANK_BATCH",
    "TRAINER.ADVPT.CLASS_CHUNK",  # of older versions
    "TRAINER.ADVERSARIAL.CLASS_CHUNK",
    # of speed: only the order of rounding changes, as between two devices
    "TRAINER.ADVERSARIAL.CUDA_GRAPH",
    "DATALOADER.TEST.PIN_MEMORY",
    "OPTIM.FUSED",
    "MODEL.BACKBONE.COMPILE",
    "MODEL.BACKBONE.CHANNELS_LAST",
)
# Groups of keys that concern tests alone: changing one of them never trains again.
TEST_GROUPS = ("TEST.", "ATTACK.TEST.", "DEFENCE.", "TESTTIME.", "DATALOADER.TEST.")
TRAINING = ("TEST.FINAL_MODEL",)  # the exceptions: it chooses among the epochs' models
LABELS = ("TEST.PROTOCOL", "TEST.NO_TEST")  # of a test, but change none of its figures
# What a test takes from the settings of its model and its data.
OF_A_TEST = ("TRAINER.NAME", "MODEL.BACKBONE.NAME", "INPUT.SIZE", "INPUT.INTERPOLATION")
OF_A_TEST += tuple(f"DATASET.{k}" for k in ("NAME", "SUBSAMPLE_CLASSES", "TEMPLATE", "FOLDER_NAME"))
# What only a training uses; a model that is not trained does not depend on it.
ONLY_TRAINING = ("OPTIM.", "TRAIN.", "DATALOADER.TRAIN_", "DATASET.NUM_", "DATASET.FEWER_")
ONLY_TRAINING += ("DATASET.TRANSFORMS", "INPUT.TRANSFORMS")


def is_neutral(key: str) -> bool:
    """Return True if the key changes neither a training nor a result."""
    return key in NEUTRAL


def is_test(key: str) -> bool:
    """Return True if the key concerns tests alone."""
    return key.startswith(TEST_GROUPS) and key not in TRAINING


def training(settings: Mapping) -> dict:
    """Return the settings, of a flat configuration, that a training depends on."""
    return {k: v for k, v in settings.items() if not is_neutral(k) and not is_test(k)}


def testing(settings: Mapping) -> dict:
    """Return the settings, of a flat configuration, that only a test depends on."""
    return {k: v for k, v in settings.items() if not is_neutral(k) and is_test(k)}


def used(settings: Mapping, nodes: tuple, *, trained: bool, attacked: bool) -> dict:
    """Return those settings, of a flat configuration, that a trainer uses in training.

    It has the ``nodes`` in ``TRAINER``, is trained at all, and sees attacked images then, or not.
    """
    unused = (() if trained else ONLY_TRAINING) + (() if attacked else ("ATTACK.TRAIN.",))
    mine = ("TRAINER.NAME", *(f"TRAINER.{node}." for node in nodes))

    def counts(key: str) -> bool:
        return not key.startswith(unused) and (key.startswith(mine) or key[:8] != "TRAINER.")

    return {key: value for key, value in training(settings).items() if counts(key)}


def refuse_training(names: Iterable[str]) -> None:
    """UserError if keys of a test's settings are ones that only a training uses."""
    if found := [name for name in names if name.startswith((*ONLY_TRAINING, "ATTACK.TRAIN."))]:
        raise UserError(
            f"{' and '.join(found)} would change nothing: the model is tested as it was trained; "
            "leave it out, or train a model with it"
        )


def of_test(settings: Mapping) -> dict:
    """Return what makes a test, of a flat configuration: images, attacks, defence and model."""
    own = {key: settings[key] for key in OF_A_TEST if key in settings}
    return own | {key: v for key, v in testing(settings).items() if key not in LABELS}
