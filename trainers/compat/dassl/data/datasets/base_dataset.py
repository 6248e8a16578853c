"""One image with its labels (``Datum``), and the splits of a data set (``DatasetBase``)."""

import os.path as osp
import random
from collections import defaultdict
from operator import attrgetter


class Datum:
    """One image: its path, class label, domain label and class name."""

    # CoOp's few-shot caches are pickles of these objects: attribute names are part of the format.
    def __init__(self, impath="", label=0, domain=0, classname=""):
        if not osp.isfile(impath):
            raise FileNotFoundError(f"there is no image at '{impath}'; complete the data set")
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    impath = property(attrgetter("_impath"))
    label = property(attrgetter("_label"))
    domain = property(attrgetter("_domain"))
    classname = property(attrgetter("_classname"))


class DatasetBase:
    """The splits of a data set as lists of Datum; subclasses read them and call ``__init__``.

    ``train_x`` is labelled and defines the classes; ``train_u`` (unlabelled), ``val`` are optional.
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

    train_x = property(attrgetter("_train_x"))
    train_u = property(attrgetter("_train_u"))
    val = property(attrgetter("_val"))
    test = property(attrgetter("_test"))
    lab2cname = property(attrgetter("_lab2cname"), doc="Label -> class name.")
    classnames = property(attrgetter("_classnames"), doc="Class names in the order of labels.")
    num_classes = property(attrgetter("_num_classes"), doc="Highest label + 1.")

    @staticmethod
    def get_num_classes(data_source) -> int:
        if not data_source:
            raise ValueError("the training split has no image, so the classes are unknown")
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source) -> tuple:
        """Return the dict label -> class name and the list of names in the order of labels."""
        mapping = {item.label: item.classname for item in data_source}
        return mapping, [mapping[label] for label in sorted(mapping)]

    def generate_fewshot_dataset(self, *data_sources, num_shots=-1, repeat=False):
        """Draw ``num_shots`` images per class (below 1: all) from each list of Datum.

        The draw uses Python's global random state class by class, in the order in which the
        classes first occur; it is the same as Dassl's for the same seed. ``repeat`` draws with
        replacement from classes that are too small, instead of taking all.
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
        groups = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups
