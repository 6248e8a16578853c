"""Draw a run's saved examples again: clean | perturbation x10 | adversarial.

advprompt picture output/RUN --rows 3 --out picture.png
"""

import argparse

from ..evaluation import pictures
from ..records.examples import load_examples
from ..utils import errors

_PER_IMAGE = ("clean", "adversarial", "labels", "before", "after")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("advprompt picture", description=__doc__.partition("\n")[0])
    parser.add_argument("run", help=f"a run folder, or its {pictures.EXAMPLES}")
    parser.add_argument("--rows", type=int, help="only the first ROWS images (default: all)")
    parser.add_argument("--out", default=pictures.PICTURE, metavar="FILE")
    args = parser.parse_args(argv)
    examples = load_examples(args.run)
    if args.rows is not None:
        if args.rows < 1:
            raise errors.UserError(f"--rows is {args.rows}, expected at least 1")
        examples |= {key: examples[key][: args.rows] for key in _PER_IMAGE}
    print(f"wrote {pictures.save_grid(args.out, **examples)}")
