"""R-TPT's logits and TTC's images equal those of the authors' unedited code.

Both sides get one random CLIP, one set of views and one draw of noise; see benchmarks/testtime.py.
ADVPROMPT_HOSTS needs checkouts named R-TPT and TTC for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


def test_one_image_equals_the_authors():
    folder = Path(os.environ.get("ADVPROMPT_HOSTS", ""), "").resolve()
    if not all((folder / name).is_dir() for name in ("R-TPT", "TTC")):
        pytest.skip("ADVPROMPT_HOSTS names no folder with checkouts R-TPT and TTC")
    call = [sys.executable, "-m", "benchmarks.testtime", "--small", "--code"]
    done = subprocess.run([*call, str(folder)], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout[done.stdout.index("{") :])
    assert facts["spread of the logits"] > 1
    assert facts["rtpt"] < 1e-4
    assert facts["rtpt as it is"] > 1e-3  # a view counts as its own neighbour where cosines round
    assert facts["ttc, tau 0, share of pixels"] == facts["ttc, tau 0, logits"] == 0
    assert facts["ttc, tau 9, share of pixels"] < 0.002  # where rounding decides a gradient's sign
    assert facts["ttc, tau 9, logits"] < 0.05
