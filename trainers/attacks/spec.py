"""What an attack is, in words: its fields, their units, and the refusal of wrong values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from ..utils.errors import UserError, nearest
from .catalogue import FAMILY, PREFIX, family_settings, library_fields, rap_settings
from .units import in_255, parse_255

# Attacks that choose step size, start and objective by themselves -> their usual number of steps
# (queries for square). apgd is apgd-ce and apgd-dlr.
ADAPTIVE = {
    "autoattack": 100,
    "apgd": 100,
    "apgd-ce": 100,
    "apgd-dlr": 100,
    "apgd-t": 100,
    "fab-t": 100,
    "square": 5000,
}
BLACK_BOX = ("rap",)  # made on another model, the surrogate
NAMES = (*FAMILY, *ADAPTIVE, *BLACK_BOX)
# of an entry of LIST: steps and alpha are both authors', start and objective those of AdvPT's code
RAP_FIELDS = {
    "target": "surrogate",
    "objective": "logit",
    "start": "uniform",
    "alpha": "2/255",
    "steps": 400,
    "restarts": 1,
    "drop": False,
    "norm": "linf",
}
STARTS = ("uniform", "one_sided", "zero")
OBJECTIVES = ("ce", "margin", "kl", "embedding_kl")
RAP_OBJECTIVES = ("logit", "ce")
TARGETS = ("end_to_end", "frozen_prompt", "embedding", "surrogate")
NORMS = ("linf", "l2")
PRECISIONS = ("fp32", "bf16")

# Objectives that compare with the model's own clean output: flat at a perturbation of zero.
FLAT_AT_ZERO = ("kl", "embedding_kl")
LABELLED = ("ce", "margin")
MOST_L2 = 100  # largest radius in L2; 224x224 images are at most 388 apart


@dataclass(frozen=True)
class AttackSpec:
    """One threat: everything that decides which perturbation is found, apart from the model.

    Attributes:
        name: the algorithm: ``pgd``, ``fgsm``, ``mi``, ``di``, ``mdi``, ``autoattack``, one of its
            parts (``apgd-ce``, ``apgd-t``, ``fab-t``, ``square``), ``apgd-dlr``, ``apgd``
            (``apgd-ce`` and ``apgd-dlr``), ``rap``, or ``torchattacks:CLASS``.
        eps: radius of the ball, float in [0, 1] (16/255 = 0.0627); None for a class of
            torchattacks without a ball, such as CW.
        alpha: step size, float in [0, 1].
        steps: gradient steps; 0 leaves the random start, a noise baseline.
        restarts: independent runs of which the worst for the model is kept.
        start: ``uniform`` U[-eps, eps], ``one_sided`` U[0, eps] (AdvPT's public code) or ``zero``.
        objective: the ascended loss, ``ce``, ``margin``, ``kl`` or ``embedding_kl``; of rap
            ``logit`` (MaxLogit, minus the label's logit) or ``ce``.
        target: what the attacker differentiates through: ``end_to_end`` (the learned prompt),
            ``frozen_prompt`` (the hand-made one), ``embedding`` (the image tower alone) or, of
            rap, ``surrogate`` (another model).
        norm: ``linf`` or ``l2``; of a class without a ball, what it measures.
        drop: score every iterate and leave a sample alone once it is misclassified. A stronger
            attack than the last iterate, and a cheaper one.
        kwargs: the attack's own settings, see :mod:`.catalogue`; those not given are filled in.
        prec: precision in which the image tower makes the gradients, ``fp32`` or (PGD family)
            ``bf16``; images, loss and the final judgement are float32 in any case.

    The parts of AutoAttack have no alpha, start or objective (None) and always drop. Classes of
    torchattacks have no start or objective, and alpha None stands for their own step size.

    Raises:
        UserError: a value is unknown, out of range, or the combination cannot work.
    """

    name: str
    eps: float | None
    alpha: float | None
    steps: int
    restarts: int
    start: str | None
    objective: str | None
    target: str
    norm: str = "linf"
    drop: bool = False
    kwargs: dict = field(default_factory=dict)
    prec: str = "fp32"

    def __post_init__(self):
        self._check_words(target=TARGETS, prec=PRECISIONS)
        if not isinstance(self.kwargs, Mapping):
            raise UserError(f"attack kwargs is {self.kwargs!r}, expected keys and values")
        if self.library:
            self._settle_library()
        else:
            self._check_words(name=NAMES, norm=NORMS)
        if (self.target == "surrogate") != (self.name in BLACK_BOX):
            raise UserError(
                f"attack '{self.name}' has target '{self.target}', but target 'surrogate' goes "
                f"with {' and '.join(BLACK_BOX)} alone, and they with it; change NAME or TARGET"
            )
        if self.adaptive or self.library:
            own = {"start": None, "objective": None, "drop": self.adaptive}
            self._set(**own | ({"alpha": None} if self.adaptive else {}))
            if self.target == "embedding":
                raise UserError(
                    f"attack '{self.name}' needs logits, which target 'embedding' does not have; "
                    "use target 'end_to_end' or 'frozen_prompt'"
                )
        else:
            rap = self.name == "rap"
            self._check_words(start=STARTS, objective=RAP_OBJECTIVES if rap else OBJECTIVES)
            self._settle_rap() if rap else self._settle_family()
        self._check_numbers()
        if self.prec != "fp32" and self.name not in FAMILY:
            raise UserError(
                f"attack '{self.name}' computes in fp32 only, not in {self.prec}; leave PREC out "
                f"or use one of: {', '.join(FAMILY)}"
            )
        if self.adaptive and self.kwargs:
            raise UserError(f"attack '{self.name}' takes no settings; leave KWARGS out")
        if self.adaptive or self.library:
            return
        if self.eps > 0 and self.steps > 0 and self.alpha == 0:
            raise UserError("attack alpha is 0, so that no step moves; give a step size such as 1")
        if self.start == "zero" and self.objective in FLAT_AT_ZERO:
            raise UserError(
                f"attack start 'zero' cannot ascend objective '{self.objective}': its gradient at "
                "the clean image is exactly 0; use start 'uniform' or 'one_sided'"
            )
        if self.start == "zero" and self.restarts > 1:
            raise UserError(
                f"attack start 'zero' makes all {self.restarts} restarts the same; "
                "use start 'uniform' or 1 restart"
            )
        if self.drop and (self.objective not in LABELLED or self.target != "end_to_end"):
            raise UserError(
                f"attack drop scores every iterate by its label, which objective "
                f"'{self.objective}' against target '{self.target}' does not see; use objective "
                "'ce' or 'margin' and target 'end_to_end', or leave drop out"
            )

    @property
    def adaptive(self) -> bool:
        """Whether the attack chooses step size, start and objective by itself."""
        return self.name in ADAPTIVE

    @property
    def library(self) -> bool:
        """Whether it is a class of torchattacks."""
        return str(self.name).lower().startswith(PREFIX)

    def _set(self, **values) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _settle_library(self) -> None:
        given = ("norm", "eps", "alpha", "steps", "kwargs")
        self._set(**library_fields(self.name, **{name: getattr(self, name) for name in given}))

    def _settle_family(self) -> None:
        self._set(kwargs=family_settings(self.name, self.kwargs))
        if self.name == "fgsm":
            self._set(steps=1, alpha=self.eps)
        if "aim" in self.kwargs and (self.objective != "ce" or self.target == "embedding"):
            raise UserError(
                f"attack KWARGS.aim goes towards a class by its cross-entropy, not by objective "
                f"'{self.objective}'; use objective 'ce', or leave aim out"
            )
        if self.norm == "l2" and self.start == "one_sided":
            raise UserError("attack start 'one_sided' is L_inf's; use start 'uniform' in L2")

    def _settle_rap(self) -> None:
        self._set(kwargs=rap_settings(self.kwargs))
        late = self.kwargs["late_start"]
        if self.norm != "linf":
            raise UserError("attack 'rap' keeps to a ball in linf; leave NORM out")
        if isinstance(self.steps, int) and late >= self.steps:
            raise UserError(
                f"attack 'rap' starts its reverse perturbation after {late} steps but has "
                f"{self.steps}; set KWARGS.late_start to less, or give it more STEPS"
            )

    def _check_words(self, **choices_of) -> None:
        for name, choices in choices_of.items():
            value = getattr(self, name)
            if str(value).lower() not in choices:
                hint = nearest(value, choices)
                raise UserError(f"attack {name} {value!r} is unknown.{hint}")
            object.__setattr__(self, name, str(value).lower())

    def _check_numbers(self) -> None:
        if not isinstance(self.drop, bool):
            raise UserError(f"attack drop is {self.drop!r}, expected True or False")
        for name in ("eps",) if self.adaptive else ("eps", "alpha"):
            value = getattr(self, name)
            if self.library and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UserError(f"attack {name} is {value!r}, expected a float in [0, 1]")
            most = 1 if self.norm == "linf" else MOST_L2
            if not 0 <= value <= most:
                raise UserError(f"attack {name} is {value}, expected a float in [0, {most}]")
            object.__setattr__(self, name, float(value))
        for name, least in (("steps", 0), ("restarts", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"attack {name} is {value!r}, expected an integer >= {least}")

    @classmethod
    def from_cfg(cls, node, overrides: Mapping | None = None, *, key: str = "ATTACK") -> AttackSpec:
        """Read a config node (yacs or a plain dict; upper or lower case) such as ATTACK.TEST.

        Args:
            node: NAME, EPS, ALPHA (in 1/255), STEPS, RESTARTS, START, OBJECTIVE, TARGET and
                optionally NORM, DROP and PREC; LIST is left to :func:`specs_from_cfg`.
            overrides: values that replace the node's, as an entry of LIST does. An entry that
                names a part of AutoAttack takes no steps, restarts or drop from the node; one that
                names rap takes nothing but eps.
            key: the node's name, for messages.

        Raises:
            UserError: a key is missing or unknown, or a value is refused.
        """
        names = [f.name for f in fields(cls)]
        values = {"norm": "linf", "drop": False, "kwargs": {}, "prec": "fp32"}
        for source, where in ((node, key), (overrides or {}, f"{key}.LIST")):
            if not isinstance(source, Mapping):
                raise UserError(f"{where} is {source!r}, expected keys and values such as EPS: 4")
            for name, value in source.items():
                if str(name).lower() in names:
                    values[str(name).lower()] = value
                elif str(name).lower() != "list":
                    hint = nearest(name, [n.upper() for n in names])
                    raise UserError(f"{where}.{name} is no attack setting.{hint}")
        given = {str(name).lower(): value for name, value in (overrides or {}).items()}
        name = str(given.get("name", "")).lower()
        if name and name not in FAMILY:  # of the node, which may speak of another attack
            values["prec"] = given.get("prec", "fp32")
        if name in ADAPTIVE:
            values |= {"steps": ADAPTIVE[name], "restarts": 1, "drop": True, "kwargs": {}} | given
        elif name.startswith(PREFIX):
            values |= {"steps": None, "alpha": None, "restarts": 1, "kwargs": {}} | given
        elif name == "fgsm":
            values |= {"start": "zero", "restarts": 1} | given
        elif name == "rap":
            values |= RAP_FIELDS | {"kwargs": {}} | given
        name = str(values.get("name", "")).lower()
        adaptive = name in ADAPTIVE
        if adaptive:
            values |= {"alpha": None}
        if adaptive or name.startswith(PREFIX):
            values |= {"start": None, "objective": None, "drop": adaptive}
        values["kwargs"] = dict(values["kwargs"] or {})
        missing = [f"{key}.{name.upper()}" for name in names if name not in values]
        if missing:
            raise UserError(f"{', '.join(missing)} is missing; set it in the config")
        most = 255 if str(values["norm"]).lower() == "linf" else 255 * MOST_L2
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


def specs_from_cfg(node, *, key: str = "ATTACK") -> list[AttackSpec]:
    """Read a node with LIST: one spec per entry, or the node itself where LIST is empty.

    Raises:
        UserError: see :meth:`AttackSpec.from_cfg`; or two entries are the same attack.
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
