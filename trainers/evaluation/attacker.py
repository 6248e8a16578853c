"""Attacks on a victim behind its input defence: what each kind of attack differentiates through."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from ..attacks import AttackResult, AttackSpec, Surrogate, load_surrogate, run_attack, tower_in
from ..defences import Defence, defended
from ..defences.base import another_draw, content_seeds
from ..records.threats import BACKWARDS, FEATURED
from .victim import Victim

FRESH = 5  # draws of a random test-time defence that answer to the images of an attack through it

Forward = Callable[[Tensor], Tensor]  # pixels (B, 3, H, W) in [0, 1] -> logits or features


class Attacker:
    """Makes the attack that a spec describes on ``victim``, the model under attack.

    ``defence`` purifies images, if any; ``eot`` is the draws per step through a random defence.
    """

    def __init__(self, victim: Victim, defence: Defence | None = None, eot: int = 1):
        self.victim, self.defence, self.eot = victim, defence, eot
        # if any: the choice of its nearest entry has no gradient
        self.codebook = getattr(victim.prompted, "head", None)
        self._surrogates: dict[str, Surrogate] = {}  # by name

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the defended model's logits (B, K)."""
        return defended(self.model, self.defence, adaptive=False)[0](pixels)

    def model(self, pixels: Tensor, prec: str = "fp32") -> Tensor:
        """Return the undefended logits (B, K) in float32, whatever the model computes in."""
        return self.victim.logits(pixels, prec).float()

    def forward(self, forward: Forward, seen: bool) -> Forward:
        """Return ``forward`` as the attack has it: through the defence if that is seen."""
        return defended(forward, self.defence, adaptive=seen, eot=self.eot)[1]

    def through(self, spec: AttackSpec) -> bool:
        """Return True if an attack can go through the defence: a test-time one has no features."""
        labelled = spec.target == "end_to_end" and spec.objective not in FEATURED
        return self.defence is None or not self.defence.on_logits or labelled

    def fresh(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield names and logits (B, K) of fresh draws of a random test-time defence."""
        seeds = content_seeds(images)
        for number in range(FRESH if self.defence.random else 1):
            own = another_draw(seeds, -1 - number)  # an attack's count from 1
            yield f"draw {number + 1}", self.defence.answer(self.model, images, own)

    def plain(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the plain average of the views that a method of views has drawn."""
        logits = self.defence.averaged(self.model, images, content_seeds(images))
        if logits is not None:
            yield "views averaged", logits

    def random(self, seen: bool) -> bool:
        """Return True if the attack sees another draw of a random model at every step."""
        return self.victim.random or bool(seen and self.defence and self.defence.random)

    def exact(self, seen: bool) -> bool:
        """Return True if what the attack sees is what is scored, so that one answer decides."""
        return not self.random(seen) and (seen or self.defence is None)

    def decides(self, spec: AttackSpec, seen: bool) -> bool:
        """Return True if one wrong answer ends the attack, as FAB and Square cannot do without."""
        return not self.random(seen) or spec.name in ("fab-t", "square")

    def fitted(self, spec: AttackSpec, seen: bool) -> AttackSpec:
        """Return the attack as it can be made on this model.

        Without a codebook there are no ways through one. Without DROP, where no answer that the
        attack sees decides, the last images are scored. AutoAttack and its parts, which stop at the
        first wrong answer by themselves, do so unless it is random, see :meth:`decides`.
        """
        if self.codebook is None and "backward" in spec.kwargs:
            kwargs = {k: v for k, v in spec.kwargs.items() if k != "backward"}
            spec = replace(spec, kwargs=kwargs)
        return spec if self.exact(seen) else replace(spec, drop=False)

    def run(
        self,
        spec: AttackSpec,
        pixels: Tensor,
        seeds: Sequence[int],
        labels: Tensor,
        *,
        seen: bool = False,
    ) -> AttackResult:
        """Attack pixels (B, 3, H, W) with a seed and a label each."""
        book, through = self.codebook, spec.kwargs.get("backward", BACKWARDS[0])
        if book and book.backward != through:
            before, book.backward = book.backward, through
            try:
                return self.run(spec, pixels, seeds, labels, seen=seen)
            finally:
                book.backward = before
        victim = self.victim
        if spec.target == "surrogate":
            surrogate = self.surrogate(spec)
            known = surrogate.knows(spec.kwargs["labels"], len(victim.classnames))
            forward, labels = self.forward(surrogate, seen), labels if known else None
            return run_attack(spec, pixels, seeds, forward=forward, labels=labels)
        whole = self.forward(self.model, seen)
        white_box, exact, forward = spec.target == "end_to_end", None, whole
        decides = self.decides(spec, seen)

        def still_right(images: Tensor) -> Tensor:
            return whole(images).argmax(1) == labels

        if spec.objective in FEATURED:
            features = victim.features if white_box else victim.embedding
            forward = self.forward(tower_in(spec.prec, features), seen)
        elif not white_box:
            forward = self.forward(lambda x: victim.handmade_logits(x, spec.prec), seen)
        elif spec.prec != "fp32":
            exact, forward = whole, self.forward(lambda x: self.model(x, spec.prec), seen)
        return run_attack(
            spec,
            pixels,
            seeds,
            forward=forward,
            labels=labels,
            still_right=still_right if white_box and decides else None,
            exact=exact,
            decides=decides,
        )

    def surrogate(self, spec: AttackSpec) -> Surrogate:
        """Return the model that a black-box attack is made on."""
        name, victim = spec.kwargs["surrogate"], self.victim
        if name not in self._surrogates:
            self._surrogates[name] = load_surrogate(
                name, prompts=list(victim.sentences), device=victim.device, clip=victim.clip
            )
        return self._surrogates[name]

    def facts(self, spec: AttackSpec, seen: bool) -> dict:
        """Return what a record says of surrogate and defence; empty without them."""
        black_box = spec.target == "surrogate"
        facts = {"surrogate_sha256": self.surrogate(spec).sha256} if black_box else {}
        if spec.drop and not self.decides(spec, seen):
            facts["drop"] = False
        if self.defence:
            told, own = self.defence.describe(), []
            if self.defence.on_logits:  # what it is, the configuration says: methods share a table
                told, own = told.get("behind", {}), ["test-time"]
            words = [f"{k} {v}".removeprefix("name ") for k, v in told.items()]
            how = f"seen by the attack, eot {self.eot}" if seen else "unseen by the attack"
            facts["defence"] = ", ".join([*words, *own, how])
        return facts
