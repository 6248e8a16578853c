"""The training loop in three layers: models and files, a standard run, batches of labelled data."""

import datetime
import math
import os.path as osp
import time
from collections import OrderedDict

import torch
from tqdm import tqdm

from ..data import DataManager
from ..evaluation import build_evaluator
from ..utils import AverageMeter, MetricMeter, mkdir_if_missing, tolist_if_not
from ..utils.torchtools import load_checkpoint, resume_from_checkpoint, save_checkpoint


class TrainerBase:
    """Registered models with their optimizers and schedules, their files, and the epoch loop.

    Files: ``<directory>/<model name>/model.pth.tar-<epoch>`` (or ``model-best.pth.tar``), and
    ``checkpoint`` next to them, which names the latest.
    """

    def __init__(self):
        self._models, self._optims, self._scheds = OrderedDict(), OrderedDict(), OrderedDict()
        self._writer = None

    def register_model(self, name="model", model=None, optim=None, sched=None):
        """Add a model to those that are saved, loaded, updated and switched between modes."""
        assert "_models" in vars(self), "call super().__init__() before register_model()"
        assert name not in self._models, f"a model called '{name}' is already registered"
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names=None) -> list:
        """Return ``names`` (str or list) after checking them; without, all registered names."""
        names = list(self._models) if names is None else tolist_if_not(names)
        for name in names:
            assert name in self._models, f"no model '{name}' is registered, only {[*self._models]}"
        return names

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        """Save every registered model after epoch ``epoch`` (from 0)."""
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
            }
            save_checkpoint(state, osp.join(directory, name), is_best, model_name=model_name)

    def resume_model_if_exist(self, directory) -> int:
        """Restore all models from ``directory`` and return the epoch to resume with, else 0."""
        folders = {name: osp.join(directory, name) for name in self.get_model_names()}
        if not all(osp.isfile(osp.join(folder, "checkpoint")) for folder in folders.values()):
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        epochs = {
            name: resume_from_checkpoint(
                folder, self._models[name], self._optims[name], self._scheds[name]
            )
            for name, folder in folders.items()
        }
        if len(set(epochs.values())) > 1:
            raise ValueError(
                f"the models in '{directory}' are of different epochs {epochs}; "
                "write an earlier file name that they share into each 'checkpoint' file"
            )
        return next(iter(epochs.values()), 0)

    def load_model(self, directory, epoch=None):
        """Load all models from ``directory``: those of epoch ``epoch``, or the best."""
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        model_file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            model_path = osp.join(directory, name, model_file)
            if not osp.exists(model_path):
                raise FileNotFoundError(f"No model at {model_path}")
            checkpoint = load_checkpoint(model_path)
            val_result = checkpoint.get("val_result")
            shown = "none" if val_result is None else f"{val_result:.1f}"
            print(f"Load {model_path} to {name} (epoch={checkpoint['epoch']}, val_result={shown})")
            self._models[name].load_state_dict(checkpoint["state_dict"])

    def set_model_mode(self, mode="train", names=None):
        """Switch models to ``train``, or to ``eval`` (also called ``test``)."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(f"mode '{mode}' is unknown; choose train, test or eval")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def update_lr(self, names=None):
        """Advance the learning-rate schedules by one epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def detect_anomaly(self, loss):
        if not torch.isfinite(loss).all():
            raise FloatingPointError("Loss is infinite or NaN!")

    def init_writer(self, log_dir):
        """Start writing for TensorBoard; without the package nothing is written."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        print(f"Initialize tensorboard (log_dir={log_dir})")
        mkdir_if_missing(log_dir)
        self._writer = SummaryWriter(log_dir=log_dir)

    def write_scalar(self, tag, scalar_value, global_step=None):
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    def close_writer(self):
        if self._writer is not None:
            self._writer.close()

    def train(self, start_epoch, max_epoch):
        """Run the epochs from ``start_epoch`` to ``max_epoch`` - 1 with all hooks."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()  # may change start_epoch
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def _hook(self):
        """Hook: nothing happens unless a subclass overrides it."""

    before_train = after_train = before_epoch = after_epoch = _hook

    def _to_override(self, *args, **kwargs):
        raise NotImplementedError(f"{type(self).__name__} lacks a method that its training calls")

    run_epoch = test = parse_batch_train = parse_batch_test = _to_override
    forward_backward = model_inference = build_model = _to_override

    def model_zero_grad(self, names=None):
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss):
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names=None):
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss, names=None):
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)


class SimpleTrainer(TrainerBase):
    """A standard run: data, model, evaluator; resume before, save during, test after training."""

    def __init__(self, cfg):
        super().__init__()
        self.check_cfg(cfg)
        use_cuda = torch.cuda.is_available() and cfg.USE_CUDA
        self.device = torch.device("cuda" if use_cuda else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -math.inf

    def check_cfg(self, cfg):
        """Hook: raise where ``cfg`` does not suit the trainer."""

    def build_data_loader(self):
        """Hook: set the loaders, ``num_classes``, ``num_source_domains`` and ``lab2cname``."""
        self.dm = DataManager(self.cfg)
        loaders = "train_loader_x train_loader_u val_loader test_loader"
        for name in f"{loaders} num_classes num_source_domains lab2cname".split():
            setattr(self, name, getattr(self.dm, name))

    def train(self):
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self):
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.cfg.OUTPUT_DIR)
        self.init_writer(osp.join(self.output_dir, "tensorboard"))
        self.time_start = time.time()

    def after_train(self):
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        print(f"Elapsed: {datetime.timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()

    def after_epoch(self):
        done = self.epoch + 1
        freq = self.cfg.TRAIN.CHECKPOINT_FREQ
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                best = {"val_result": result, "model_name": "model-best.pth.tar"}
                self.save_model(self.epoch, self.output_dir, **best)
        if done == self.max_epoch or (freq > 0 and done % freq == 0):
            self.save_model(self.epoch, self.output_dir)

    @torch.no_grad()
    def test(self, split=None) -> float:
        """Evaluate on ``split`` (val or test; default cfg.TEST.SPLIT); return the first result.

        Where there are no validation images, the test images are used.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = self.cfg.TEST.SPLIT if split is None else split
        if split == "val" and self.val_loader is not None:
            data_loader = self.val_loader
        else:
            split, data_loader = "test", self.test_loader
        print(f"Evaluate on the *{split}* set")
        for batch in tqdm(data_loader):
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input), label)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def model_inference(self, input):
        """Hook: pixels (B, 3, H, W) -> scores (B, K)."""
        return self.model(input)

    def parse_batch_test(self, batch):
        """Hook: batch dict -> images and labels on the device."""
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def get_current_lr(self, names=None) -> float:
        """Return the learning rate of the first group of the first model."""
        name = self.get_model_names(names)[0]
        return self._optims[name].param_groups[0]["lr"]


class TrainerX(SimpleTrainer):
    """Training on labelled data; subclasses write ``forward_backward(batch) -> dict``."""

    def run_epoch(self):
        self.set_model_mode("train")
        losses = MetricMeter()
        batch_time, data_time = AverageMeter(), AverageMeter()
        self.num_batches = len(self.train_loader_x)
        print_freq = self.cfg.TRAIN.PRINT_FREQ

        end = time.time()
        for batch_idx, batch in enumerate(self.train_loader_x):
            self.batch_idx = batch_idx
            data_time.update(time.time() - end)
            loss_summary = self.forward_backward(batch)
            batch_time.update(time.time() - end)
            losses.update(loss_summary)
            done = self.batch_idx + 1
            if done % print_freq == 0 or self.num_batches < print_freq:
                epochs_left = self.max_epoch - self.epoch - 1
                batches_left = self.num_batches - done + epochs_left * self.num_batches
                eta = datetime.timedelta(seconds=int(batch_time.avg * batches_left))
                print(
                    f"epoch [{self.epoch + 1}/{self.max_epoch}] "
                    f"batch [{done}/{self.num_batches}] "
                    f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) "
                    f"data {data_time.val:.3f} ({data_time.avg:.3f}) "
                    f"{losses} lr {self.get_current_lr():.4e} eta {eta}"
                )
            n_iter = self.epoch * self.num_batches + self.batch_idx
            for name, meter in losses.meters.items():
                self.write_scalar(f"train/{name}", meter.avg, n_iter)
            self.write_scalar("train/lr", self.get_current_lr(), n_iter)
            end = time.time()

    def parse_batch_train(self, batch):
        """Hook: batch dict -> images, labels and domains on the device."""
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))
