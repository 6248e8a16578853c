"""Which keys identify a training, which a test, and which neither.

A run folder holds what was trained; a test is a record inside it. These lists are the only ones.
"""

from __future__ import annotations

from collections.abc import Mapping

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
    "TEST.PICTURE",
    "TEST.PROBES",
    "TRAINER.ADVPT.BANK_BATCH",
    "TRAINER.ADVPT.CLASS_CHUNK",  # of older versions
    "TRAINER.ADVERSARIAL.CLASS_CHUNK",
)
# Groups of keys that concern tests alone: changing one of them never trains again.
TEST_GROUPS = ("TEST.", "ATTACK.TEST.", "DEFENCE.", "DATALOADER.TEST.")
TRAINING = ("TEST.FINAL_MODEL",)  # the exceptions: it chooses among the epochs' models


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
