"""Dassl's own keys that our trainers use; the defaults are Dassl's."""

from dataclasses import replace
from functools import partial

import dassl
from dassl.config import get_cfg_default
from dassl.data import data_manager
from dassl.data.transforms import transforms
from dassl.evaluation import EVALUATOR_REGISTRY
from dassl.optim.lr_scheduler import AVAI_SCHEDS
from dassl.optim.optimizer import AVAI_OPTIMS

from ..utils.errors import UserError
from .declared import KEYS, Key
from .merging import leaves

OF_DASSL = "RandomSampler SequentialSampler RandomDomainSampler SeqDomainSampler RandomClassSampler"
SAMPLERS = tuple(getattr(data_manager, "SAMPLERS", OF_DASSL.split()))
STAND_IN = getattr(dassl, "STAND_IN", False)


def check_transforms(name: str, value) -> None:
    """Refuse to normalise pixels."""
    if "normalize" in value:
        raise UserError(
            f"{name} holds 'normalize', but attacks need pixels in [0, 1] and the model "
            "normalises by itself; remove it"
        )


_key = partial(Key, None)
_transforms = partial(_key, choices=transforms.AVAI_CHOICES, check=check_transforms)
_share = partial(_key, least=0, most=1)
_part = partial(_key, least=1e-6, most=1)
_of_dassl = partial(_key, choices=(False,) if STAND_IN else ())  # Dassl itself only
_rate = partial(_key, least=0, most=1000)
_beta = partial(_key, least=0, most=0.999999)
_count = partial(_key, least=0)
_size = partial(_key, least=1, most=10**6)
USED = {
    "OUTPUT_DIR": _key("folder of the run"),
    "RESUME": _key("folder of an interrupted run to continue"),
    "SEED": _key("of all draws; -1: not fixed", least=-1, most=2**32 - 1),
    "USE_CUDA": _key("use a GPU where there is one"),
    "VERBOSE": _key("print what is loaded"),
    "INPUT.SIZE": _key("height and width in pixels, the model's", least=1, most=4096, count=2),
    "INPUT.INTERPOLATION": _key("of resized images", choices=("bilinear", "bicubic", "nearest")),
    "INPUT.TRANSFORMS": _transforms("augmentation of training images"),
    "INPUT.NO_TRANSFORM": _key("leave images undecoded: not with our trainers", choices=(False,)),
    "INPUT.RRCROP_SCALE": _part("of the area, that random_resized_crop takes", count=2),
    "DATASET.ROOT": _key("folder of the data sets"),
    "DATASET.NAME": _key("name of the data set"),
    "DATASET.NUM_SHOTS": _key("training images per class; below 1: all", least=-1),
    "DATALOADER.NUM_WORKERS": _count("processes that load images", most=1024),
    "DATALOADER.K_TRANSFORMS": _size("views of an image", most=1 if STAND_IN else 100),
    "DATALOADER.RETURN_IMG0": _of_dassl("the image as it was, too; Dassl itself only"),
    "DATALOADER.TRAIN_X.SAMPLER": _key("order of the training images", choices=SAMPLERS),
    "DATALOADER.TRAIN_X.BATCH_SIZE": _size("training images per batch"),
    "DATALOADER.TEST.SAMPLER": _key("order of the test images", choices=SAMPLERS),
    "DATALOADER.TEST.BATCH_SIZE": _size("test images per batch"),
    "MODEL.INIT_WEIGHTS": _key("export, run folder or checkpoint that training starts from"),
    "MODEL.BACKBONE.NAME": _key("the CLIP: see docs/backbones.md"),
    "OPTIM.NAME": _key("the optimizer", choices=AVAI_OPTIMS),
    "OPTIM.LR": _rate("learning rate"),
    "OPTIM.WEIGHT_DECAY": _rate("weight decay"),
    "OPTIM.MOMENTUM": _share("of sgd and rmsprop"),
    "OPTIM.SGD_DAMPNING": _share("dampening of the momentum"),
    "OPTIM.SGD_NESTEROV": _key("Nesterov's momentum"),
    "OPTIM.RMSPROP_ALPHA": _share("smoothing of rmsprop"),
    "OPTIM.ADAM_BETA1": _beta("of adam and its kin"),
    "OPTIM.ADAM_BETA2": _beta("of adam and its kin"),
    "OPTIM.STAGED_LR": _of_dassl("another rate for old layers; Dassl itself only"),
    "OPTIM.LR_SCHEDULER": _key("the schedule", choices=AVAI_SCHEDS),
    "OPTIM.STEPSIZE": _key("epochs of a step; not positive: MAX_EPOCH", least=-1, most=10**6),
    "OPTIM.GAMMA": _rate("factor of a step"),
    "OPTIM.MAX_EPOCH": _size("epochs of the training"),
    "OPTIM.WARMUP_EPOCH": _key("epochs of warm-up; not positive: none", least=-1, most=10**6),
    "OPTIM.WARMUP_TYPE": _key("of the warm-up", choices=("linear", "constant")),
    "OPTIM.WARMUP_CONS_LR": _rate("rate of a constant warm-up"),
    "OPTIM.WARMUP_MIN_LR": _rate("rate of the first epoch of a linear warm-up"),
    "OPTIM.WARMUP_RECOUNT": _key("the schedule starts after the warm-up"),
    "TRAIN.CHECKPOINT_FREQ": _count("epochs between checkpoints; 0: only the last"),
    "TRAIN.PRINT_FREQ": _size("batches between lines of the log"),
    "TRAIN.COUNT_ITER": _key("of an epoch", choices=("train_x", "train_u", "smaller_one")),
    "TEST.EVALUATOR": _key("of Dassl's own test", choices=EVALUATOR_REGISTRY.registered_names),
    "TEST.PER_CLASS_RESULT": _of_dassl("show the accuracy of every class; Dassl itself only"),
    "TEST.NO_TEST": _key("only train"),
    "TEST.SPLIT": _key("images to test on", choices=("val", "test")),
    "TEST.FINAL_MODEL": _key("which epoch's model is tested", choices=("last_step", "best_val")),
    "TRAINER.NAME": _key("name of the trainer"),
}
for _name, _default in leaves(get_cfg_default()):
    KEYS[_name] = replace(USED.get(_name, Key(None)), default=_default)
