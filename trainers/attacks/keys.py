"""The config keys of ATTACK, their defaults and checks."""

from functools import partial

from yacs.config import CfgNode

from ..config.keys import Key, add_defaults, section
from ..records import threats
from ..records.threats import PGD_FAMILY
from ..utils.errors import UserError
from .settings import MOST_STEPS, parse_255, word
from .spec import MOST, specs_from_cfg


def _name(key: str, value: str) -> None:
    if not str(value).lower().startswith(threats.LIBRARY):
        word(threats.ALGORITHMS)(key, value)


def _check_size(key: str, value) -> None:
    parse_255(value, key, 255 * MOST["l2"])


OBJECTIVES = (*threats.LABELLED, *threats.REFERENCED, "logit")
_word = partial(Key, any_case=True)
_size = partial(Key, check=_check_size, form="a size in 1/255: 4 or 4/255")


def extend_cfg(cfg: CfgNode) -> None:
    """Add the keys of ``ATTACK``: what attacks in training and in the test."""
    both = {
        "NAME": Key("pgd", "the algorithm", check=_name, form="an attack of docs/attacks.md"),
        "ALPHA": _size("1/255", "step size"),
        "RESTARTS": Key(1, "runs of which the worst is kept", least=1, most=10**4),
        "START": _word("uniform", "where it starts in the ball", choices=threats.STARTS),
    }
    for node, eps, steps, objective, target in (
        ("TRAIN", "8/255", 10, "embedding_kl", "embedding"),
        ("TEST", "1/255", 100, "ce", "end_to_end"),
    ):
        add_defaults(
            cfg,
            f"ATTACK.{node}",
            **both,
            EPS=_size(eps, "radius of the ball"),
            STEPS=Key(steps, "gradient steps, or queries", least=0, most=MOST_STEPS),
            OBJECTIVE=_word(objective, "the ascended loss", choices=OBJECTIVES),
            TARGET=_word(target, "what the gradient goes through", choices=threats.TARGETS),
        )
    add_defaults(
        cfg,
        "ATTACK.TEST",
        DROP=Key(False, "score every iterate; stop at the first misclassified one"),
        NORM=_word("linf", "of the ball", choices=threats.NORMS),
        KWARGS=Key(CfgNode(new_allowed=True), "the attack's own settings"),
        PREC=_word("fp32", "of the image tower's gradients", choices=threats.PRECISIONS),
        LIST=Key([], "several attacks: what differs from the node, each", entry={}),
    )


def check_cfg(cfg: CfgNode) -> None:
    """Refuse attacks that change nothing or do not fit their use; the message names the key."""
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
        if spec.target == "embedding" and spec.objective not in threats.FEATURED:
            raise UserError(
                f"ATTACK.TEST has target 'embedding', which has no text, with objective "
                f"'{spec.objective}'; use OBJECTIVE embedding_kl or TARGET end_to_end"
            )


section("ATTACK", extend_cfg, check_cfg)
