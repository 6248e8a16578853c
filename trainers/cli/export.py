"""Write what a run learned, with a card that describes it: an entry of a prompt zoo.

    python -m advprompt export output/eurosat/NAPTuning/tiny/seed1 --out zoo/naptuning_eurosat

The folder holds the learned prompts, projections and refiners (of a fine-tuned image tower: that
tower) as safetensors and the card as JSON and markdown. `advprompt.load(FOLDER)` makes a
classifier of it, MODEL.INIT_WEIGHTS starts a training from it. The backbone is not included.
"""

import argparse
import re
from pathlib import Path

from .. import records
from ..engine import exports
from ..engine.learned import learned_by
from ..report.threats import MEANINGS, attack_headings, describe, threat_label
from ..utils.machine import environment

UNSTATED = "not stated"


def export(args: argparse.Namespace) -> tuple[Path, bool, dict]:
    """Write an export; return its folder, whether it is new, and its card.

    UserError: no run, an unfinished one, missing values or backbone, or another export there.
    """
    learned = learned_by(args.run, epoch=args.epoch, unfinished=args.unfinished, root=args.root)
    card, record = learned.card(), learned.record
    made, threat = record or environment(), card["training"]["threat"]
    words = f"{threat_label(threat)}: {describe(threat)}" if threat else None
    card["training"]["threat_in_words"] = words
    card |= {
        "figures": figures(record) if record and learned.measured else None,
        "versions": made["versions"],
        "git_commit": made["git_commit"],
        "licence": args.licence,
    }
    out = Path(args.out) if args.out else Path("zoo", default_name(card))
    return out, exports.write_export(out, learned.tensors, card, page(card, out)), card


def figures(record: dict) -> dict:
    """Return every figure of a record, each attack in words."""
    described = exports.portable(record["attacks"])  # surrogates and defences may be files
    attacks = [
        attack
        | {
            "accuracy": round(records.accuracy(attack), 2),
            "heading": heading,
            "in_words": f"{describe(attack)}; {MEANINGS[attack['target']]}",
        }
        for attack, heading in zip(described, attack_headings(described), strict=True)
    ]
    same = ("dataset", "protocol", "split", "subset", "seed", "device", "created")
    digests = {key: record.get(key) for key in ("prompts_sha256", "data_sha256")}
    clean = record["clean"] | {"accuracy": round(records.accuracy(record["clean"]), 2)}
    first = record["config"].get("TEST.FIRST") or None
    found = {key: record[key] for key in same} | digests
    return found | {"first": first, "clean": clean, "attacks": attacks}


def default_name(card: dict) -> str:
    """Return a folder name such as ``naptuning_eurosat_tiny_16shots_seed1``."""
    data, training = card["data"], card["training"]
    backbone = re.sub("^(file|open_clip):", "", card["backbone"]["name"].partition("?")[0])
    shots = {0: "zeroshot", -1: "all", None: "unknown"}
    shots = shots.get(training["shots"], f"{training['shots']}shots")
    words = [card["method"]["trainer"], data["name"], data["split"].replace("all", "")]
    words += [Path(backbone.replace("/", "-")).stem, shots, f"seed{training['seed']}"]
    return re.sub(r"[^\w.-]", "-", "_".join(filter(None, words)).lower())


def page(card: dict, folder: Path) -> str:
    """Return the card in markdown."""
    from jinja2 import Environment, StrictUndefined

    layout = {"trim_blocks": True, "keep_trailing_newline": True}
    environment = Environment(undefined=StrictUndefined, **layout)
    environment.filters["cell"] = lambda text: text.replace("|", "\\|").replace("\n", " ")
    path = folder.name if folder.is_absolute() else folder.as_posix()
    found = card["figures"]
    images = records.test_images(found["subset"], found["first"]) if found else ""
    text = Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(card, path=path, images=images)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("advprompt export", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("run", help="folder of a finished run")
    add("--out", metavar="FOLDER", help="default: zoo/ and what the run is")
    add("--epoch", type=int, help="epoch to export (default: best, else newest)")
    add("--licence", default=UNSTATED, metavar="TEXT", help="licence of the prompts")
    add("--unfinished", action="store_true", help="also a run without a record")
    root = "folder of the data sets: of a run that did not keep its classes (older versions)"
    add("--root", help=root)
    out, written, card = export(parser.parse_args(argv))
    print(f"{'wrote' if written else 'unchanged:'} {out} ({card['prompts']['values']:,} values)")
    if written and card["licence"] == UNSTATED:
        print("note: the card states no licence; add --licence TEXT to give the prompts one")
