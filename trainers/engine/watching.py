"""Clean and robust accuracy of a few images during training, for TensorBoard; a decoration."""

import torch

from ..attacks import AttackSpec, gradient_attack, objective_for, specs_from_cfg
from ..evaluation.samples import ImageList
from ..evaluation.victim import TrainerVictim, answers, evaluating
from ..utils.seeds import hash_seed, seeded
from ..utils.subset import stratified_subset

STEPS = 10


def watch(trainer) -> None:
    """Write ``robust/*`` for the epoch that just ended, if it is its turn; training never notices.

    The images are a fixed draw of the validation images, of the training images where there are
    none. The attack is PGD-10 on the cross-entropy, in the ball of the first of ``ATTACK.TEST``.
    """
    keys = trainer.cfg.TRAIN
    if trainer.unwatched or not keys.ROBUST_FREQ or (trainer.epoch + 1) % keys.ROBUST_FREQ:
        return
    device = trainer.clip.device
    gpus = [torch.cuda.current_device()] if device.type == "cuda" else []
    try:
        if trainer.tuning:
            raise RuntimeError(f"{type(trainer).__name__} has no image tower while it is tuned")
        with seeded(0, gpus), evaluating(trainer._models.values()):
            for name, value in _accuracies(trainer, keys.ROBUST_SUBSET).items():
                trainer.write_scalar(f"robust/{name}", value, trainer.epoch)
    except Exception as error:  # never the end of a run
        trainer.unwatched = True
        print(f"note: robust accuracy is not written for TensorBoard any more ({error})")


def _accuracies(trainer, count: int) -> dict[str, float]:
    data, victim = trainer.dm.dataset, TrainerVictim(trainer)
    images = ImageList(stratified_subset(data.val or data.train_x, count), trainer.preprocess)
    ball = specs_from_cfg(trainer.cfg.ATTACK.TEST, key="ATTACK.TEST")[0]
    eps, norm = (ball.eps, ball.norm) if ball.eps else (1 / 255, "linf")  # some have no ball
    spec = AttackSpec("pgd", eps, eps / 4, STEPS, 1, "uniform", "ce", "end_to_end", norm, drop=True)
    victim.prepare()
    right = {"clean": 0, f"pgd{STEPS}": 0}
    batch = trainer.cfg.DATALOADER.TEST.BATCH_SIZE
    for where, pixels in images.batches(range(len(images)), batch, victim.device):
        labels = torch.tensor([images.labels[i] for i in where], device=victim.device)
        with torch.no_grad():
            right["clean"] += int((answers(victim.logits(pixels), victim.name) == labels).sum())
        attack = gradient_attack(objective_for(spec, victim.logits, labels=labels), spec)
        found = attack.run(pixels, [hash_seed(0, i) for i in where])
        right[f"pgd{STEPS}"] += int(found.right.sum())
    return {name: 100 * number / len(images) for name, number in right.items()}
