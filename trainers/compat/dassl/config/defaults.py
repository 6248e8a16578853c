"""Dassl 0.6.3's config keys with their default values.

Keys that only serve domain adaptation or semi-supervised learning are kept so that existing yaml
files merge without an "unknown key" error.
"""

INPUT = {
    "SIZE": (224, 224),  # height, width in pixels
    "INTERPOLATION": "bilinear",  # bilinear, bicubic or nearest
    "TRANSFORMS": (),  # names listed in data/transforms/transforms.py
    "NO_TRANSFORM": False,  # True: the loader yields PIL images
    "PIXEL_MEAN": [0.485, 0.456, 0.406],  # of ImageNet
    "PIXEL_STD": [0.229, 0.224, 0.225],
    "CROP_PADDING": 4,  # random_crop
    "RRCROP_SCALE": (0.08, 1.0),  # random_resized_crop
    "CUTOUT_N": 1,
    "CUTOUT_LEN": 16,
    "GN_MEAN": 0.0,
    "GN_STD": 0.15,
    "RANDAUGMENT_N": 2,
    "RANDAUGMENT_M": 10,
    **{
        f"COLORJITTER_{part}": value
        for part, value in zip("BCSH", (0.4, 0.4, 0.4, 0.1), strict=True)
    },
    "RGS_P": 0.2,  # randomgrayscale
    "GB_P": 0.5,  # gaussian_blur: probability and (odd) kernel size
    "GB_K": 21,
}

DATASET = {
    "ROOT": "",
    "NAME": "",
    "SOURCE_DOMAINS": (),
    "TARGET_DOMAINS": (),
    "NUM_SHOTS": -1,  # images per class; below 1: all
    "VAL_PERCENT": 0.1,
    "NUM_LABELED": -1,
    "ALL_AS_UNLABELED": False,
    "STL10_FOLD": -1,
    "CIFAR_C_TYPE": "",
    "CIFAR_C_LEVEL": 1,
}

_LOADER = {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16}
DATALOADER = {
    "NUM_WORKERS": 4,
    "K_TRANSFORMS": 1,  # augmented copies of each training image
    "RETURN_IMG0": False,  # also yield the image without augmentation, as "img0"
    "TRAIN_X": dict(_LOADER),
    "TRAIN_U": {"SAME_AS_X": True, **_LOADER},
    "TEST": {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 32},
}

MODEL = {
    "INIT_WEIGHTS": "",
    "BACKBONE": {"NAME": "", "PRETRAINED": True},
    "HEAD": {"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0},
}

OPTIM = {
    "NAME": "adam",
    "LR": 0.0003,
    "WEIGHT_DECAY": 5e-4,
    "MOMENTUM": 0.9,
    "SGD_DAMPNING": 0,
    "SGD_NESTEROV": False,
    "RMSPROP_ALPHA": 0.99,
    "ADAM_BETA1": 0.9,
    "ADAM_BETA2": 0.999,
    "STAGED_LR": False,  # True, with the two keys below: Dassl itself only
    "NEW_LAYERS": (),
    "BASE_LR_MULT": 0.1,
    "LR_SCHEDULER": "single_step",
    "STEPSIZE": (-1,),  # epochs; not positive: MAX_EPOCH
    "GAMMA": 0.1,
    "MAX_EPOCH": 10,
    "WARMUP_EPOCH": -1,  # not positive: no warm-up
    "WARMUP_TYPE": "linear",
    "WARMUP_CONS_LR": 1e-5,
    "WARMUP_MIN_LR": 1e-5,
    "WARMUP_RECOUNT": True,  # the main schedule starts at 0 after the warm-up
}

TRAIN = {
    "CHECKPOINT_FREQ": 0,  # epochs; not positive: only the last
    "PRINT_FREQ": 10,  # batches
    "COUNT_ITER": "train_x",
}

TEST = {
    "EVALUATOR": "Classification",
    "PER_CLASS_RESULT": False,
    "COMPUTE_CMAT": False,  # read by Dassl itself
    "NO_TEST": False,
    "SPLIT": "test",
    "FINAL_MODEL": "last_step",  # or best_val
}

_CDAC = {"CLASS_LR_MULTI": 10, "RAMPUP_COEF": 30, "RAMPUP_ITRS": 1000, "TOPK_MATCH": 5}
_CONFIDENT = {"WEIGHT_U": 0.5, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()}
_DDAIG = {"G_ARCH": "", "LMDA": 0.3, "CLAMP": False, "CLAMP_MIN": -1.0, "CLAMP_MAX": 1.0}
TRAINER = {
    "NAME": "",
    # domain adaptation
    "MCD": {"N_STEP_F": 4},
    "MME": {"LMDA": 0.1},
    "CDAC": {**_CDAC, "P_THRESH": 0.95, "STRONG_TRANSFORMS": ()},
    "SE": {"EMA_ALPHA": 0.999, "CONF_THRE": 0.95, "RAMPUP": 300},
    "M3SDA": {"LMDA": 0.5, "N_STEP_F": 4},
    "DAEL": dict(_CONFIDENT),
    # domain generalization
    "CROSSGRAD": {"EPS_F": 1.0, "EPS_D": 1.0, "ALPHA_F": 0.5, "ALPHA_D": 0.5},
    "DDAIG": {**_DDAIG, "WARMUP": 0, "ALPHA": 0.5},
    "DAELDG": dict(_CONFIDENT),
    "DOMAINMIX": {"TYPE": "crossdomain", "ALPHA": 1.0, "BETA": 1.0},
    # semi-supervised learning
    "ENTMIN": {"LMDA": 1e-3},
    "MEANTEACHER": {"WEIGHT_U": 1.0, "EMA_ALPHA": 0.999, "RAMPUP": 5},
    "MIXMATCH": {"WEIGHT_U": 100.0, "TEMP": 2.0, "MIXUP_BETA": 0.75, "RAMPUP": 20000},
    "FIXMATCH": {**_CONFIDENT, "WEIGHT_U": 1.0},
}

DEFAULTS = {
    "VERSION": 1,
    "OUTPUT_DIR": "./output",
    "RESUME": "",  # folder of an earlier run to continue
    "SEED": -1,  # negative: not fixed
    "USE_CUDA": True,
    "VERBOSE": True,
    "INPUT": INPUT,
    "DATASET": DATASET,
    "DATALOADER": DATALOADER,
    "MODEL": MODEL,
    "OPTIM": OPTIM,
    "TRAIN": TRAIN,
    "TEST": TEST,
    "TRAINER": TRAINER,
}
