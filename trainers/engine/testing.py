"""The test of a trainer's model: clean and robust accuracy, the record, and a picture."""

import time

import torch

from .. import records
from ..attacks import compare, specs_from_cfg
from ..config import identity
from ..defences import build_defence
from ..evaluation.evaluator import Evaluation
from ..evaluation.samples import ImageList
from ..evaluation.victim import TrainerVictim
from ..testtime import with_testtime
from ..utils.io import write_json
from . import run_folder
from .data import MODEL_FILE


def evaluation_of(trainer, split: str) -> Evaluation:
    """Return the evaluation of a trainer's model on its ``val`` or ``test`` images."""
    victim, val, folder = TrainerVictim(trainer), split == "val", trainer.record_dir
    items = trainer.dm.dataset.val if val else trainer.test_images
    images, bank = ImageList(items, trainer.preprocess), trainer.bank_folder()
    return evaluation_on(victim, images, trainer.cfg, folder, bank, defended=not val)


def evaluation_on(victim, images, cfg, folder, cache, *, defended: bool = True) -> Evaluation:
    """Return the evaluation of a victim as ``cfg`` says, in the ``folder`` of its record."""
    images.pinned = cfg.DATALOADER.TEST.PIN_MEMORY
    return Evaluation(
        victim,
        images,
        folder=folder / run_folder.UNFINISHED,
        cache=cache,
        batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
        probes=cfg.TEST.PROBES,
        defence=with_testtime(cfg, victim, build_defence(cfg)) if defended else None,
        eot=cfg.DEFENCE.EOT,
        keep=folder / "adversarial" if cfg.TEST.SAVE_ADV else None,
    )


def test_model(trainer, split: str) -> float:
    """Write the record of all attacks; return clean accuracy in percent, as Dassl's trainers do.

    ``split`` ``val`` measures clean accuracy alone; without validation images it is ``test``.
    """
    trainer.set_model_mode("eval")
    if split == "val" and not trainer.dm.dataset.val:
        split = "test"
    if split != "val" or not trainer.tuning:
        trainer.need_image_tower()
    evaluation = evaluation_of(trainer, split)
    print(f"Evaluate on the *{split}* set")
    files = trainer.data.files  # before they are read: what changes later is noticed
    clock = time.perf_counter()
    clean = _clean_accuracy(trainer, evaluation, split)
    if split == "val":
        return clean
    trainer.data.test.share(evaluation.images)
    data = record_of(trainer, evaluation.clean_right, [])  # refuses before the work, not after
    data = {"data_sha256": data["data_sha256"], "files_sha256": files}
    write_json(trainer.record_dir / MODEL_FILE, trainer.checkpoint_facts() | data)
    attacks = run_attacks(trainer.cfg, evaluation)
    trainer.seconds["eval"] = round(time.perf_counter() - clock, 3)
    record = record_of(trainer, evaluation.clean_right, attacks)
    title = f"{type(trainer).__name__}, {trainer.data.name}, {trainer.cfg.MODEL.BACKBONE.NAME}"
    finish(evaluation, trainer.cfg, trainer.record_dir, record, title)
    return clean


def finish(evaluation: Evaluation, cfg, folder, record: dict, title: str) -> None:
    """Write a record, remove what an interrupted test needs, and draw the picture.

    The record comes first: whatever fails after it loses nothing, and before it a test resumes.
    """
    print(f"* record: {records.write_record(folder, record)}")
    try:
        evaluation.clean_up()  # the record holds it all now
        _picture(cfg, evaluation, folder, title)
    except Exception as error:  # a decoration; the result is safe
        print(f"note: no picture of the attack was drawn ({error})")


def _clean_accuracy(trainer, evaluation: Evaluation, split: str) -> float:
    logits = evaluation.clean()
    try:
        trainer.evaluator.reset()
        trainer.evaluator.process(logits, evaluation.labels)
        results = trainer.evaluator.evaluate()
    except Exception as error:
        if split == "val":  # its figure chooses the model
            raise
        print(f"note: the evaluator's figures are missing ({error})")
        results = {"accuracy": 100 * evaluation.clean_right.float().mean().item()}
    for name, value in results.items():
        trainer.write_scalar(f"test/{name}", value, trainer.epoch)
    return next(iter(results.values()))


def run_attacks(cfg, evaluation: Evaluation) -> list[dict]:
    """Run every test attack, without and through the defence as ``DEFENCE.ADAPTIVE`` says."""
    attacks, done = [], []
    views = {"none": [False], "bpda": [True]}.get(cfg.DEFENCE.ADAPTIVE, [False, True])
    views = views if evaluation.defence else [False]
    specs = specs_from_cfg(cfg.ATTACK.TEST, key="ATTACK.TEST")
    for spec, seen in ((spec, seen) for seen in views for spec in specs):
        spec = evaluation.attacker.fitted(spec, seen)
        if (spec, seen) in done:
            print(f"note: this {spec.name} is the same attack on this model as another, done once")
            continue
        done.append((spec, seen))
        if seen and not evaluation.attacker.through(spec):
            print(f"note: {spec.target} {spec.name} cannot go through a test-time defence")
            continue
        entry = evaluation.attack(spec, seen=seen)
        attacks += [entry, *on_fresh_draws(entry)]
        how = "" if spec.adaptive or spec.library else f"-{spec.steps} ({spec.objective})"
        how += f" [{entry['defence']}]" if evaluation.defence else ""
        print(
            f"* {spec.target} {spec.name}{how} {entry['eps'] or 'no ball'}: robust accuracy "
            f"{records.accuracy(entry):.1f}% in {entry['seconds']:.0f} s"
        )
        for warning in entry["warnings"]:
            print(f"  warning: {warning}")
    attacked = [entry for entry in attacks if "fresh draws" not in entry.get("defence", "")]
    try:
        found = compare(attacked)
    except Exception as error:  # a check that fails is one more warning
        found = {len(attacked) - 1: [f"compare: the attacks could not be compared ({error})"]}
    for i, warnings in found.items():
        attacked[i]["warnings"] += warnings
        print("".join(f"  warning: {warning}\n" for warning in warnings), end="")
    return attacks


def on_fresh_draws(entry: dict) -> list[dict]:
    """Return the entry for the images of an attack through a random defence, on fresh draws.

    Their mean counts, rounded down; ``checks.again`` has them all.
    """
    draws = [v for k, v in entry["checks"].get("again", {}).items() if k.startswith("draw")]
    if not draws:
        return []
    how = entry["defence"].replace("seen by the attack", "its images on fresh draws")
    more = {"defence": how, "correct": sum(draws) // len(draws), "seconds": 0}
    print(f"  its images on fresh draws: right {draws} of {entry['n']}")
    return [entry | more | {"warnings": []}]


def record_of(trainer, right: torch.Tensor, attacks: list[dict]) -> dict:
    """Return the record of a test: who (N,) is right clean, and the entries of its attacks."""
    cfg = trainer.cfg
    training = trainer.trained_as()
    # under one path, MODEL.INIT_WEIGHTS may have been another file
    sha256 = training.get("init_sha256")
    start = {"MODEL.INIT_WEIGHTS_SHA256": sha256} if sha256 else trainer.released
    config = records.flat_config(cfg)
    if trainer.released:  # the settings of this call are not those of the training
        config = identity.of_test(config)
    which = cfg.DATASET.SUBSAMPLE_CLASSES
    protocol = cfg.TEST.PROTOCOL or (
        "base2new" if which != "all" else "few_shot" if trainer.trainable else "zero_shot"
    )
    return records.new_record(
        trainer=type(trainer).__name__,
        paper=trainer.paper,
        dataset=cfg.DATASET.NAME,
        source=training.get("dataset"),
        protocol=protocol,
        split=which,
        shots=training["shots"],
        seed=training.get("seed", cfg.SEED),  # older checkpoints do not say it
        backbone=cfg.MODEL.BACKBONE.NAME,
        weights_sha256=trainer.clip.sha256,
        prompt_parameters=trainer.prompt_parameters(),
        prompts_sha256=trainer.prompt_digest() if trainer.trainable else None,
        data_sha256=trainer.data.digest,
        set_sha256=trainer.data.set_sha256,
        trained=training.get("data"),
        classes=len(trainer.classnames),
        train_threat=training["train_threat"],
        epochs=training["epochs"],
        # a smaller set is whole
        subset=cfg.TEST.SUBSET if cfg.TEST.SUBSET == len(right) else None,
        seconds={k: round(v, 3) for k, v in trainer.seconds.items()},
        clean={"n": len(right), "correct": int(right.sum())},
        attacks=attacks,
        config=config | start,
        status="completed",
        device=trainer.device,
    )


def _picture(cfg, evaluation: Evaluation, folder, title: str) -> None:
    """Draw the first attack through the model on a few images that are right clean."""
    specs = specs_from_cfg(cfg.ATTACK.TEST, key="ATTACK.TEST")
    spec = next((spec for spec in specs if spec.target == "end_to_end"), None)
    if not (spec and cfg.TEST.PICTURE):
        return
    from ..evaluation.pictures import save_examples  # matplotlib is slow to import

    if examples := evaluation.examples(spec, cfg.TEST.PICTURE):
        print(f"* picture: {save_examples(folder, **examples, title=title)}")
