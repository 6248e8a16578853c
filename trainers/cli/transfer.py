"""Transfer between finished runs: images made against one, tested on all; nothing is trained.

    advprompt transfer output/shapes/{AdvCoOp,FAP,NAPTuning}/.../seed1 \\
        --attack-config-file configs/attacks/tiny_shapes.yaml

Rows: the run that the images were made against, end to end. Columns: the run that they are shown
to. A sample is robust if it is classified correctly both clean and attacked, so the diagonal is the
white-box robust accuracy. Every end-to-end attack of the file gets a table. The file of --out keeps
every finished row, from which an interrupted call resumes. All runs are in memory together.
"""

import argparse
import contextlib
import hashlib
import json
import sys
from pathlib import Path

import torch

from .. import records
from ..attacks import specs_from_cfg
from ..evaluation import transfer
from ..evaluation.evaluator import Evaluation
from ..evaluation.samples import ImageList
from ..evaluation.victim import TrainerVictim
from ..experiments.state import register_datasets
from ..report.transfer import FORMATS, SCHEMA, render
from ..utils.errors import UserError
from ..utils.io import read_json, writable_dir, write_json
from .robustness import ROOT, settings


def load(cfg, model_dir: str):
    """Return a finished run's trainer and the evaluation of its model on its test images."""
    from dassl.engine import build_trainer

    if cfg.DEFENCE.NAME:
        raise UserError(
            f"'{model_dir}' has the defence '{cfg.DEFENCE.NAME}' in front of its model; transfer "
            "compares bare models, so add --opts DEFENCE.NAME ''"
        )
    trainer = build_trainer(cfg)
    if trainer.trainable:
        trainer.load_model(model_dir)
    trainer.set_model_mode("eval")
    trainer.need_image_tower()
    return trainer, Evaluation(
        TrainerVictim(trainer),
        ImageList(trainer.dm.dataset.test, trainer.preprocess),
        folder=model_dir,  # nothing is written there
        cache=model_dir,
        batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
    )


def shared_facts(folders: list[str], jobs: list, tests: list[Evaluation]) -> dict:
    """Return what has to be the same in all runs; UserError naming the first two that differ."""
    facts = [
        {
            "data set": cfg.DATASET.NAME,
            "classes": list(test.victim.classnames),
            "test images": [Path(path).name for path in test.images.paths],
            "labels": test.images.labels,
            "contents of the images": test.images.digests(),
            "resolution": test.victim.clip.resolution,
            "preprocessing": test.images.preprocess.key,
        }
        for (cfg, _), test in zip(jobs, tests, strict=True)
    ]
    for folder, theirs in zip(folders[1:], facts[1:], strict=True):
        for what, value in theirs.items():
            if value != facts[0][what]:
                values = "" if isinstance(value, list) else f" ({facts[0][what]} and {value})"
                raise UserError(
                    f"'{folders[0]}' and '{folder}' differ in {what}{values}; transfer needs runs "
                    "of one data set, class split, test subset and resolution"
                )
    return facts[0]


def measure(folders: list[str], attack_file: str, root: str, opts: list[str], out: str) -> dict:
    """Measure every row that is not in ``out`` yet; each finished row is written there.

    UserError: fewer than two runs, runs that do not fit together, no end-to-end attack, or ``out``
    holds another matrix.
    """
    if len(folders) < 2 or len({Path(f).resolve() for f in folders}) < len(folders):
        raise UserError(
            f"transfer takes at least two different run folders, got {', '.join(folders)}"
        )
    register_datasets()
    jobs = [settings(folder, attack_file, root, opts)[:2] for folder in folders]
    specs = specs_from_cfg(jobs[0][0].ATTACK.TEST, key="ATTACK.TEST")
    specs = [spec for spec in specs if spec.target == "end_to_end"]
    if not specs:
        raise UserError(
            f"'{attack_file}' has no attack with target end_to_end, which transfer starts from; "
            "give one such as configs/attacks/linf1.yaml"
        )
    trainers, tests = zip(*(load(*job) for job in jobs), strict=True)
    facts = shared_facts(folders, jobs, tests)
    runs = [_run(*each) for each in zip(folders, jobs, trainers, strict=True)]
    record = _resume(out, _new(runs, jobs[0][0], tests[0].device, facts, specs))
    if record["status"] == "completed":
        print(f"skipped: {out} holds this matrix", file=sys.stderr)
        return record
    clean = torch.stack([transfer.clean_answers(test) for test in tests])  # (R, N)
    for run, right in zip(record["runs"], clean, strict=True):
        run["clean"] = {"n": len(right), "correct": int(right.sum())}
    names = [run["name"] for run in record["runs"]]
    for spec, table in zip(specs, record["tables"], strict=True):
        for i, name in enumerate(names):
            if table["rows"][i] is None:
                table["rows"][i] = transfer.make_row(i, tests, clean, spec, f"against {name}")
                write_json(out, record)
        table["warnings"] = transfer.order_warnings(names, table["rows"])
    record["status"] = "completed"
    write_json(out, record)
    return record


def _run(folder: str, job, trainer) -> dict:
    cfg, model_dir = job
    training = trainer.trained_as()
    return {
        "folder": str(folder),
        "model_dir": str(model_dir),
        "trainer": type(trainer).__name__,
        "shots": training["shots"],
        "seed": training.get("seed", cfg.SEED),
        "train_threat": training["train_threat"],
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "weights_sha256": trainer.clip.sha256,
        "prompts_sha256": trainer.prompt_digest(),
        "clean": None,
    }


def _new(runs: list[dict], cfg, device, facts: dict, specs) -> dict:
    for run, name in zip(runs, names_of(runs), strict=True):
        run["name"] = name
    return {
        "schema": SCHEMA,
        "kind": "transfer",
        "status": "running",
        "dataset": facts["data set"],
        "classes": len(facts["classes"]),
        "n": len(facts["labels"]),
        "images_sha256": hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        "subset": cfg.TEST.SUBSET or None,
        "first": cfg.TEST.FIRST or None,
        "runs": runs,
        "tables": [
            {"attack": spec.describe(), "rows": [None] * len(runs), "warnings": []}
            for spec in specs
        ],
        **records.environment(device),
    }


def names_of(runs: list[dict]) -> list[str]:
    """Name runs by trainer, and by shots, seed and folder where that is not enough."""
    names = [run["trainer"] for run in runs]
    for part in ("{shots} shots", "seed {seed}", "{folder}"):
        more = [part.format(**run).replace("-1 shots", "all shots") for run in runs]
        more = [text.replace("None shots", "unknown shots") for text in more]
        if len(set(names)) < len(names) and len(set(more)) > 1:
            names = [f"{name}, {m}" for name, m in zip(names, more, strict=True)]
    return names


def _identity(record: dict) -> list:
    keys = ("weights_sha256", "prompts_sha256", "trainer", "name")
    runs = [[run[key] for key in keys] for run in record["runs"]]
    threats = [table["attack"] for table in record["tables"]]
    return [record["schema"], record["images_sha256"], runs, threats]


def _resume(out: str, fresh: dict) -> dict:
    """Return the matrix in ``out`` if it is this one, otherwise the ``fresh`` one."""
    if not Path(out).is_file():
        writable_dir(Path(out).parent)
        return fresh
    stored = read_json(out)
    known = isinstance(stored, dict) and stored.get("kind") == "transfer"
    if not (known and stored.get("schema") == SCHEMA and _identity(stored) == _identity(fresh)):
        raise UserError(
            f"'{out}' holds another matrix (other runs, images or attacks); "
            "choose another --out or move it away"
        )
    return stored


def main(argv: list[str]) -> None:
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser("advprompt transfer", description=about)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    add("--attack-config-file", required=True, metavar="FILE", help="or a name, such as linf1")
    add("--root", default=ROOT, help="folder of the data sets (default: $DATA, else data)")
    add("--format", choices=FORMATS, default="terminal")
    add("--out", default="transfer.json", metavar="FILE", help="record, from which a call resumes")
    more = "overrides, such as TEST.SUBSET 500"
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help=more)
    args = parser.parse_args(argv)
    with contextlib.redirect_stdout(sys.stderr):  # what loading prints is not part of the table
        record = measure(args.runs, args.attack_config_file, args.root, args.opts, args.out)
    print(render(record, args.format))
