"""Classification accuracy, error, macro F1, per class and as a confusion matrix."""

import os.path as osp
from collections import OrderedDict, defaultdict

import torch

from ..utils.plain import save_plain
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


def _confusion(y_true, y_pred, num_labels) -> torch.Tensor:
    """Return counts (num_labels, num_labels): rows are true labels, columns predictions."""
    pairs = torch.tensor(y_true) * num_labels + torch.tensor(y_pred)
    counts = torch.bincount(pairs, minlength=num_labels**2)
    return counts.double().view(num_labels, num_labels)


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy over all images; optionally per class and with a confusion matrix.

    Args:
        lab2cname: label -> class name, needed for ``TEST.PER_CLASS_RESULT``.
    """

    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg)
        self._lab2cname = lab2cname
        self._per_class_res = None
        if cfg.TEST.PER_CLASS_RESULT:
            if lab2cname is None:
                raise ValueError("TEST.PER_CLASS_RESULT needs the names of the classes (lab2cname)")
            self._per_class_res = defaultdict(list)
        self.reset()

    def reset(self):
        self._correct = 0
        self._total = 0
        self._y_true = []
        self._y_pred = []
        if self._per_class_res is not None:
            self._per_class_res = defaultdict(list)

    def process(self, mo, gt):
        """Take in one batch: scores ``mo`` (B, K) and labels ``gt`` (B,)."""
        pred = mo.max(1)[1]  # (B,)
        matches = pred.eq(gt).tolist()
        labels = gt.tolist()
        self._correct += sum(matches)
        self._total += len(labels)
        self._y_true += labels
        self._y_pred += pred.tolist()
        if self._per_class_res is not None:
            for label, match in zip(labels, matches, strict=True):
                self._per_class_res[label].append(int(match))

    def evaluate(self) -> OrderedDict:
        """Print and return the results in percent; the first is what ``trainer.test`` returns.

        Raises:
            ValueError: no image has been processed.
        """
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
        if self._per_class_res is not None:
            results["perclass_accuracy"] = self._per_class()
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion()
        return results

    def _macro_f1(self) -> float:
        """Mean F1 over the labels that occur, in percent; 0 for a class never predicted."""
        counts = _confusion(self._y_true, self._y_pred, 1 + max(self._y_true + self._y_pred))
        true, predicted = counts.sum(1), counts.sum(0)
        occurs = true > 0
        f1 = 2 * counts.diag()[occurs] / (true + predicted)[occurs]
        return 100.0 * f1.mean().item()

    def _per_class(self) -> float:
        print("=> per-class result")
        accs = []
        for label in sorted(self._per_class_res):
            hits = self._per_class_res[label]
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

    def _save_confusion(self) -> None:
        """Save the matrix over the labels that occur, rows summing to 1, as a tensor."""
        labels = sorted({*self._y_true, *self._y_pred})
        counts = _confusion(self._y_true, self._y_pred, 1 + max(labels))[labels][:, labels]
        path = osp.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        save_plain(counts / counts.sum(1, keepdim=True).clamp(min=1), path)
        print(f"Confusion matrix is saved to {path}")
