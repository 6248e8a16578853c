"""Transfer between finished runs: images made against one, tested on all; nothing is trained.

    python -m advprompt transfer output/shapes/{AdvCoOp,FAP,NAPTuning}/.../seed1 \\
        --attack-config-file configs/attacks/tiny_shapes.yaml

Rows: the run that the images were made against, end to end. Columns: the run that they are shown
to. A sample counts that is right clean and right on the image, so the diagonal is the white-box
robust accuracy. Every end-to-end attack of the file gets a table of its own. The file of --out
keeps every finished row: what was killed goes on behind it. All runs are in memory together.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import time
from pathlib import Path

import torch

from .. import attacks
from .. import records as records_of
from ..evaluation import evaluator as evaluation
from ..report.transfer import FORMATS, SCHEMA, render
from ..utils import errors
from ..utils import io as files
from ..utils.entry import run_tool
from .robustness import register_datasets, settings

# --- the models ---------------------------------------------------------------------------------


def load(cfg, model_dir: str):
    """Return the evaluation of a finished run's model on its test images, and its trainer."""
    from dassl.engine import build_trainer

    if cfg.DEFENCE.NAME:
        raise errors.UserError(
            f"'{model_dir}' has the defence '{cfg.DEFENCE.NAME}' in front of its model; transfer "
            "compares bare models, so add --opts DEFENCE.NAME ''"
        )
    trainer = build_trainer(cfg)
    if trainer.trainable:
        trainer.load_model(model_dir)
    trainer.set_model_mode("eval")
    trainer.need_image_tower()
    nowhere = Path(cfg.OUTPUT_DIR)  # nothing is written there
    return evaluation.Evaluation(
        trainer,
        trainer.dm.dataset.test,
        folder=nowhere,
        cache=nowhere,
        batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
    )


def shared_facts(cfg, test) -> dict:
    """Return what has to be the same in all runs."""
    trainer = test.trainer
    return {
        "data set": cfg.DATASET.NAME,
        "classes": list(trainer.classnames),
        "test images": [Path(item.impath).name for item in test.items],
        "labels": test.labels.tolist(),
        "resolution": trainer.clip.resolution,
        "preprocessing": trainer.preprocess.key,
    }


def check_alike(folders: list[str], facts: list[dict]) -> None:
    """Refuse runs whose images cannot be shown to one another.

    Raises:
        UserError: naming the first two that differ, and in what.
    """
    for folder, theirs in zip(folders[1:], facts[1:], strict=True):
        for what, value in theirs.items():
            if value != facts[0][what]:
                values = "" if isinstance(value, list) else f" ({facts[0][what]} and {value})"
                raise errors.UserError(
                    f"'{folders[0]}' and '{folder}' differ in {what}{values}; transfer needs runs "
                    "of one data set, class split, test subset and resolution"
                )


# --- one row ------------------------------------------------------------------------------------


def attacked(test, spec, where: list[int], pixels: torch.Tensor, checks):
    """Attack all images of a batch; a composed attack's parts each take what is still right.

    Returns:
        images (B, 3, H, W), and whether the attacked model is right on them (B,).
    """
    images, labels = pixels.clone(), test.labels[where]
    alive = torch.ones(len(where), dtype=torch.bool, device=pixels.device)
    for part in attacks.parts_of(spec, len(test.texts)):
        rows = alive.nonzero().flatten()
        if not len(rows):
            break
        result = test.run_attack(part, [where[i] for i in rows.tolist()], pixels[rows])
        checks.add(result, pixels[rows])
        with torch.no_grad():
            right = test.logits(result.images).argmax(1) == labels[rows]
        images[rows] = result.images.to(images)
        alive[rows] = right if result.right is None else right & result.right
    return images, alive


def make_row(source: int, tests: list, clean: torch.Tensor, spec, title: str) -> dict:
    """Make images against one model and show them to all; ``clean`` (R, N) are right answers."""
    test, checks, clock = tests[source], attacks.AttackChecks(), time.perf_counter()
    correct = [0] * len(tests)
    size = test.batch_size
    for where, pixels in test.pixels(list(range(len(test.items))), title, size):
        images, alive = attacked(test, spec, where, pixels, checks)
        for i, other in enumerate(tests):
            right = alive  # as the run's own record counts it
            if i != source:
                with torch.no_grad():
                    right = other.logits(images).argmax(1) == other.labels[where]
            correct[i] += int((right & clean[i, where]).sum())
    summary, n = checks.summary(), len(test.items)
    shares = float(clean[source].float().mean()), correct[source] / n
    return {
        "correct": correct,
        "seconds": round(time.perf_counter() - clock, 3),
        "checks": summary,
        "warnings": attacks.verify(spec, summary, *shares),
    }


def answers(test) -> torch.Tensor:
    """Return which clean images (N,) a model gets right."""
    everything = list(range(len(test.items)))
    with torch.no_grad():
        found = [
            test.logits(x).argmax(1) == test.labels[w] for w, x in test.pixels(everything, "clean")
        ]
    return torch.cat(found)


# --- the whole matrix ---------------------------------------------------------------------------


def measure(folders: list[str], attack_file: str, root: str, opts: list[str], out: str) -> dict:
    """Measure every table that is not in ``out`` yet; each finished row is written there.

    Raises:
        UserError: fewer than two runs, runs that do not fit together, no end-to-end attack, or
            ``out`` holds another matrix.
    """
    if len(folders) < 2 or len({Path(f).resolve() for f in folders}) < len(folders):
        raise errors.UserError(
            f"transfer takes at least two different run folders, got {', '.join(folders)}"
        )
    register_datasets()
    jobs = [settings(folder, attack_file, root, opts) for folder in folders]
    specs = attacks.specs_from_cfg(jobs[0][0].ATTACK.TEST, key="ATTACK.TEST")
    specs = [spec for spec in specs if spec.target == "end_to_end"]
    if not specs:
        raise errors.UserError(
            f"'{attack_file}' has no attack with target end_to_end, which transfer starts from; "
            "give one such as configs/attacks/linf1.yaml"
        )
    tests = [load(*job) for job in jobs]
    facts = [shared_facts(cfg, test) for (cfg, _), test in zip(jobs, tests, strict=True)]
    check_alike(folders, facts)
    record = _resume(out, _new(folders, jobs, tests, facts[0], specs))
    if record["status"] == "completed":
        print(f"skipped: {out} holds this matrix", file=sys.stderr)
        return record
    clean = torch.stack([answers(test).cpu() for test in tests]).to(tests[0].device)  # (R, N)
    for run, right in zip(record["runs"], clean, strict=True):
        run["clean"] = {"n": len(right), "correct": int(right.sum())}
    for spec, table in zip(specs, record["tables"], strict=True):
        for i, run in enumerate(record["runs"]):
            if table["rows"][i] is None:
                table["rows"][i] = make_row(i, tests, clean, spec, f"against {run['name']}")
                files.write_json(out, record)
        table["warnings"] = _order(record["runs"], table["rows"])
    record["status"] = "completed"
    files.write_json(out, record)
    return record


def _new(folders, jobs, tests, facts: dict, specs) -> dict:
    described = []
    for folder, (cfg, model_dir), test in zip(folders, jobs, tests, strict=True):
        training = test.trainer.training_facts() | test.trainer.origin
        described.append(
            {
                "folder": str(folder),
                "model_dir": str(model_dir),
                "trainer": type(test.trainer).__name__,
                "shots": training["shots"],
                "seed": cfg.SEED,
                "train_threat": training["train_threat"],
                "backbone": cfg.MODEL.BACKBONE.NAME,
                "weights_sha256": test.trainer.clip.sha256,
                "prompts_sha256": test.trainer.prompt_digest(),
                "clean": None,
            }
        )
    for run, name in zip(described, names_of(described), strict=True):
        run["name"] = name
    return {
        "schema": SCHEMA,
        "kind": "transfer",
        "status": "running",
        "dataset": facts["data set"],
        "classes": len(facts["classes"]),
        "n": len(facts["labels"]),
        "images_sha256": hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        "subset": jobs[0][0].TEST.SUBSET or None,
        "first": jobs[0][0].TEST.FIRST or None,
        "runs": described,
        "tables": [
            {"attack": spec.describe(), "rows": [None] * len(tests), "warnings": []}
            for spec in specs
        ],
        **records_of.environment(tests[0].device),
    }


def names_of(described: list[dict]) -> list[str]:
    """Name runs by trainer, and by shots, seed and folder where that is not enough."""
    parts = (
        lambda r: r["trainer"],
        lambda r: f"{r['shots'] if r['shots'] >= 0 else 'all'} shots",
        lambda r: f"seed {r['seed']}",
        lambda r: r["folder"],
    )
    names = [""] * len(described)
    for part in parts:
        more = [part(run) for run in described]
        if part is parts[0] or (len(set(names)) < len(names) and len(set(more)) > 1):
            names = [f"{n}, {m}" if n else m for n, m in zip(names, more, strict=True)]
    return names


def _identity(record: dict) -> str:
    runs_ = [
        [run[key] for key in ("weights_sha256", "prompts_sha256", "trainer", "name")]
        for run in record["runs"]
    ]
    threats = [table["attack"] for table in record["tables"]]
    return json.dumps([record["schema"], record["images_sha256"], runs_, threats], sort_keys=True)


def _resume(out: str, fresh: dict) -> dict:
    """Return the matrix in ``out`` where it is this one, else the ``fresh`` one."""
    if not Path(out).is_file():
        files.writable_dir(Path(out).parent)
        return fresh
    stored = files.read_json(out)
    known = isinstance(stored, dict) and stored.get("kind") == "transfer"
    if not (known and stored.get("schema") == SCHEMA and _identity(stored) == _identity(fresh)):
        raise errors.UserError(
            f"'{out}' holds something else than this matrix (other runs, images or attacks); "
            "choose another --out or move it away"
        )
    return stored


def _order(runs_: list[dict], rows: list[dict]) -> list[str]:
    """Warn where images made against another run are worse for one than its own white box."""
    warnings = []
    for j, tested in enumerate(runs_):
        own = rows[j]["correct"][j]
        for i, made in enumerate(runs_):
            if rows[i]["correct"][j] < own:
                warnings.append(
                    f"transfer_order: {tested['name']} gets {rows[i]['correct'][j]} right on "
                    f"images made against {made['name']}, but {own} on those made against itself: "
                    "its gradients may be masked, or the attack is too short"
                )
    return warnings


# --- the command ----------------------------------------------------------------------------------


def main(argv: list[str]) -> None:
    """Parse the command line, measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(prog="transfer", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--attack-config-file", required=True, metavar="FILE")
    parser.add_argument("--root", default="data", help="folder of the data sets (default: data)")
    parser.add_argument("--format", choices=FORMATS, default="terminal")
    parser.add_argument(
        "--out",
        default="transfer.json",
        metavar="FILE",
        help="record, and what a killed call goes on from",
    )
    parser.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="overrides, such as TEST.SUBSET 500",
    )
    args = parser.parse_args(argv)
    with contextlib.redirect_stdout(sys.stderr):  # what loading tells is no part of the table
        record = measure(args.runs, args.attack_config_file, args.root, args.opts, args.out)
    print(render(record, args.format))


if __name__ == "__main__":
    sys.exit(run_tool(main))
