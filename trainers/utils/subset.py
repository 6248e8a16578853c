"""Which test images a run takes from a large test set."""

import random
from collections import defaultdict

from .errors import UserError


def stratified_subset(items, n: int) -> list:
    """Draw ``n`` items, the same at every call, in their old order (0: all items).

    Classes get equal shares as far as their sizes allow; the remainder goes to classes drawn at
    random.
    """
    if n < 0:
        raise UserError(f"TEST.SUBSET is {n}, expected the number of test images or 0 for all")
    if n == 0 or n >= len(items):
        return list(items)
    rng = random.Random(0)
    groups = defaultdict(list)  # label -> positions
    for index, item in enumerate(items):
        groups[item.label].append(index)
    share = 0
    while sum(min(len(g), share + 1) for g in groups.values()) <= n:
        share += 1
    left = n - sum(min(len(g), share) for g in groups.values())
    extra = set(rng.sample([y for y in sorted(groups) if len(groups[y]) > share], left))
    kept = []
    for label in sorted(groups):
        kept += rng.sample(groups[label], min(len(groups[label]), share + (label in extra)))
    return [items[index] for index in sorted(kept)]


def images_to_test(test: list, cfg) -> list:
    """Return the test images that ``TEST.SUBSET`` leaves.

    Our data sets have drawn them already, and a second draw changes nothing; those of a fork ignore
    the key. UserError for ``TEST.FIRST`` with a data set of a fork.
    """
    if 0 < cfg.TEST.FIRST < len(test):
        raise UserError(
            f"TEST.FIRST is {cfg.TEST.FIRST}, which the fork's own data set {cfg.DATASET.NAME} "
            "does not support; use TEST.SUBSET"
        )
    chosen = stratified_subset(test, cfg.TEST.SUBSET)
    if len(chosen) < len(test):
        print(f"note: TEST.SUBSET takes {len(chosen)} of the {len(test)} test images")
    return chosen
