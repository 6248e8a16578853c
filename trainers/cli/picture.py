"""Draw a run's saved examples again: clean | perturbation x10 | adversarial.

advprompt picture output/RUN --out picture.png
"""

import argparse

from ..evaluation import pictures
from ..records.examples import load_examples


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("advprompt picture", description=__doc__.partition("\n")[0])
    parser.add_argument("run", help=f"a run folder, or its {pictures.EXAMPLES}")
    parser.add_argument("--out", default=pictures.PICTURE, metavar="FILE")
    args = parser.parse_args(argv)
    print(f"wrote {pictures.save_grid(args.out, **load_examples(args.run))}")
