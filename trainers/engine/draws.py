"""Random augmentation that follows from (seed, epoch, sample), whatever process reads the image."""

from torch.utils.data import DataLoader, Dataset

from ..utils.seeds import hash_seed, seeded


class OwnDraws(Dataset):
    """Dassl's training set, where every sample draws from a seed of its own.

    The loader's processes, which are forked at the start of an epoch, see its number too.
    """

    def __init__(self, dataset, seed: int):
        self.dataset, self.seed, self.epoch = dataset, seed, 0
        self.data_source = dataset.data_source

    def __len__(self) -> int:
        return len(self.dataset)

    def drawing(self, index: int):
        """Return a context in which the global generators draw for one sample."""
        return seeded(hash_seed("sample", self.seed, self.epoch, index))

    def __getitem__(self, index):
        with self.drawing(index):
            return self.dataset[index]


def own_draws(loader: DataLoader, seed: int) -> DataLoader:
    """Return Dassl's training ``loader``, with a seed for each sample of each epoch."""
    names = ("batch_sampler", "num_workers", "pin_memory", "collate_fn")
    options = {name: getattr(loader, name) for name in names}
    return DataLoader(OwnDraws(loader.dataset, seed), **options)
