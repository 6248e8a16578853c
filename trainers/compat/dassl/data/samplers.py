"""Orders in which a loader visits the images; random ones use Python's global random state."""

import random
from collections import defaultdict

import numpy as np
from torch.utils.data.sampler import RandomSampler, Sampler, SequentialSampler

from ..utils.tools import nearest

SAMPLERS = ["RandomSampler", "SequentialSampler", "RandomClassSampler"]
ONLY_IN_DASSL = ["RandomDomainSampler", "SeqDomainSampler"]


class RandomClassSampler(Sampler):
    """Batches of ``batch_size // n_ins`` random classes with ``n_ins`` images each.

    Classes with fewer images are filled up by drawing with replacement.
    """

    def __init__(self, data_source, batch_size, n_ins):
        if batch_size < n_ins:
            raise ValueError(f"batch size {batch_size} is smaller than {n_ins} images per class")
        self.n_ins = n_ins
        self.ncls_per_batch = batch_size // n_ins
        self.index_dic = defaultdict(list)
        for index, item in enumerate(data_source):
            self.index_dic[item.label].append(index)
        self.labels = list(self.index_dic)
        if len(self.labels) < self.ncls_per_batch:
            raise ValueError(
                f"a batch needs {self.ncls_per_batch} classes, but there are {len(self.labels)}"
            )
        self.length = len(list(iter(self)))

    def _chunks(self, label) -> list:
        indices = list(self.index_dic[label])
        if len(indices) < self.n_ins:
            indices = np.random.choice(indices, size=self.n_ins, replace=True).tolist()
        random.shuffle(indices)
        whole = len(indices) // self.n_ins * self.n_ins
        return [indices[i : i + self.n_ins] for i in range(0, whole, self.n_ins)]

    def __iter__(self):
        chunks = {label: self._chunks(label) for label in self.labels}
        available = list(self.labels)
        order = []
        while len(available) >= self.ncls_per_batch:
            for label in random.sample(available, self.ncls_per_batch):
                order += chunks[label].pop(0)
                if not chunks[label]:
                    available.remove(label)
        return iter(order)

    def __len__(self):
        return self.length


def build_sampler(
    sampler_type, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16
) -> Sampler:
    """Build the sampler named ``sampler_type``."""
    if sampler_type == "RandomSampler":
        return RandomSampler(data_source)
    if sampler_type == "SequentialSampler":
        return SequentialSampler(data_source)
    if sampler_type == "RandomClassSampler":
        return RandomClassSampler(data_source, batch_size, n_ins)
    if sampler_type in ONLY_IN_DASSL:
        raise ValueError(f"sampler '{sampler_type}' needs Dassl itself, which is not installed")
    raise ValueError(f"sampler '{sampler_type}' is unknown.{nearest(sampler_type, SAMPLERS)}")
