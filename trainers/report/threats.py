"""Threat models in words: the headings and captions of tables."""

from collections.abc import Iterable, Mapping

from ..records import attack_signature
from ..records.threats import ADAPTIVE, ALGORITHMS, NORMS, OBJECTIVES, TARGETS

MEANINGS = {
    "embedding": "transfer: made on the image embedding alone (AdvPT's threat model), "
    "the attack never saw the learned prompt",
    "end_to_end": "end-to-end: white box, the gradient passes through the learned prompt",
    "frozen_prompt": "frozen-prompt: made against the hand-made prompt, "
    "the attack never saw the learned one",
    "surrogate": "black-box: made on another model, the surrogate; the attack never queried the "
    "tested model",
}
# field -> how a heading states it where its name and value would not be clear
_DETAILS = {
    "restarts": "{} restarts",
    "start": "{} start",
    "norm": "{}",
    "prec": "gradients in {}",
    "name": "{}",
    "steps": "{} steps",
    "drop": "every iterate scored: {}",
}

_ROLES = {  # of an attack, in what a record says of the defence
    "unseen by the attack": "hidden",
    "seen by the attack": "adaptive",
    "its images on fresh draws": "adaptive, fresh draws",
}


def size(text: str) -> str:
    """Shorten ``2.6667/255`` to ``2.67/255``; ranges such as ``1..16/255`` stay as they are."""
    try:
        value = float(text.removesuffix("/255"))
    except ValueError:
        return text
    return f"{round(value, 2 if value >= 1 else 4):g}/255"


def threat_label(threat: Mapping) -> str:
    """Return a short name such as ``PGD-10 8/255 (embedding-KL)``.

    Cross entropy, the usual objective, is not named.
    """
    name = ALGORITHMS.get(threat["name"].lower(), threat["name"])
    if name == "PGD":
        name = f"PGD-{threat['steps']}" if threat["steps"] else "noise"
    elif threat["name"] in ADAPTIVE and threat["steps"] not in (100, 5000):  # AutoAttack's own
        name += f"-{threat['steps']}"
    label = f"{name} {size(threat['eps']) if threat['eps'] else 'without a ball'}"
    if threat["objective"] in (None, "ce") or not threat["steps"]:
        return label
    return f"{label} ({OBJECTIVES[threat['objective']]})"


def attack_headings(attacks: Iterable[Mapping]) -> list[str]:
    """Return one heading per test attack, such as ``transfer PGD-40 16/255 (embedding-KL)``.

    Headings that would be equal are extended by the fields in which their attacks differ.
    """
    attacks = [dict(attack_signature(a)) | {"label": _label(a)} for a in attacks]
    headings = []
    for attack in attacks:
        twins = [other for other in attacks if other["label"] == attack["label"]]
        differing = [
            _role(value, [twin.get(key, "") for twin in twins])
            if key == "defence"
            else _DETAILS.get(key, key + " {}").format(value)
            for key, value in attack.items()
            if any(twin.get(key) != value for twin in twins)
            and not (key == "after" and "without its defence" in value)
            and not (key == "drop" and attack["name"] in ADAPTIVE)  # the caption has it
        ]
        headings.append(", ".join([attack["label"], *differing]))
    return headings


def _role(defence: str, others: list[str]) -> str:
    """Return what an attack knew of the defence, and settings that similar attacks lack."""
    parts = defence.split(", ")
    role = next((words for words in _ROLES if words in parts), None)
    if role is None:
        return f"defence {defence}"
    alike = [theirs for other in others if role in (theirs := other.split(", "))]
    return ", ".join([_ROLES[role], *(p for p in parts if any(p not in a for a in alike))])


def _label(attack: Mapping) -> str:
    return f"{TARGETS[attack['target']]} {threat_label(attack)}"


def describe(threat: Mapping) -> str:
    norm = NORMS.get(threat["norm"], threat["norm"])
    restarts, objective = threat["restarts"], threat["objective"]
    scoring = "every iterate scored" if threat["drop"] else ""
    if threat["name"] in ADAPTIVE:
        left = "on the samples that the other attacks of the row have left"
        forms = {left: threat.get("after"), "form for random models": not threat["drop"]}
        scoring = ", ".join(words for words, applies in forms.items() if applies)
    parts = [
        f"{norm} ball" if threat["eps"] else f"no ball (it seeks the nearest in {norm})",
        f"eps {size(threat['eps'])}" if threat["eps"] else "",
        f"alpha {size(threat['alpha'])}" if threat["alpha"] else "",
        f"{threat['steps']} steps",
        f"{restarts} restart{'' if restarts == 1 else 's'}",
        f"{threat['start'].replace('_', '-')} start" if threat["start"] else "",
        f"objective {OBJECTIVES[objective]}" if objective else "",
        ", ".join(f"{key} {value}" for key, value in threat.get("kwargs", {}).items()),
        scoring,
        f"gradients in {threat['prec']}" if threat.get("prec") else "",
        f"defence {threat['defence']}" if threat.get("defence") else "",
    ]
    return ", ".join(filter(None, parts))
