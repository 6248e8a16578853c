"""What an attack is, in words: its fields, their units, and the refusal of wrong values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from ..records import threats
from ..records.threats import LABELLED, LIBRARY, PGD_FAMILY, REFERENCED
from ..utils.errors import UserError, nearest
from .library_classes import library_fields
from .settings import in_255, number, parse_255, settings_of, whole, word

STEPS = {"square": 5000}  # usual steps (queries for square) of the adaptive attacks; 100 elsewhere
# steps and alpha are both authors', start and objective those of AdvPT's code
RAP = {
    "target": "surrogate",
    "objective": "logit",
    "start": "uniform",
    "alpha": "2/255",
    "steps": 400,
    "drop": False,
    "norm": "linf",
}
MOST = {"linf": 1, "l2": 100}  # largest radius; 224x224 images are at most 388 apart in L2


@dataclass(frozen=True)
class AttackSpec:
    """One threat: everything that decides which perturbation is found, apart from the model.

    Attributes:
        name: the algorithm: ``pgd``, ``fgsm``, ``mi``, ``di``, ``mdi``, ``autoattack``, one of its
            parts (``apgd-ce``, ``apgd-t``, ``fab-t``, ``square``), ``apgd-dlr``, ``apgd``
            (``apgd-ce`` and ``apgd-dlr``), ``rap``, or ``torchattacks:CLASS``.
        eps: radius of the ball, float in [0, 1] (16/255 = 0.0627); None for a class of
            torchattacks without a ball, such as CW.
        objective: the ascended loss, ``ce``, ``margin``, ``kl``, ``embedding_kl`` or
            ``embedding_l2``; of rap ``logit`` (MaxLogit, minus the label's logit) or ``ce``.
        target: what the attacker differentiates through: ``end_to_end`` (the learned prompt),
            ``frozen_prompt`` (the hand-made one), ``embedding`` (the image tower alone) or, of
            rap, ``surrogate`` (another model).
        drop: score every iterate and leave a sample alone once it is misclassified: a stronger
            attack than the last iterate, and a cheaper one.
        prec: precision in which the image tower makes the gradients, ``fp32`` or (PGD family)
            ``bf16``; images, loss and the final judgement are float32 in any case.

    The parts of AutoAttack have no alpha, start or objective (None) and always drop. Classes of
    torchattacks have no start or objective, and alpha None is their own step size.
    UserError if a value is unknown or out of range, or the combination cannot work.
    """

    name: str
    eps: float | None
    alpha: float | None  # step size, in [0, 1]
    steps: int  # gradient steps (queries of square); 0 leaves the random start, a noise baseline
    restarts: int  # independent runs of which the worst for the model is kept
    start: str | None  # uniform U[-eps, eps], one_sided U[0, eps] (AdvPT's public code) or zero
    objective: str | None
    target: str
    norm: str = "linf"  # or l2; of a class without a ball, what it measures
    drop: bool = False
    kwargs: dict = field(default_factory=dict)  # see :mod:`.settings`; filled in if not given
    prec: str = "fp32"

    def __post_init__(self):
        if not isinstance(self.kwargs, Mapping):
            raise UserError(f"attack kwargs is {self.kwargs!r}, expected keys and values")
        if not self.library:
            self._check(name=word(threats.ALGORITHMS), norm=word(threats.NORMS))
        self._check(target=word(threats.TARGETS), prec=word(threats.PRECISIONS))
        if (self.target == "surrogate") != (self.name in threats.BLACK_BOX):
            raise UserError(
                f"attack '{self.name}' has target '{self.target}', but target 'surrogate' goes "
                "with rap alone, and rap with it; change NAME or TARGET"
            )
        own_loop = self.adaptive or self.library
        if own_loop:
            self._fill_in_others()
        else:
            own = threats.RAP_OBJECTIVES if self.name == "rap" else LABELLED | REFERENCED
            self._check(start=word(threats.STARTS), objective=word(own))
            self._set(kwargs=settings_of(self.name, self.kwargs))
            if self.name == "fgsm":
                self._set(steps=1, alpha=self.eps)
        if not isinstance(self.drop, bool):
            raise UserError(f"attack drop is {self.drop!r}, expected True or False")
        given = [key for key in ("eps", "alpha") if getattr(self, key) is not None]
        needed = [] if self.library else ["eps"] if self.adaptive else ["eps", "alpha"]
        self._check(**dict.fromkeys([*needed, *given], number(0, MOST.get(self.norm, 1))))
        self._check(steps=whole(0), restarts=whole(1))
        if self.prec != "fp32" and self.name not in PGD_FAMILY:
            raise UserError(
                f"attack '{self.name}' computes in fp32 only, not in {self.prec}; leave PREC out "
                f"or use one of: {', '.join(PGD_FAMILY)}"
            )
        if not own_loop:
            self._check_loop()

    @property
    def adaptive(self) -> bool:
        """Whether the attack chooses step size, start and objective by itself."""
        return self.name in threats.ADAPTIVE

    @property
    def library(self) -> bool:
        """Whether it is a class of torchattacks."""
        return str(self.name).lower().startswith(LIBRARY)

    def _set(self, **values) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check(self, **checks) -> None:
        self._set(**{k: check(f"attack {k}", getattr(self, k)) for k, check in checks.items()})

    def _fill_in_others(self) -> None:
        """Fill in what an attack with a loop of its own takes, and None for the rest."""
        self._set(start=None, objective=None, drop=self.adaptive)
        if self.target == "embedding":
            raise UserError(
                f"attack '{self.name}' needs logits, which target 'embedding' does not have; "
                "use target 'end_to_end' or 'frozen_prompt'"
            )
        if self.library:
            own = ("name", "norm", "eps", "alpha", "steps", "kwargs")
            self._set(**library_fields(*(getattr(self, name) for name in own)))
        else:
            self._set(alpha=None, kwargs=settings_of(self.name, self.kwargs))

    def _check_loop(self) -> None:
        """Refuse what cannot work in our own loop."""
        late, ascends = self.kwargs.get("late_start", -1), f"objective '{self.objective}'"
        labelled = self.objective in LABELLED and self.target == "end_to_end"
        from_clean = self.start == "zero"
        if self.norm == "l2" and self.start == "one_sided":
            why = "start 'one_sided' is L_inf's; use start 'uniform' in L2"
        elif self.norm != "linf" and self.name == "rap":
            why = "'rap' keeps to a ball in linf; leave NORM out"
        elif late >= self.steps:
            why = (
                f"'rap' starts its reverse perturbation after {late} steps but has {self.steps}; "
                "set KWARGS.late_start to less, or give it more STEPS"
            )
        elif self.eps > 0 and self.steps > 0 and self.alpha == 0:
            why = "alpha is 0, so that no step moves; give a step size such as 1"
        elif from_clean and self.objective in REFERENCED:
            why = (
                f"start 'zero' cannot ascend {ascends}: its gradient at the clean image is exactly "
                "0; use start 'uniform' or 'one_sided'"
            )
        elif from_clean and self.restarts > 1:
            why = (
                f"start 'zero' makes all {self.restarts} restarts the same; use start 'uniform' or "
                "1 restart"
            )
        elif self.drop and not labelled:
            why = (
                f"drop scores every iterate by its label, which {ascends} against target "
                f"'{self.target}' does not see; use objective 'ce' or 'margin' and target "
                "'end_to_end', or leave drop out"
            )
        else:
            return
        raise UserError(f"attack {why}")

    @classmethod
    def from_cfg(
        cls, node, overrides: Mapping | None = None, *, key: str = "ATTACK"
    ) -> "AttackSpec":
        """Read a config node (yacs or a plain dict; upper or lower case) such as ATTACK.TEST.

        It has NAME, EPS, ALPHA (in 1/255), STEPS, RESTARTS, START, OBJECTIVE, TARGET and perhaps
        NORM, DROP, KWARGS and PREC; ``overrides`` replace its values, as an entry of LIST does. An
        entry that names a part of AutoAttack takes no steps, restarts or drop from the node; one
        that names rap takes nothing but eps. UserError, naming ``key``, for any mistake.
        """
        given = _lower(overrides or {}, f"{key}.LIST")
        values = {"norm": "linf", "drop": False, "kwargs": {}, "prec": "fp32"} | _lower(node, key)
        values |= _usual(str(given.get("name", "")).lower()) | given
        name = str(values.get("name", "")).lower()
        if name in threats.ADAPTIVE:
            values |= {"alpha": None}
        if name in threats.ADAPTIVE or name.startswith(LIBRARY):
            values |= {"start": None, "objective": None}
        values["kwargs"] = values["kwargs"] or {}
        missing = [f"{key}.{f.name.upper()}" for f in fields(cls) if f.name not in values]
        if missing:
            raise UserError(f"{', '.join(missing)} is missing; set it in the config")
        most = 255 * MOST.get(str(values["norm"]).lower(), 100)
        for name in ("eps", "alpha"):
            if values[name] is not None:  # of attacks without a ball, or with steps of their own
                values[name] = parse_255(values[name], f"{key}.{name.upper()}", most)
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None

    def describe(self) -> dict:
        """Return the fields for a record: JSON-able, eps and alpha as ``"16/255"``.

        ``from_cfg`` reads the result back (eps and alpha to four decimals of 1/255).
        """
        values = self.facts()
        for name in ("eps", "alpha"):
            if values[name] is not None:
                values[name] = f"{in_255(values[name])}/255"
        return values

    def facts(self) -> dict:
        """Return the fields, but for kwargs and prec where nothing was chosen there."""
        unchosen = {"kwargs": {}, "prec": "fp32"}  # records and banks from before they existed
        return {k: v for k, v in asdict(self).items() if k not in unchosen or v != unchosen[k]}


def _lower(node, where: str) -> dict:
    """Return a node's fields of an attack in lower case; UserError if it has another key."""
    if not isinstance(node, Mapping):
        raise UserError(f"{where} is {node!r}, expected keys and values such as EPS: 4")
    names = [f.name for f in fields(AttackSpec)]
    for name in node:
        if str(name).lower() not in (*names, "list"):
            hint = nearest(name, [n.upper() for n in names])
            raise UserError(f"{where}.{name} is not an attack setting.{hint}")
    return {str(k).lower(): v for k, v in node.items() if str(k).lower() != "list"}


def _usual(name: str) -> dict:
    """Return what an entry of LIST with this name takes in place of the node's values."""
    if name in ("", *PGD_FAMILY):
        return {"start": "zero", "restarts": 1} if name == "fgsm" else {}
    own = {"steps": None, "alpha": None} if name.startswith(LIBRARY) else {}
    if name in threats.ADAPTIVE:
        own = {"steps": STEPS.get(name, 100), "drop": True}
    return {"restarts": 1, "kwargs": {}, "prec": "fp32"} | (RAP if name == "rap" else own)


def specs_from_cfg(node, *, key: str = "ATTACK") -> list[AttackSpec]:
    """Read a node with LIST: one spec per entry, or the node itself where LIST is empty.

    UserError as of :meth:`AttackSpec.from_cfg`, or if two entries are the same attack.
    """
    entries = node.get("LIST") or [{}]
    specs = [AttackSpec.from_cfg(node, entry, key=key) for entry in entries]
    described = [spec.describe() for spec in specs]
    for i, facts in enumerate(described):
        if facts in described[:i]:
            raise UserError(
                f"{key}.LIST names the same attack twice (entries {described.index(facts) + 1} and "
                f"{i + 1}: eps {facts['eps']}, {facts['steps']} steps); leave one of them out"
            )
    return specs
