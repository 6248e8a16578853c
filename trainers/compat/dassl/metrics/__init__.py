"""Top-k accuracy."""

__all__ = ["compute_accuracy"]


def compute_accuracy(output, target, topk=(1,)) -> list:
    """Return the accuracy in percent for each k of ``topk``, as tensors of shape (1,).

    ``output`` are scores (B, K), or a tuple or list that starts with them; ``target`` labels (B,).
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # (B, max k)
    hit = ranked.eq(target.view(-1, 1))  # (B, max k)
    return [hit[:, :k].float().sum().reshape(1) * (100.0 / target.size(0)) for k in topk]
