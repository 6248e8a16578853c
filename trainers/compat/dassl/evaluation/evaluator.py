"""Classification accuracy, error, macro F1, also per class."""

from collections import OrderedDict

import torch

from .build import EVALUATOR_REGISTRY


class EvaluatorBase:
    """What a trainer's ``test`` calls: ``reset``, ``process`` per batch, ``evaluate``."""

    def __init__(self, cfg):
        self.cfg = cfg

    def reset(self):
        raise NotImplementedError

    def process(self, mo, gt):
        raise NotImplementedError

    def evaluate(self):
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy over all images; optionally per class.

    Args:
        lab2cname: label -> class name, needed for ``TEST.PER_CLASS_RESULT``.
    """

    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg)
        self._lab2cname = lab2cname
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise ValueError("TEST.PER_CLASS_RESULT needs the names of the classes (lab2cname)")
        self.reset()

    def reset(self):
        self._correct = self._total = 0
        self._y_true, self._y_pred = [], []

    def process(self, mo, gt):
        """Take in one batch: scores ``mo`` (B, K) and labels ``gt`` (B,)."""
        pred = mo.max(1)[1]  # (B,)
        self._correct += int(pred.eq(gt).sum())
        self._total += len(gt)
        self._y_true += gt.tolist()
        self._y_pred += pred.tolist()

    def evaluate(self) -> OrderedDict:
        """Print and return the results in percent; the first is what ``trainer.test`` returns."""
        if not self._total:
            raise ValueError("there is nothing to evaluate: the data set has no image")
        acc = 100.0 * self._correct / self._total
        results = OrderedDict(accuracy=acc, error_rate=100.0 - acc, macro_f1=self._macro_f1())
        print(
            "=> result\n"
            f"* total: {self._total:,}\n"
            f"* correct: {self._correct:,}\n"
            f"* accuracy: {acc:.1f}%\n"
            f"* error: {results['error_rate']:.1f}%\n"
            f"* macro_f1: {results['macro_f1']:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._per_class()
        return results

    def _macro_f1(self) -> float:
        """Mean F1 over the labels that occur, in percent; 0 for a class never predicted."""
        labels, predicted = torch.tensor(self._y_true), torch.tensor(self._y_pred)
        size = 1 + int(max(labels.max(), predicted.max()))
        hits, true, found = (
            torch.bincount(kind, minlength=size).double()
            for kind in (labels[labels == predicted], labels, predicted)
        )
        occurs = true > 0
        f1 = 2 * hits[occurs] / (true + found)[occurs]
        return 100.0 * f1.mean().item()

    def _per_class(self) -> float:
        print("=> per-class result")
        accs = []
        for label in sorted({*self._y_true}):
            pairs = zip(self._y_true, self._y_pred, strict=True)
            hits = [true == found for true, found in pairs if true == label]
            accs.append(100.0 * sum(hits) / len(hits))
            print(
                f"* class: {label} ({self._lab2cname[label]})\t"
                f"total: {len(hits):,}\t"
                f"correct: {sum(hits):,}\t"
                f"acc: {accs[-1]:.1f}%"
            )
        mean = sum(accs) / len(accs)
        print(f"* average: {mean:.1f}%")
        return mean
