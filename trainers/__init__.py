"""advprompt: adversarially robust prompt learning for CLIP, as a plug-in for CoOp/Dassl.

Importing this package registers the trainers; ``extend_cfg(cfg)`` adds their config keys and
``load(path)`` opens a trained model and ``evaluate(model, images)`` attacks any. The folder is
called ``trainers`` in the clone and is copied to ``trainers/advprompt`` in a fork, so everything in
it imports relatively.
"""

import gc

_collecting = gc.isenabled()
gc.disable()  # imports leave little garbage; searching for it takes a fifth of their time

from . import compat  # noqa: E402

compat.install()  # `import dassl` and `import torchvision` must work before anything needs them

from . import advpt, apd, baselines, capt, custom, naptuning, records  # noqa: E402, F401
from .config.keys import extend_cfg  # noqa: E402
from .engine.evaluate import evaluate  # noqa: E402
from .engine.zoo import load  # noqa: E402
from .evaluation.image_text import zero_shot  # noqa: E402
from .utils.errors import UserError  # noqa: E402
from .utils.version import __version__  # noqa: E402

if _collecting:
    gc.enable()

__all__ = ["UserError", "__version__", "evaluate", "extend_cfg", "load", "records", "zero_shot"]
