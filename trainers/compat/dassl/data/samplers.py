"""Orders in which a loader visits the images; random ones use Python's global random state."""

import random
from collections import defaultdict

import numpy as np
from torch.utils.data.sampler import RandomSampler, Sampler, SequentialSampler

from ..utils.tools import nearest

SAMPLERS = [
    "RandomSampler",
    "SequentialSampler",
    "RandomDomainSampler",
    "SeqDomainSampler",
    "RandomClassSampler",
]


def _indices_by(key, data_source) -> dict:
    groups = defaultdict(list)
    for index, item in enumerate(data_source):
        groups[getattr(item, key)].append(index)
    return groups


class _DomainSampler(Sampler):
    """Batches with the same number of images from each of ``n_domain`` domains.

    An epoch ends with the batch after which some domain has too few images left.
    """

    def __init__(self, data_source, batch_size, n_domain):
        self.data_source = data_source
        self.batch_size = batch_size
        self.n_domain = n_domain
        if batch_size % n_domain:
            raise ValueError(f"batch size {batch_size} is not a multiple of {n_domain} domains")
        self.n_img_per_domain = batch_size // n_domain
        smallest = min(map(len, self.domain_dict.values()))
        if smallest < self.n_img_per_domain:
            raise ValueError(
                f"a domain has {smallest} images, fewer than the {self.n_img_per_domain} per batch"
            )
        self.length = len(list(iter(self)))

    def select_domains(self) -> list:
        """Return the domains of the next batch."""
        raise NotImplementedError

    def __iter__(self):
        left = {domain: list(indices) for domain, indices in self.domain_dict.items()}
        order = []
        while all(len(indices) >= self.n_img_per_domain for indices in left.values()):
            for domain in self.select_domains():
                drawn = random.sample(left[domain], self.n_img_per_domain)
                order += drawn
                taken = set(drawn)
                left[domain] = [index for index in left[domain] if index not in taken]
        return iter(order)

    def __len__(self):
        return self.length


class RandomDomainSampler(_DomainSampler):
    """``n_domain`` random domains per batch; not positive or None: all of them."""

    def __init__(self, data_source, batch_size, n_domain):
        self.domain_dict = _indices_by("domain", data_source)
        self.domains = list(self.domain_dict)
        if n_domain is None or n_domain <= 0:
            n_domain = len(self.domains)
        super().__init__(data_source, batch_size, n_domain)

    def select_domains(self):
        return random.sample(self.domains, self.n_domain)


class SeqDomainSampler(_DomainSampler):
    """Every domain in each batch, in ascending order."""

    def __init__(self, data_source, batch_size):
        self.domain_dict = _indices_by("domain", data_source)
        self.domains = sorted(self.domain_dict)
        super().__init__(data_source, batch_size, len(self.domains))

    def select_domains(self):
        return self.domains


class RandomClassSampler(Sampler):
    """Batches of ``batch_size // n_ins`` random classes with ``n_ins`` images each.

    Classes with fewer images are filled up by drawing with replacement.
    """

    def __init__(self, data_source, batch_size, n_ins):
        if batch_size < n_ins:
            raise ValueError(f"batch size {batch_size} is smaller than {n_ins} images per class")
        self.data_source = data_source
        self.batch_size = batch_size
        self.n_ins = n_ins
        self.ncls_per_batch = batch_size // n_ins
        self.index_dic = _indices_by("label", data_source)
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
    """Build the sampler named ``sampler_type``.

    Raises:
        ValueError: the name is unknown, or the sampler cannot fill a batch from the data.
    """
    if sampler_type == "RandomSampler":
        return RandomSampler(data_source)
    if sampler_type == "SequentialSampler":
        return SequentialSampler(data_source)
    if sampler_type == "RandomDomainSampler":
        return RandomDomainSampler(data_source, batch_size, n_domain)
    if sampler_type == "SeqDomainSampler":
        return SeqDomainSampler(data_source, batch_size)
    if sampler_type == "RandomClassSampler":
        return RandomClassSampler(data_source, batch_size, n_ins)
    raise ValueError(f"sampler '{sampler_type}' is unknown.{nearest(sampler_type, SAMPLERS)}")
