"""Test a trained model under attack: a trainer of ours, or any trainer of the fork around us."""

import argparse
import re
from pathlib import Path

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from torch.utils.data import DataLoader, Subset

from ..backbone.loading import digest_of_name
from ..config import host, keys, merging
from ..engine import hosts
from ..engine.data import Data
from ..engine.evaluate import Images, measure
from ..evaluation.host import HostVictim, own_answers, own_preprocess
from ..evaluation.samples import ImageList
from ..utils.errors import UserError, nearest
from ..utils.io import sha256_file
from .train import main as train

GROUPS = ("ATTACK", "DEFENCE", "TESTTIME")  # ours, which a fork may have for something else
OURS = host.TESTS + tuple(f"TEST.{k}" for k in ("SUBSET", "FIRST", "PROBES", "PICTURE", "SAVE_ADV"))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="advprompt test",
        description="Test a trained model under attack. All other arguments are those of the "
        "fork's train.py, as in its own --eval-only, with KEY VALUE pairs at the end.",
        allow_abbrev=False,
    )
    p.add_argument("--trainer", required=True, help="its name, ours or the fork's")
    p.add_argument("--model-dir", default="", help="run folder to load the model from")
    p.add_argument("--load-epoch", type=int, help="epoch to load (default: as the trainer does)")
    p.add_argument("--threat", default="linf1_aa", help="threat model: a name, or a yaml file")
    p.add_argument("--output-dir", default="", help="of the record (default: MODEL_DIR/tests/...)")
    p.add_argument("--dry-run", action="store_true", help="say what would be done")
    return p


def main(argv: list[str]) -> int:
    args, words = parser().parse_known_args(argv)
    if args.model_dir and not Path(args.model_dir).is_dir():
        raise UserError(
            f"--model-dir '{args.model_dir}' does not exist; give the folder that the run was "
            "trained into (its --output-dir)"
        )
    script = host.join()
    known = TRAINER_REGISTRY.registered_names()
    if args.trainer not in known:
        place = "" if script else " Start in the folder of your fork to test its own trainers."
        raise UserError(
            f"trainer {args.trainer!r} (--trainer) is unknown.{nearest(args.trainer, known)}{place}"
        )
    if TRAINER_REGISTRY.get(args.trainer) is keys.method_called(args.trainer):
        return train(_as_train(args, words))
    if script is None:
        raise UserError(f"trainer {args.trainer!r} is not ours; start in the folder of its fork")
    return _test(args, words, script)


def _as_train(args, words: list[str]) -> list[str]:
    """Return the arguments of ``advprompt train`` for the same test of our trainer."""
    given = ["--eval-only", "--trainer", args.trainer, "--model-dir", args.model_dir]
    given += ["--test-attack-config-file", args.threat, *["--dry-run"] * args.dry_run]
    given += ["--output-dir", args.output_dir] if args.output_dir else []
    given += ["--load-epoch", str(args.load_epoch)] if args.load_epoch is not None else []
    return given + words


def _test(args, words: list[str], script) -> int:
    """Test the fork's own trainer."""
    words, pairs = _split(words)
    epoch = "" if args.load_epoch is None else f"-epoch{args.load_epoch}"
    if not (args.output_dir or args.model_dir):
        raise UserError("--model-dir is missing; give the folder of the trained run to test")
    name = f"{Path(args.threat).stem}{epoch}"
    folder = Path(args.output_dir or Path(args.model_dir) / "tests" / name)
    words = ["--trainer", args.trainer, "--eval-only", "--output-dir", str(folder), *words]
    words = ["--model-dir", args.model_dir, *words] if args.model_dir else words
    words = ["--load-epoch", str(args.load_epoch), *words] if epoch else words
    if args.dry_run:
        print(f"run  {folder}\n\nloads by: train.py {' '.join(words)}\nattacks by: {args.threat}")
        return 0
    trainer, read = hosts.load(script, words)
    places = {Path(p).resolve() for p in (args.model_dir, trainer.cfg.MODEL.INIT_WEIGHTS) if p}
    files = {f: e for f, e in read.items() if places & {f.resolve(), *f.resolve().parents}}
    if trainer.get_model_names() and not files:
        raise UserError(
            f"'{args.model_dir}' gave {args.trainer} no checkpoint, so that an untrained model "
            "would be tested; give --model-dir and --load-epoch as its --eval-only takes them"
        )
    cfg, given, loader = _inputs(trainer, args.threat, pairs)
    facts = _facts(trainer, args, files)  # before all parameters are frozen
    predicted = own_answers(trainer, loader)
    victim = HostVictim(trainer)
    victim.classnames = given.classnames
    cfg.HOST.update(facts.pop("host"))
    try:
        measure(victim, given, cfg, folder, predicted=predicted, **facts)
    finally:
        victim.memo.stop()
    return 0


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the host's arguments, and the KEY VALUE pairs of ours among them."""
    theirs, ours, rest = [], [], iter(words)
    for word in rest:
        if not word.startswith(OURS):
            theirs.append(word)
        elif (value := next(rest, None)) is None:
            raise UserError(f"overrides come in pairs KEY VALUE, but '{word}' stands alone")
        else:
            ours += [word, value]
    return theirs, ours


def _inputs(trainer, threat: str, pairs: list[str]):
    """Return the configuration of the test, its images, and the same for the host's own test."""
    own = get_cfg_default()
    keys.extend_cfg(own)
    merging.merge_file(own, threat, "attacks")
    merging.merge_opts(own, pairs)
    keys.check_cfg(own)
    cfg = trainer.cfg.clone()  # the host's settings, and ours of the test
    cfg.defrost()
    cfg.HOST = type(cfg)({name: cfg.pop(name) for name in GROUPS if name in cfg})
    keys.extend_cfg(cfg)
    cfg.TEST, cfg.ATTACK.TEST = own.TEST, own.ATTACK.TEST
    cfg.DEFENCE, cfg.TESTTIME = own.DEFENCE, own.TESTTIME
    dataset = trainer.dm.dataset
    data = Data(dataset, cfg)
    names = {item.label: item.classname for item in dataset.test}
    classnames = list(dataset.classnames)
    if any(classnames[label] != name for label, name in names.items()):
        classnames = [names[label] for label in sorted(names)]  # of the test images alone
    wanted, loader = {str(item.impath) for item in data.items}, trainer.test_loader
    places = [i for i, item in enumerate(dataset.test) if str(item.impath) in wanted]
    images = ImageList([dataset.test[i] for i in places], own_preprocess(trainer))
    theirs = DataLoader(
        Subset(loader.dataset, places), cfg.DATALOADER.TEST.BATCH_SIZE, collate_fn=loader.collate_fn
    )
    return cfg, Images(images, classnames, cfg.DATASET.NAME, data.set_sha256), theirs


def _facts(trainer, args, files: dict[Path, int | None]) -> dict:
    """Return what the record says of the model: nothing about training that its run does not."""
    log = Path(args.model_dir, "log.txt") if args.model_dir else Path()
    text = log.read_text("utf-8", "replace") if log.is_file() else ""
    said = {}
    for name, key in (("shots", "  NUM_SHOTS"), ("seed", "SEED")):
        if found := re.search(rf"^{key}: (\d+)\s*$", text, re.MULTILINE):
            said[name] = int(found[1])
    epochs = [epoch for epoch in files.values() if epoch is not None]
    if epochs and "shots" in said:
        said["epochs"] = epochs[0]
    elif "shots" in said:
        del said["shots"]
    prompts = sum(
        p.numel() for name in trainer.get_model_names() for p in hosts.trained(trainer, name)
    )
    trained, name = bool(trainer.get_model_names()), trainer.cfg.MODEL.BACKBONE.NAME
    which = trainer.cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
    return said | {
        **({"backbone": name, "weights_sha256": digest_of_name(name)} if name else {}),
        "prompt_parameters": prompts,
        "split": which if which in ("base", "new") else "all",
        "protocol": "few_shot" if trained else "zero_shot",
        "host": {
            "TRAINER": type(trainer).__module__ + "." + args.trainer,
            "COMMIT": hosts.commit_of(host.folder()) or "unknown",
            "CHECKPOINTS": {f"{f.parent.name}/{f.name}": sha256_file(f) for f in files},
        },
    }
