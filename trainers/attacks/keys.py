"""The config keys of ATTACK, their defaults and checks."""

from yacs.config import CfgNode

from ..config.keys import add_defaults, section
from ..records.threats import PGD_FAMILY
from ..utils.errors import UserError
from .spec import specs_from_cfg


def extend_cfg(cfg: CfgNode) -> None:
    """Add the keys of ``ATTACK``."""
    # What attacks in training and in the test; EPS and ALPHA in 1/255 ("4" and "4/255" are one)
    both = {"NAME": "pgd", "ALPHA": "1/255", "RESTARTS": 1, "START": "uniform"}
    aim = {"OBJECTIVE": "embedding_kl", "TARGET": "embedding"}
    add_defaults(cfg, "ATTACK.TRAIN", **both, EPS="8/255", STEPS=10, **aim)
    aim = {"OBJECTIVE": "ce", "TARGET": "end_to_end", "DROP": False, "NORM": "linf"}
    own = {"KWARGS": CfgNode(new_allowed=True), "PREC": "fp32"}
    add_defaults(cfg, "ATTACK.TEST", **both, EPS="1/255", STEPS=100, **aim, **own)
    add_defaults(cfg, "ATTACK.TEST", LIST=[])  # several attacks: what differs from the node, each


def check_cfg(cfg: CfgNode) -> None:
    """Refuse attacks that attack nothing, or cannot do what they are for.

    Raises:
        UserError: naming the key, its value and what to write instead.
    """
    for spec in specs_from_cfg(cfg.ATTACK.TRAIN, key="ATTACK.TRAIN"):
        if spec.name not in PGD_FAMILY:
            raise UserError(
                f"ATTACK.TRAIN.NAME is '{spec.name}', which is for tests; train with one of: "
                f"{', '.join(PGD_FAMILY)}"
            )
    for spec in specs_from_cfg(cfg.ATTACK.TEST, key="ATTACK.TEST"):
        if spec.eps == 0:
            raise UserError(
                f"ATTACK.TEST has '{spec.name}' with EPS 0, which attacks nothing; give a size "
                "such as 1/255 (clean accuracy is measured in any case)"
            )
        if spec.target == "embedding" and spec.objective != "embedding_kl":
            raise UserError(
                f"ATTACK.TEST has target 'embedding', which knows no text, with objective "
                f"'{spec.objective}'; use OBJECTIVE embedding_kl or TARGET end_to_end"
            )


section(extend_cfg, check_cfg)
