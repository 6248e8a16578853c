"""One image with its labels (``Datum``), and the splits of a data set (``DatasetBase``)."""

import os.path as osp
import random
from collections import defaultdict


class Datum:
    """One image: its path, class label, domain label and class name.

    Raises:
        FileNotFoundError: there is no file at ``impath``.
    """

    # CoOp's few-shot caches are pickles of these objects: attribute names are part of the format.
    def __init__(self, impath="", label=0, domain=0, classname=""):
        if not isinstance(impath, str):
            raise TypeError(f"impath must be a str, not {type(impath).__name__}")
        if not osp.isfile(impath):
            raise FileNotFoundError(f"there is no image at '{impath}'; complete the data set")
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self) -> str:
        return self._impath

    @property
    def label(self) -> int:
        return self._label

    @property
    def domain(self) -> int:
        return self._domain

    @property
    def classname(self) -> str:
        return self._classname


def _by(key, data_source) -> dict:
    groups = defaultdict(list)
    for item in data_source:
        groups[getattr(item, key)].append(item)
    return groups


class DatasetBase:
    """The splits of a data set as lists of Datum; subclasses read them and call ``__init__``.

    Args:
        train_x: labelled training images; they define the classes.
        train_u: unlabelled training images, optional.
        val: validation images, optional.
        test: test images.
    """

    dataset_dir = ""  # folder below cfg.DATASET.ROOT
    domains = []  # names of all domains

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    @property
    def train_x(self):
        return self._train_x

    @property
    def train_u(self):
        return self._train_u

    @property
    def val(self):
        return self._val

    @property
    def test(self):
        return self._test

    @property
    def lab2cname(self) -> dict:
        """Label -> class name."""
        return self._lab2cname

    @property
    def classnames(self) -> list:
        """Class names in the order of their labels."""
        return self._classnames

    @property
    def num_classes(self) -> int:
        """Highest label + 1."""
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source) -> int:
        """Return the highest label + 1.

        Raises:
            ValueError: there is no image.
        """
        if not data_source:
            raise ValueError("the training split has no image, so the classes are unknown")
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source) -> tuple:
        """Return the dict label -> class name and the list of names in the order of labels."""
        mapping = {item.label: item.classname for item in data_source}
        return mapping, [mapping[label] for label in sorted(mapping)]

    def check_input_domains(self, source_domains, target_domains) -> None:
        """Raise ValueError unless both lists hold names from ``self.domains``."""
        for kind, domains in (("source", source_domains), ("target", target_domains)):
            if not domains:
                raise ValueError(f"DATASET.{kind.upper()}_DOMAINS is empty; name a domain")
            self.is_input_domain_valid(domains)

    def is_input_domain_valid(self, input_domains) -> None:
        """Raise ValueError at the first name that is not in ``self.domains``."""
        for domain in input_domains:
            if domain not in self.domains:
                raise ValueError(f"domain '{domain}' is not one of {', '.join(self.domains)}")

    def generate_fewshot_dataset(self, *data_sources, num_shots=-1, repeat=False):
        """Draw ``num_shots`` images per class from each list of Datum.

        The draw uses Python's global random state class by class, in the order in which the
        classes first occur; it is the same as Dassl's for the same seed.

        Args:
            num_shots: images per class; below 1 the lists are returned as they are.
            repeat: draw with replacement from classes that are too small, instead of taking all.

        Returns:
            one list, or a list of lists where several are given.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        output = []
        for data_source in data_sources:
            drawn = []
            for items in self.split_dataset_by_label(data_source).values():
                if len(items) >= num_shots:
                    drawn += random.sample(items, num_shots)
                else:
                    drawn += random.choices(items, k=num_shots) if repeat else items
            output.append(drawn)
        return output[0] if len(output) == 1 else output

    def split_dataset_by_label(self, data_source) -> dict:
        """Return label -> list of Datum, in the order of first occurrence."""
        return _by("label", data_source)

    def split_dataset_by_domain(self, data_source) -> dict:
        """Return domain -> list of Datum, in the order of first occurrence."""
        return _by("domain", data_source)
