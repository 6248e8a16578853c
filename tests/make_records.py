"""Valid records for the tests of records and tables."""

from pathlib import Path

from advprompt import records

TRANSFER = {
    "name": "pgd",
    "objective": "embedding_kl",
    "target": "embedding",
    "eps": "16/255",
    "alpha": "2/255",
    "steps": 40,
    "restarts": 1,
    "start": "uniform",
    "norm": "linf",
    "drop": False,
}
WHITE_BOX = TRANSFER | {"objective": "ce", "target": "end_to_end", "steps": 100}
WHITE_BOX |= {"eps": "1/255", "alpha": "1/255"}
BANK = TRANSFER | {"eps": "8/255", "steps": 10}


def outcome(correct, n=100, **changes):
    """The part of an attack's entry that the evaluation adds."""
    checks = {"max_linf": 0.0039, "in_range": True, "zero_grad_share": 0.0, "loss_rises": True}
    return {"n": n, "correct": correct, "seconds": 1.5, "checks": checks, "warnings": []} | changes


def make(clean=80, transfer=40, white_box=30, n=100, **changes):
    """A completed AdvPT record, unless ``changes`` say otherwise."""
    fields = {
        "trainer": "AdvPT",
        "paper": "https://arxiv.org/abs/2311.11261",
        "dataset": "EuroSAT",
        "protocol": "few_shot",
        "shots": 16,
        "seed": 1,
        "backbone": "tiny",
        "classes": 10,
        "weights_sha256": "ab" * 32,
        "prompt_parameters": 4096,
        "epochs": 50,
        "config": {"OPTIM": {"LR": 0.002}, "SEED": 1},
        "train_threat": BANK,
        "status": "completed",
        "clean": clean if clean is None else {"n": n, "correct": clean},
        "attacks": [TRANSFER | outcome(transfer, n), WHITE_BOX | outcome(white_box, n)],
    }
    return records.new_record(**fields | changes)


def zero_shot(**changes):
    """A completed zero-shot record of the same setting."""
    fields = {"trainer": "ZeroshotCLIP", "protocol": "zero_shot", "train_threat": None}
    fields |= dict.fromkeys(("shots", "epochs", "prompt_parameters"), 0)
    return make(**fields | changes)


def sha(letter):
    """A digest, such as of prompts or data."""
    return letter * 64


UNKNOWN = {"shots": None, "epochs": None, "train_threat": None, "seed": -1}  # training


def trained(split="all", of="d", name="EuroSAT"):
    """What a record says of the data that its model was trained on."""
    data = {"name": name, "split": split, "classes": 5, "data_sha256": sha("e")}
    return {"trained": data | {"set_sha256": sha(of)}, "source": "EuroSAT", "set_sha256": sha("d")}


def listed(*made):
    """Records by path, as the report finds them."""
    return {Path(f"run{i}/record.json"): record for i, record in enumerate(made)}


def write(folder, *made):
    """Write records into run folders; return the folder as text."""
    for i, record in enumerate(made):
        records.write_record(folder / f"run{i}", record)
    return str(folder)
