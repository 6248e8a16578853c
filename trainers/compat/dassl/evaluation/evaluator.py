"""Classification accuracy, error, macro F1, also per class."""

from collections import OrderedDict

import torch

from ..utils import Registry

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg, **kwargs):
    return EVALUATOR_REGISTRY.build(cfg.TEST.EVALUATOR, cfg.VERBOSE, cfg, **kwargs)


@EVALUATOR_REGISTRY.register()
class Classification:
    """Accuracy over all images; per class with ``lab2cname``, which maps labels to class names."""

    def __init__(self, cfg, lab2cname=None, **kwargs):
        self.cfg = cfg
        self._lab2cname = lab2cname
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise ValueError("TEST.PER_CLASS_RESULT needs the names of the classes (lab2cname)")
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
        results = OrderedDict(accuracy=acc, error_rate=100.0 - acc, macro_f1=macro_f1)
        if self.cfg.TEST.PER_CLASS_RESULT:
            print("=> per-class result")
            accs = 100.0 * hits[occurs].double() / true[occurs]
            for label, share in zip(occurs.nonzero()[:, 0].tolist(), accs.tolist(), strict=True):
                print(
                    f"* class: {label} ({self._lab2cname[label]})\ttotal: {true[label]:,}\t"
                    f"correct: {hits[label]:,}\tacc: {share:.1f}%"
                )
            results["perclass_accuracy"] = accs.mean().item()
            print(f"* average: {results['perclass_accuracy']:.1f}%")
        return results
