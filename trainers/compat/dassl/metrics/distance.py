"""Distances between two sets of features."""

from torch.nn import functional as F


def compute_distance_matrix(input1, input2, metric="euclidean"):
    """Return the distances (M, N) between the rows of (M, D) and (N, D).

    Args:
        metric: "euclidean" (squared) or "cosine".

    Raises:
        ValueError: the shapes do not fit or the metric is unknown.
    """
    if input1.dim() != 2 or input2.dim() != 2 or input1.size(1) != input2.size(1):
        raise ValueError(
            f"distances need (M, D) and (N, D), not {tuple(input1.shape)} and {tuple(input2.shape)}"
        )
    if metric == "euclidean":
        return euclidean_squared_distance(input1, input2)
    if metric == "cosine":
        return cosine_distance(input1, input2)
    raise ValueError(f"distance '{metric}' is unknown; choose euclidean or cosine")


def euclidean_squared_distance(input1, input2):
    """Return the squared Euclidean distances (M, N) between the rows of (M, D) and (N, D)."""
    squares1 = input1.pow(2).sum(dim=1, keepdim=True)  # (M, 1)
    squares2 = input2.pow(2).sum(dim=1)  # (N,)
    return squares1 + squares2 - 2 * input1 @ input2.t()


def cosine_distance(input1, input2):
    """Return 1 - cosine similarity (M, N) between the rows of (M, D) and (N, D)."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).t()
