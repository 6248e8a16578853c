"""Make the table of docs/hosts.md: ``python -m tests.hosts.table FILE``, see test_roads.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HEAD = "| host | commit | Dassl | road | its own trainers | ours | besides | undone | seconds |"
OURS = ("AdvPT", "NAPTuning", "CAPT", "APD")
CLIPS = {"random": "random CLIP", "random-224": "random CLIP", "tiny": "`tiny`"}


def row(trip: dict) -> str:
    """Return a line of the table; a run that did not end well is struck out."""
    runs = trip["runs"]

    def shown(name, text):
        return text if runs[name][0] == 0 else f"~~{text}~~"

    own, ours, besides = [], {}, []
    for name in runs:
        first, *rest = name.split("-", 2)
        if first == "own":
            trainer, weights = rest
            own.append(shown(name, f"{trainer} ({CLIPS[weights]})"))
        elif first in OURS:
            ours.setdefault(CLIPS["-".join(rest)], []).append(shown(name, first))
        else:
            besides.append(shown(name, name))
    if len(set(map(tuple, ours.values()))) == 1:  # the same on both
        ours = {" and ".join(ours): next(iter(ours.values()))}
    both = "; ".join(f"{', '.join(names)} ({clip})" for clip, names in ours.items())
    cells = [
        trip["host"],
        trip["commit"],
        trip["origins"]["version"],
        trip["road"],
        ", ".join(own),
        both,
        ", ".join(besides),
        "yes" if not trip["left"] else "no",
        f"{trip['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(file: str) -> None:
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    trips = {(t["host"], t["road"]): t for t in map(json.loads, lines)}  # the newest of each
    print(HEAD, "|---" * HEAD.count(" |") + "|", *map(row, trips.values()), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1])
