"""Classification accuracy, error, macro F1."""

from collections import OrderedDict

import torch

from ..utils import Registry

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg, **kwargs):
    return EVALUATOR_REGISTRY.build(cfg.TEST.EVALUATOR, cfg.VERBOSE, cfg, **kwargs)


@EVALUATOR_REGISTRY.register()
class Classification:
    """Accuracy over all images."""

    def __init__(self, cfg, lab2cname=None, **kwargs):
        self.cfg = cfg
        if cfg.TEST.PER_CLASS_RESULT:
            raise ValueError("TEST.PER_CLASS_RESULT needs Dassl itself, which is not installed")
        self.reset()

    def reset(self):
        self._y_true, self._y_pred = [], []

    def process(self, mo, gt):
        """Take in one batch: scores ``mo`` (B, K) and labels ``gt`` (B,)."""
        self._y_true += gt.tolist()
        self._y_pred += mo.max(1)[1].tolist()

    def evaluate(self) -> OrderedDict:
        """Print and return the results in percent; the first is what ``trainer.test`` returns."""
        total = len(self._y_true)
        if not total:
            raise ValueError("there is nothing to evaluate: the data set has no image")
        labels, predicted = torch.tensor(self._y_true), torch.tensor(self._y_pred)
        size = 1 + int(max(labels.max(), predicted.max()))
        hits, true, found = (
            torch.bincount(kind, minlength=size)
            for kind in (labels[labels == predicted], labels, predicted)
        )  # (size,) each
        correct, occurs = int(hits.sum()), true > 0
        acc = 100.0 * correct / total
        # F1 of a class that is never predicted is 0
        macro_f1 = 100.0 * (2 * hits.double() / (true + found))[occurs].mean().item()
        print(
            "=> result\n"
            f"* total: {total:,}\n"
            f"* correct: {correct:,}\n"
            f"* accuracy: {acc:.1f}%\n"
            f"* error: {100.0 - acc:.1f}%\n"
            f"* macro_f1: {macro_f1:.1f}%"
        )
        return OrderedDict(accuracy=acc, error_rate=100.0 - acc, macro_f1=macro_f1)
