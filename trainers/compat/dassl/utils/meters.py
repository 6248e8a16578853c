"""Running averages of what a training step reports."""

from collections import defaultdict

import torch

__all__ = ["AverageMeter", "MetricMeter"]


class AverageMeter:
    """The latest value (``val``) and the average (``avg``) of a series of numbers."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.val = self.avg = self.sum = self.count = 0

    def update(self, val, n=1):
        """Add ``n`` values equal to ``val``."""
        if isinstance(val, torch.Tensor):
            val = val.item()
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count


class MetricMeter:
    """One AverageMeter per metric; prints as ``loss 0.1234 (0.2345) acc ...``."""

    def __init__(self, delimiter=" "):
        self.meters = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict):
        """Add one value per metric; None adds nothing."""
        for name, value in (input_dict or {}).items():
            self.meters[name].update(value)

    def __str__(self):
        parts = (f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items())
        return self.delimiter.join(parts)
