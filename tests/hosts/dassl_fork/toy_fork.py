"""A data set and a trainer as a CoOp fork writes them, run from the command line.

Usage: python toy_fork.py ROOT OUTPUT EPOCHS [KEY VALUE ...]. The last line printed is a JSON dict.
"""

import json
import os
import pickle
import sys

import compat

compat.install()

import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
from dassl.config import get_cfg_default  # noqa: E402
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum  # noqa: E402
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer  # noqa: E402
from dassl.metrics import compute_accuracy  # noqa: E402
from dassl.optim import build_lr_scheduler, build_optimizer  # noqa: E402
from dassl.utils import (  # noqa: E402
    listdir_nohidden,
    mkdir_if_missing,
    set_random_seed,
    setup_logger,
)
from torch.nn import functional as F  # noqa: E402
from yacs.config import CfgNode as CN  # noqa: E402


@DATASET_REGISTRY.register()
class ToyColours(DatasetBase):
    dataset_dir = "toy"

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        items = []
        for label, name in enumerate(listdir_nohidden(self.dataset_dir, sort=True)):
            folder = os.path.join(self.dataset_dir, name)
            for file in listdir_nohidden(folder, sort=True):
                items.append(Datum(os.path.join(folder, file), label=label, classname=name))
        cache = os.path.join(root, "split_fewshot")
        mkdir_if_missing(cache)
        path = os.path.join(cache, f"shot_{cfg.DATASET.NUM_SHOTS}-seed_{cfg.SEED}.pkl")
        if os.path.exists(path):
            with open(path, "rb") as file:
                train = pickle.load(file)["train"]
        else:
            train = self.generate_fewshot_dataset(items, num_shots=cfg.DATASET.NUM_SHOTS)
            with open(path, "wb") as file:
                pickle.dump({"train": train}, file, protocol=pickle.HIGHEST_PROTOCOL)
        super().__init__(train_x=train, val=items[::2], test=items)


class PromptLearner(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.ctx = nn.Parameter(torch.zeros(num_classes, 3))
        self.register_buffer("token_prefix", torch.ones(num_classes, width))


@TRAINER_REGISTRY.register()
class ToyCoOp(TrainerX):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.TOYCOOP.PREC in ["fp32"]

    def build_model(self):
        cfg = self.cfg
        self.model = PromptLearner(len(self.dm.dataset.classnames), cfg.TRAINER.TOYCOOP.N_CTX)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model, self.optim, self.sched)

    def model_inference(self, image):
        return image.mean(dim=(2, 3)) @ self.model.ctx.t()

    def before_epoch(self):  # the order of images does not depend on where a run was resumed
        set_random_seed(self.cfg.SEED + self.epoch)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model_inference(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)


def main(root, output, epochs, *opts):
    cfg = get_cfg_default()
    cfg.TRAINER.TOYCOOP = CN()
    cfg.TRAINER.TOYCOOP.N_CTX = 4
    cfg.TRAINER.TOYCOOP.PREC = "fp32"
    cfg.merge_from_list(
        [
            "DATASET.ROOT",
            root,
            "DATASET.NAME",
            "ToyColours",
            "DATASET.NUM_SHOTS",
            4,
            "SEED",
            1,
            "OUTPUT_DIR",
            output,
            "TRAINER.NAME",
            "ToyCoOp",
            "USE_CUDA",
            False,
            "INPUT.SIZE",
            (16, 16),
            "INPUT.INTERPOLATION",
            "bicubic",
            "INPUT.TRANSFORMS",
            ("random_resized_crop", "random_flip"),
            "DATALOADER.TRAIN_X.BATCH_SIZE",
            4,
            "DATALOADER.NUM_WORKERS",
            0,
            "OPTIM.NAME",
            "sgd",
            "OPTIM.LR",
            5.0,
            "OPTIM.MAX_EPOCH",
            int(epochs),
            "OPTIM.LR_SCHEDULER",
            "cosine",
            "OPTIM.WARMUP_EPOCH",
            1,
            "OPTIM.WARMUP_TYPE",
            "constant",
            "TRAIN.CHECKPOINT_FREQ",
            2,
            *opts,
        ]
    )
    cfg.freeze()
    set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    trainer = build_trainer(cfg)
    trainer.train()
    accuracy = trainer.test()
    result = {
        "dassl": sys.modules["dassl"].__file__,
        "images": [os.path.basename(item.impath) for item in trainer.dm.dataset.train_x],
        "start_epoch": trainer.start_epoch,
        "lr": trainer.get_current_lr(),
        "ctx": trainer.model.ctx.tolist(),
        "accuracy": accuracy,
        "repaired": compat.modernize_dassl(),
    }
    sys.stdout.flush()
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
