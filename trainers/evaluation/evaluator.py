"""Clean and robust accuracy of a trainer's model, streamed: nothing grows with the data set.

A sample is robust only if it is right clean and right on the image that the attack returns, so
robust accuracy never exceeds clean accuracy. Samples that are wrong clean are not attacked.
AutoAttack and its parts take the samples that earlier attacks of the run have left, so that they
never report more than those.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from tqdm import tqdm

from ..attacks import (
    RAP,
    AttackChecks,
    AttackSpec,
    Surrogate,
    judge,
    load_surrogate,
    parts_of,
    probe,
    run_attack,
    tower_in,
    verify,
)
from ..attacks.spec import LABELLED
from ..backbone import cosine_logits
from ..defences import Defence, defended
from ..prompting import templates
from ..utils import distributed
from ..utils.images import batches
from ..utils.io import read_json, sha256_file, write_json
from ..utils.seeds import hash_seed
from .bank import Bank, build_bank
from .shards import Shards

TEST_SEED = 0  # of the attacks' random starts: one set of images for every run and prompt
SAVE_SECONDS = 30
CPU_BATCH = 50  # of attacks that take thousands of forwards, so that a killed one goes on nearby


@dataclass
class _Partial:
    """An attack's evaluation so far; kept on disk so that a killed one goes on.

    Attributes:
        right: whether a sample is still right; None, or not in the list: not known yet.
    """

    key: str
    right: list[bool | None] = field(default_factory=list)
    checks: dict = field(default_factory=dict)
    seconds: float = 0.0

    def pad(self, count: int) -> None:
        """Have ``right`` speak of ``count`` samples."""
        self.right += [None] * (count - len(self.right))

    def unknown(self) -> list[int]:
        return [i for i, right in enumerate(self.right) if right is None]

    def add(self, parts: list[_Partial]) -> None:
        """Add what several processes found at the same time; nothing counts twice."""
        took = 0.0
        for part in parts:
            self.pad(len(part.right))
            found = {i: right for i, right in enumerate(part.right) if right is not None}
            if not found or any(self.right[i] is not None for i in found):
                continue
            for i, right in found.items():
                self.right[i] = right
            checks = AttackChecks(**self.checks)
            checks.merge(AttackChecks(**part.checks))
            self.checks, took = asdict(checks), max(took, part.seconds)
        self.seconds += took


class Evaluation:
    """Evaluates one model on one list of images.

    Args:
        trainer: offers ``clip``, ``image_features(pixels)``, ``text_features()``,
            ``handmade_features()``, ``preprocess`` and ``frozen_image_tower``.
        items: objects with ``impath`` and ``label``.
        folder: for unfinished evaluations.
        cache: for features that do not depend on prompts, shared by all runs.
        batch_size: images per forward.
        probes: images on which the model is questioned after a white-box attack; 0: none.
        defence: purifies images in front of the model; None: nothing does.
        eot: draws per step of an attack that goes through a random defence.
        keep: folder for the adversarial images, by attack; None: they are scored and forgotten.
    """

    def __init__(
        self,
        trainer,
        items,
        *,
        folder,
        cache,
        batch_size: int,
        probes: int = 0,
        defence: Defence | None = None,
        eot: int = 1,
        keep: Path | None = None,
    ):
        self.trainer, self.items = trainer, list(items)
        self.folder, self.cache, self.batch_size = Path(folder), Path(cache), batch_size
        self.probes, self.defence, self.eot, self.keep = probes, defence, eot, keep
        self.device = trainer.clip.device
        self.labels = torch.tensor([item.label for item in self.items], device=self.device)
        distributed.check_same("test images", lambda: names_of(self.items))
        with torch.no_grad():
            self.texts = distributed.same(trainer.text_features())  # (K, D), unit length
        self.clean_right: torch.Tensor | None = None
        self.surrogates: dict[str, Surrogate] = {}  # by name
        # of the attacks so far: what it was, whether it went through the defence, (N,) bool
        self.outcomes: list[tuple[AttackSpec, bool, torch.Tensor]] = []

    # --- the model under test ------------------------------------------------------------------

    def logits_of(self, features: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Raw image features (B, D) and text features (K, D) to logits (B, K)."""
        return cosine_logits(features, texts, self.trainer.clip.logit_scale)

    def bare(self, pixels: torch.Tensor, prec: str = "fp32") -> torch.Tensor:
        """Return the logits (B, K) without the input defence, for pixels in [0, 1]."""
        return self.logits_of(tower_in(prec, self.trainer.image_features)(pixels), self.texts)

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the defended model's logits (B, K) for pixels in [0, 1]."""
        return defended(self.bare, self.defence, adaptive=False)[0](pixels)

    def attacked(self, forward, seen: bool):
        """Return ``forward`` as the attacker has it: through the defence if it is seen."""
        return defended(forward, self.defence, adaptive=seen, eot=self.eot)[1]

    @cached_property
    def handmade(self) -> torch.Tensor:
        """Text features (K, D) of the hand-made prompt, which a frozen-prompt attack sees."""
        with torch.no_grad():
            return self.trainer.handmade_features()

    def surrogate(self, spec: AttackSpec) -> Surrogate:
        """Return the model that a black-box attack is made on."""
        name = spec.kwargs["surrogate"]
        if name not in self.surrogates:
            trainer = self.trainer
            self.surrogates[name] = load_surrogate(
                name,
                prompts=templates.fill(trainer.template, trainer.classnames),
                device=self.device,
                clip=trainer.clip,
            )
        return self.surrogates[name]

    def pixels(self, positions: list[int], title: str, batch_size: int = 0):
        """Yield (positions, pixels) in batches, with a progress bar over images.

        Of several processes, the first shows its own images.
        """
        paths = [self.items[i].impath for i in positions]
        quiet = not distributed.is_main()
        with tqdm(total=len(paths), desc=title, unit="image", delay=1, disable=quiet) as bar:
            done = 0
            for pixels in batches(paths, self.trainer.preprocess, batch_size or self.batch_size):
                yield positions[done : done + len(pixels)], pixels.to(self.device)
                done += len(pixels)
                bar.update(len(pixels))

    # --- clean ---------------------------------------------------------------------------------

    @torch.no_grad()
    def clean(self) -> torch.Tensor:
        """Return the logits (N, K) on clean images and remember which are right."""
        if self.trainer.frozen_image_tower and self.defence is None:
            logits = self._bank_logits(self._bank(None, "clean features"))
        else:
            logits = torch.zeros(len(self.items), len(self.texts), device=self.device)  # (N, K)
            own = distributed.deal(range(len(self.items)), self.batch_size)
            for where, pixels in self.pixels(own, "clean"):
                logits[where] = self.logits(pixels)
            distributed.total(logits)
        self.clean_right = logits.argmax(1) == self.labels
        return logits

    # --- attacked ------------------------------------------------------------------------------

    def attack(self, spec: AttackSpec, *, seen: bool = False) -> dict:
        """Return the record's entry for one test attack. Call :meth:`clean` first.

        Args:
            seen: the attack goes through the input defence; otherwise its images are made without.
        """
        shared = self.trainer.frozen_image_tower and not (self.defence or self.keep)
        if spec.target == "embedding" and shared:
            right, checks, seconds = self._from_bank(spec)
            right &= self.clean_right
        else:
            right, checks, seconds = self._attack_parts(spec, seen)
        self.outcomes.append((spec, seen, right))
        figures, warnings = self._probe(spec, right, seen)
        n, correct, clean = len(right), int(right.sum()), int(self.clean_right.sum())
        black_box = spec.target == "surrogate"
        return {
            **spec.describe(),
            **({"surrogate_sha256": self.surrogate(spec).sha256} if black_box else {}),
            **({"defence": self._defence_in_words(seen)} if self.defence else {}),
            "n": n,
            "correct": correct,
            "seconds": round(seconds, 3),
            "checks": checks | figures,
            "warnings": verify(spec, checks, clean / n, correct / n) + warnings,
        }

    def _defence_in_words(self, seen: bool) -> str:
        name, *settings = (f"{k} {v}" for k, v in self.defence.describe().items())
        how = f"seen by the attack, eot {self.eot}" if seen else "unseen by the attack"
        return ", ".join([name.removeprefix("name "), *settings, how])

    def _probe(self, spec: AttackSpec, right: torch.Tensor, seen: bool) -> tuple[dict, list[str]]:
        """Ask the model what an attack on it cannot see; see ``attacks/probes.py``."""
        able = self.clean_right.nonzero().flatten().tolist()
        labelled = spec.objective in LABELLED and spec.target == "end_to_end"
        whole = (seen or self.defence is None) and len(self.texts) > 1
        if not (labelled and whole and able and self.probes and spec.eps and spec.steps):
            return {}, []
        if not distributed.is_main():  # which writes the record
            return {}, []
        chosen = sorted({able[i * len(able) // self.probes] for i in range(self.probes)})
        where, pixels = next(self.pixels(chosen, "probes", len(chosen)))
        model = self.attacked(self.bare, seen)
        figures = probe(model, pixels, self.labels[where], spec, self._seeds(where))
        return figures, judge(figures, spec, right[where].float().mean().item())

    def _bank(self, spec: AttackSpec | None, title: str):
        return build_bank(
            self.trainer.clip,
            self.items,
            spec=spec,
            seed=TEST_SEED,
            preprocess=self.trainer.preprocess,
            cache_dir=self.cache,
            batch_size=self.batch_size,
            title=title,
        )

    @torch.no_grad()
    def _bank_logits(self, bank: Bank) -> torch.Tensor:
        parts = (self.logits_of(rows.to(self.device), self.texts) for rows in bank.blocks())
        return distributed.same(torch.cat(list(parts)))  # (N, K)

    def _from_bank(self, spec: AttackSpec):
        """Score cached features: the attack saw no prompt, so all prompts share its images."""
        bank = self._bank(spec, f"{spec.target} attack")
        logits = self._bank_logits(bank)
        return logits.argmax(1) == self.labels, bank.checks, bank.seconds

    def _attack_parts(self, spec: AttackSpec, seen: bool):
        """Run an attack, or the parts of a composed one, each on what is still right."""
        right, total, seconds = self.clean_right.clone(), AttackChecks(), 0.0
        for before, saw, outcome in self.outcomes if spec.adaptive else ():
            same = (before.target, before.norm, saw) == (spec.target, spec.norm, seen)
            if same and before.eps is not None and before.eps <= spec.eps:
                right &= outcome
        parts, left = parts_of(spec, len(self.texts)), {}
        for part in parts:
            right, checks, took = self._attack_images(part, right, seen)
            total.merge(checks)
            seconds += took
            left[part.name] = int(right.sum())
        return right, total.summary() | ({"left": left} if len(parts) > 1 else {}), seconds

    def _attack_images(self, spec: AttackSpec, right: torch.Tensor, seen: bool):
        """Attack the samples in ``right`` (N,); return which of them are left."""
        positions = right.nonzero().flatten().tolist()
        names = [self.items[i].impath for i in positions]
        key = distributed.agree(lambda: self._key(spec, seen, names))
        path = self.folder / f"{key[:16]}.json"
        whole = self._resume(path, key)
        shards = self._shards(spec, seen, key)
        if shards and not shards.resume(len(whole.right) - len(whole.unknown())):
            whole = _Partial(key)
        whole.pad(len(positions))
        together = distributed.world() > 1
        state = _Partial(key, [None] * len(positions)) if together else whole
        file = path.with_suffix(f".{distributed.rank()}.json") if together else path
        checks, saved = AttackChecks(**state.checks), time.monotonic()
        size = self.batch_size
        if (spec.adaptive or spec.library) and self.device.type == "cpu":
            size = min(size, CPU_BATCH)
        title = f"{spec.target} {spec.name}"
        clock, before = time.perf_counter(), state.seconds
        own = distributed.deal(whole.unknown(), size)
        number = {positions[i]: i for i in own}
        for where, pixels in self.pixels(list(number), title, size):
            result = self.run_attack(spec, where, pixels, seen=seen)
            checks.add(result, pixels)
            with torch.no_grad():
                still = self.logits(result.images).argmax(1) == self.labels[where]
            found = spec.target == "end_to_end" and self.defence is None
            if found and result.right is not None:  # with other images in the batch: both count
                still &= result.right
            if shards:
                paths, labels = [self.items[i].impath for i in where], self.labels[where]
                shards.add(result.images, pixels, labels, still, paths, self.logits)
            for position, kept in zip(where, still.tolist(), strict=True):
                state.right[number[position]] = kept
            state.checks, state.seconds = asdict(checks), before + time.perf_counter() - clock
            if shards or time.monotonic() - saved > SAVE_SECONDS:
                write_json(file, asdict(state))
                saved = time.monotonic()
        write_json(file, asdict(state))
        if together:
            whole.add([_Partial(**found) for found in distributed.gather(asdict(state))])
            if distributed.is_main():
                self._keep(path, whole)
        left = torch.zeros_like(right)
        left[positions] = torch.tensor(whole.right, dtype=torch.bool, device=self.device)
        return left, AttackChecks(**whole.checks), whole.seconds

    def _shards(self, spec: AttackSpec, seen: bool, key: str) -> Shards | None:
        if self.keep is None:
            return None
        size = f"{spec.eps * 255:.4g}" if spec.eps else "no-ball"
        words = [spec.target, spec.name.replace(":", "-"), size, *(["seen"] if seen else [])]
        return Shards(self.keep / "_".join([*words, key[:8]]), key, spec.describe())

    def run_attack(self, spec: AttackSpec, where: list[int], pixels: torch.Tensor, *, seen=False):
        """Attack the images at positions ``where``; the starts depend on image content only."""
        seeds, labels, clip = self._seeds(where), self.labels[where], self.trainer.clip
        if spec.target == "surrogate":
            surrogate = self.surrogate(spec)
            known = surrogate.knows(spec.kwargs["labels"], len(self.texts))
            forward = self.attacked(surrogate, seen)
            return RAP(forward, labels if known else None, spec, spec.kwargs).run(pixels, seeds)
        whole, still_right, exact = self.attacked(self.bare, seen), None, None
        own, forward = spec.target == "end_to_end", whole
        if own:
            still_right = lambda x: whole(x).argmax(1) == labels  # noqa: E731
        if spec.objective == "embedding_kl":
            features = self.trainer.image_features if own else clip.encode_image
            forward = self.attacked(tower_in(spec.prec, features), seen)
        elif not own:
            frozen = tower_in(spec.prec, clip.encode_image)
            forward = self.attacked(lambda x: self.logits_of(frozen(x), self.handmade), seen)
        elif spec.prec != "fp32":
            exact = whole
            forward = self.attacked(lambda x: self.bare(x, spec.prec), seen)
        return run_attack(
            spec,
            pixels,
            seeds,
            forward=forward,
            labels=labels,
            still_right=still_right,
            exact=exact,
        )

    def _seeds(self, where: list[int]) -> list[int]:
        return [hash_seed(TEST_SEED, sha256_file(self.items[i].impath), 0) for i in where]

    def _key(self, spec: AttackSpec, seen: bool, names: list[str]) -> str:
        """Everything this evaluation depends on, so that another one is never continued."""
        facts = [spec.facts(), self.trainer.clip.sha256, self.trainer.preprocess.key, names]
        facts += [self.defence.describe(), seen, self.eot] if self.defence else []
        facts += [self.surrogate(spec).sha256] if spec.target == "surrogate" else []
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(self.texts.cpu().numpy().tobytes())
        digest.update(self.trainer.prompt_digest().encode())
        return digest.hexdigest()

    def _resume(self, path: Path, key: str) -> _Partial:
        """Return what is known of an evaluation, from however many processes."""
        return _Partial(**distributed.agree(lambda: asdict(self._known(path, key))))

    def _known(self, path: Path, key: str) -> _Partial:
        whole = _read(path, key) or _Partial(key)
        if parts := _parts(path):
            whole.add([state for part in parts if (state := _read(part, key))])
            self._keep(path, whole)
        return whole

    def _keep(self, path: Path, whole: _Partial) -> None:
        """Write what is known as one file, in the place of the processes' own."""
        write_json(path, asdict(whole))
        for part in _parts(path):
            part.unlink()


def names_of(items) -> list:
    """Return what tells lists of images apart on machines whose folders differ."""
    return [(Path(item.impath).name, item.label) for item in items]


def _read(path: Path, key: str) -> _Partial | None:
    if not path.is_file():
        return None
    stored = _Partial(**read_json(path))
    return stored if stored.key == key else None


def _parts(path: Path) -> list[Path]:
    """Return the files of single processes that belong to an evaluation's file."""
    return sorted(path.parent.glob(f"{path.stem}.*.json"))
