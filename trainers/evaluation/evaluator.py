"""Clean and robust accuracy of a model, streamed: nothing but answers grows with the data set.

A sample is robust only if it is right clean and right on the image that the attack returns, so
robust accuracy never exceeds clean accuracy. Samples that are wrong clean are not attacked.
AutoAttack and its parts take the samples that earlier attacks of the run have left, so that they
never report more than those. To an attack through a defence the images count as well that the
same attack has made without it. The entry of an attack says in ``after`` what it started from.
"""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch

from ..attacks import (
    AttackChecks,
    AttackResult,
    AttackSpec,
    judge,
    parts_of,
    probe_attack,
    probe_model,
    verify,
)
from ..attacks.checks import ORDER_SHARE
from ..defences import Defence
from ..records import in_words, starts_from
from ..records.threats import LABELLED
from ..utils.io import json_digest
from ..utils.seeds import hash_seed
from ..utils.statistics import unlikely
from .attacker import Attacker
from .bank import Bank, build_bank
from .fitting import Fitting
from .partial import Progress
from .samples import ImageList
from .saved_images import SavedImages
from .victim import Victim, answers

TEST_SEED = 0  # of the attacks' random starts: one set of images for every run and prompt
SAVE_SECONDS = 30
CPU_BATCH = 50  # of attacks: larger ones are slower there, and an interrupted one loses more


class Evaluation:
    """Evaluates one model on one list of N images."""

    def __init__(
        self,
        victim: Victim,
        images: ImageList,
        *,
        folder,  # for unfinished evaluations
        cache,  # for features that do not depend on prompts, shared by all runs
        batch_size: int,  # images per forward
        probes: int = 0,  # images for the checks after a white-box attack, see attacks/probes.py
        defence: Defence | None = None,  # purifies images in front of the model
        eot: int = 1,  # draws per step of an attack that goes through a random defence
        keep: Path | None = None,  # folder for the adversarial images, by attack, if wanted
    ):
        self.victim, self.images, self.batch_size = victim, images, batch_size
        self.folder, self.cache, self.keep = Path(folder), Path(cache), keep
        self.probes, self.defence = probes, defence
        self.attacker, self.fitting = Attacker(victim, defence, eot), Fitting()
        victim.prepare()
        if defence is None:
            victim.check_tower(images)
        self.device = victim.device
        self.labels = torch.tensor(images.labels, device=self.device)  # (N,) int64
        self.clean_right: torch.Tensor | None = None  # (N,) bool, set by :meth:`clean`
        # of the attacks so far: the attack, whether it saw the defence, who is right (N,)
        self.outcomes: list[tuple[AttackSpec, bool, torch.Tensor]] = []
        self.cost: dict[str, float] = {}  # of a test-time defence, for an image
        self._asked: dict[bool, dict] = {}  # of the model, by whether the defence is seen
        self._kept: list[Path] = []  # folders of saved images

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the defended model's logits (B, K) for pixels in [0, 1]."""
        return self.attacker.logits(pixels)

    def _answers(self, logits: torch.Tensor) -> torch.Tensor:
        return answers(logits, self.victim.name)

    def pixels(self, positions: list[int], title: str, batch_size: int = 0):
        """Yield (positions, pixels) in batches, with a progress bar over images."""
        return self.images.batches(positions, batch_size or self.batch_size, self.device, title)

    # --- clean ---------------------------------------------------------------------------------

    @torch.no_grad()
    def clean(self) -> torch.Tensor:
        """Return the logits (N, K) on clean images and remember which are right."""
        if self.victim.frozen_image_tower and self.defence is None:
            logits = self._bank_logits(self._bank(None, "clean features"))
        else:
            classes, seconds = len(self.victim.classnames), 0.0
            logits = torch.zeros(len(self.images), classes, device=self.device)  # (N, K)
            batches = self.pixels(list(range(len(self.images))), "clean")
            for where, pixels in self.fitting.parts(batches):
                with self.fitting:
                    clock = time.perf_counter()
                    logits[where] = self.logits(pixels)
                    seconds += (time.perf_counter() - clock) * bool(logits[where].isfinite().any())
            self._note_cost(len(self.images), seconds)
        self.clean_right = self._answers(logits) == self.labels
        return logits

    def _note_cost(self, images: int, seconds: float) -> None:
        """Keep and print what the clean images have cost a test-time defence, on average."""
        if not (self.defence and self.defence.on_logits and images):
            return
        self.cost = {"ms": round(1000 * seconds / images, 2)}
        self.cost |= {k: round(n / images, 2) for k, n in self.defence.passes.items()}
        print("* one image: " + ", ".join(f"{v:g} {k}" for k, v in self.cost.items()))

    # --- attacked ------------------------------------------------------------------------------

    def attack(self, spec: AttackSpec, *, seen: bool = False) -> dict:
        """Return an attack's entry, through the defence if ``seen``; call :meth:`clean` first."""
        spec = self.attacker.fitted(spec, seen)
        start, after = self._start(spec, seen)
        shared = self.victim.frozen_image_tower and not (self.defence or self.keep)
        if spec.target == "embedding" and shared:
            right, checks, seconds = self._score_bank(spec)
        else:
            right, checks, seconds = self._attack_parts(spec, seen, start)
        figures, warnings = self._probe(spec, right, seen)
        if self.attacker.random(seen) and spec.drop and self.attacker.decides(spec, seen):
            warnings.append(
                f"one_draw: {spec.name} stops at the first draw of a random model that errs, which "
                "is too early; believe apgd, or PGD with DEFENCE.EOT 10 or more"
            )
        figures |= {"cost": self.cost} if self.cost else {}
        warnings += no_gain(int(right.sum()), checks.get("again", {}))
        hidden = self._hidden(spec) if seen else None
        if hidden is not None:
            checks["alone"] = int(right.sum())
            warnings += defence_order(checks["alone"], int(hidden.sum()), len(right))
            right &= hidden
            after.append("the same attack on the model without its defence")
        self.outcomes.append((spec, seen, right))
        n, correct, clean = len(right), int(right.sum()), int(self.clean_right.sum())
        return {
            **self._describe(spec, seen),
            **({"after": "; ".join(sorted(after))} if after else {}),
            "n": n,
            "correct": correct,
            "seconds": round(seconds, 3),
            "checks": checks | figures,
            "warnings": verify(spec, checks, clean / n, correct / n) + warnings,
        }

    def _describe(self, spec: AttackSpec, seen: bool) -> dict:
        batch = {"batch": self._size(seen)} if spec.library else {}  # on which theirs depend
        return spec.describe() | batch | self.attacker.facts(spec, seen)

    def _start(self, spec: AttackSpec, seen: bool) -> tuple[torch.Tensor, list[str]]:
        """Return who (N,) is left for an attack, and in words the earlier ones that left them."""
        right, after, mine = self.clean_right.clone(), [], self._describe(spec, seen)
        for before, saw, outcome in self.outcomes:
            other = self._describe(before, saw)
            if starts_from(mine, other):
                right &= outcome
                after.append(in_words(other))
        return right, after

    def _hidden(self, spec: AttackSpec) -> torch.Tensor | None:
        """Return who (N,) is right on the images of the same attack, made without the defence."""
        for before, saw, outcome in self.outcomes:
            if not saw and replace(before, drop=False) == replace(spec, drop=False):
                return outcome
        return None

    def _probe(self, spec: AttackSpec, right: torch.Tensor, seen: bool) -> tuple[dict, list[str]]:
        """Ask the model what an attack on it cannot see; see ``attacks/probes.py``."""
        able = self.clean_right.nonzero().flatten().tolist()
        labelled = spec.objective in (None, *LABELLED) and spec.target == "end_to_end"
        whole = (seen or self.defence is None) and len(self.victim.classnames) > 1
        if not (labelled and whole and able and self.probes and spec.eps and spec.steps):
            return {}, []
        chosen = sorted({able[i * len(able) // self.probes] for i in range(self.probes)})
        where, pixels = next(self.pixels(chosen, "probes", len(chosen)))
        model, labels = self.attacker.forward(self.attacker.model, seen), self.labels[where]
        seeds, exact = self._seeds(where), self.defence is None
        if seen not in self._asked:
            self._asked[seen] = probe_model(model, pixels, labels, seeds, exact=exact)
        facts = {"random": self.attacker.random(seen)}
        figures = probe_attack(model, pixels, labels, spec, seeds, right[where], **facts)
        figures |= self._asked[seen]
        clean = len(right), int(self.clean_right.sum())
        return figures, judge(figures, clean, len(self.victim.classnames))

    # --- images that all prompts share ---------------------------------------------------------

    def _bank(self, spec: AttackSpec | None, title: str) -> Bank:
        return build_bank(
            self.victim.clip,
            self.images,
            spec=spec,
            seed=TEST_SEED,
            cache_dir=self.cache,
            batch_size=self.batch_size,
            title=title,
        )

    @torch.no_grad()
    def _bank_logits(self, bank: Bank) -> torch.Tensor:
        parts = bank.features.split(4096)  # read from the file in turn
        return torch.cat([self.victim.score(rows.to(self.device)) for rows in parts])  # (N, K)

    def _score_bank(self, spec: AttackSpec):
        """Score cached features: the attack saw no prompt, so all prompts share its images."""
        bank = self._bank(spec, f"{spec.target} attack")
        right = self._answers(self._bank_logits(bank)) == self.labels
        summary = {"attacked": len(right)} | bank.checks  # those of older banks do not have it
        return right & self.clean_right, summary, bank.seconds

    # --- images of this model alone --------------------------------------------------------------

    def _attack_parts(self, spec: AttackSpec, seen: bool, right: torch.Tensor):
        """Run an attack, or the parts of a composed one, each on what is still ``right`` (N,)."""
        total, seconds = AttackChecks(), 0.0
        if spec.name == "autoattack" and self.attacker.random(seen):
            print("note: AutoAttack's version for random models runs: apgd-ce and apgd-dlr")
            spec = replace(spec, name="apgd")
        parts, left = parts_of(spec, len(self.victim.classnames)), {}
        for part in parts:
            found = self._attack_images(part, right, seen, part is parts[-1])
            right[right.clone()] = torch.tensor(found.right, dtype=torch.bool, device=self.device)
            total.merge(AttackChecks(**found.checks))
            seconds += found.seconds
            left[part.name] = int(right.sum())
        return right, total.summary() | ({"left": left} if len(parts) > 1 else {}), seconds

    def _attack_images(self, spec: AttackSpec, right: torch.Tensor, seen: bool, ends: bool):
        """Attack the samples in ``right`` (N,); ``ends``: no later part takes what is left."""
        positions = right.nonzero().flatten().tolist()
        key = self._key(spec, seen, positions)
        progress = Progress(self.folder, key, len(positions))
        saved = self._saved(spec, seen, key)
        if saved and not saved.resume(progress.known()):
            progress.forget()
        size, last = self._size(seen), time.monotonic()
        sample = {positions[i]: i for i in progress.todo()}
        batches = self.pixels(list(sample), f"{spec.target} {spec.name}", size)
        try:
            for where, pixels in self.fitting.parts(batches, alone=not spec.library):
                with self.fitting:
                    result = self.run_attack(spec, where, pixels, seen=seen)
                    still = self.right_on(spec, result, where, seen=seen)
                    final = torch.full_like(still, ends) | ~still
                    again = self._right_again(result.images, where, final, seen)
                    if saved:
                        paths = [self.images.paths[i] for i in where]
                        saved.add(result.images, self.labels[where], still, paths)
                    progress.add([sample[i] for i in where], still.tolist(), result, pixels, again)
                if saved or time.monotonic() - last > SAVE_SECONDS:
                    progress.save()
                    last = time.monotonic()
        except Exception:  # the batches before it are done
            progress.save()
            raise
        return progress.finish()

    def clean_up(self) -> None:
        """Remove what a resumed evaluation needs, and images of an earlier one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self.keep.iterdir() if self.keep and self.keep.is_dir() else ():
            if folder not in self._kept:
                shutil.rmtree(folder, ignore_errors=True)

    def run_attack(
        self, spec: AttackSpec, where: list[int], pixels: torch.Tensor, *, seen: bool = False
    ) -> AttackResult:
        """Attack the images at positions ``where``; the starts depend on image content only."""
        return self.attacker.run(spec, pixels, self._seeds(where), self.labels[where], seen=seen)

    @torch.no_grad()
    def right_on(
        self, spec: AttackSpec, result: AttackResult, where: list[int], *, seen: bool = False
    ) -> torch.Tensor:
        """Return on which images (B,) of an attack's result the model counts as right."""
        right = self._answers(self.logits(result.images)) == self.labels[where]
        white_box = spec.target == "end_to_end" and self.attacker.exact(seen)
        if white_box and result.right is not None:  # judged in another batch: both count
            right &= result.right
        return right

    def examples(self, spec: AttackSpec, rows: int) -> dict:
        """Attack up to ``rows`` images that are right clean, evenly spread over the list.

        Returns the arguments of ``pictures.save_examples``, empty where no image is right.
        """
        able = self.clean_right.nonzero().flatten().tolist()
        rows = min(rows, len(able))
        if not rows:
            return {}
        chosen = [able[(2 * i + 1) * len(able) // (2 * rows)] for i in range(rows)]
        where, pixels = next(self.pixels(chosen, "picture", rows))
        part = parts_of(spec, len(self.victim.classnames))[0]  # of a composed attack, its first
        images = self.run_attack(part, where, pixels).images
        with torch.no_grad():
            before, after = (self.logits(x).softmax(1) for x in (pixels, images))
        return {
            "clean": pixels,
            "adversarial": images,
            "classnames": self.victim.classnames,
            "labels": self.labels[where],
            "before": before,
            "after": after,
            "spec": spec,
        }

    @torch.no_grad()
    def _right_again(self, images, where, final, seen: bool) -> dict[str, int]:
        """Count who is right by other answers of a test-time defence to adversarial images.

        To those made through it, fresh draws; to those made without it, its views' plain average.
        Images (B, 3, H, W) that are not ``final`` (B,) are left to the next part of the attack.
        """
        if not (self.defence and self.defence.on_logits):
            return {}
        right = self.attacker.fresh if seen else self.attacker.plain
        return {
            name: int(((logits.argmax(1) == self.labels[where]) & final).sum())
            for name, logits in right(images)
        }

    def _size(self, seen: bool = False) -> int:
        size = min(self.batch_size, CPU_BATCH if self.device.type == "cpu" else self.batch_size)
        return max(1, size // self.defence.copies) if self.defence and seen else size

    def _seeds(self, where: list[int]) -> list[int]:
        return [hash_seed(TEST_SEED, self.images.digest(i), 0) for i in where]

    def _saved(self, spec: AttackSpec, seen: bool, key: str) -> SavedImages | None:
        if self.keep is None:
            return None
        size = f"{spec.eps * 255:.4g}" if spec.eps else "no-ball"
        words = [spec.target, spec.name.replace(":", "-"), size, *(["seen"] if seen else [])]
        folder = self.keep / "_".join([*words, key[:8]])
        self._kept.append(folder)
        return SavedImages(folder, key, spec.describe())

    def _key(self, spec: AttackSpec, seen: bool, positions: list[int]) -> str:
        """Return a digest of everything an evaluation depends on: another one is not continued."""
        digests = self.images.digests()
        facts = {
            "attack": [spec.facts(), self._describe(spec, seen)],
            **({"defence": self.defence.describe()} if self.defence else {}),
            "victim": self.victim.digest(),
            "preprocess": self.images.preprocess.key,
            "images": [(digests[i], self.images.labels[i]) for i in positions],
        }
        return json_digest(facts)


def no_gain(right: int, again: dict) -> list[str]:
    """Warn where a test-time defence is right no more often than the average of its views."""
    plain = again.get("views averaged", -1)
    if right > plain:
        return []
    return [
        f"no_gain: {right} images are right, and {plain} if the same views are averaged without "
        "adaptation: what protects here is averaging"
    ]


def defence_order(alone: int, hidden: int, n: int) -> list[str]:
    """Warn where an attack through a defence leaves more than chance beyond the same one without.

    ``alone`` of ``n`` images are right under the attack through it, ``hidden`` under the other.
    """
    if not unlikely(alone - hidden, n, ORDER_SHARE):
        return []
    return [
        f"defence_order: {alone} of {n} are right under this attack through the defence, but only "
        f"{hidden} under the images it makes without: the gradient through the defence misleads "
        "it, so that the images of both are counted"
    ]
