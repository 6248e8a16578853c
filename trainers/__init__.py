"""advprompt: adversarially robust prompt learning for CLIP, as a plug-in for CoOp/Dassl.

Importing this package registers the trainers; ``extend_cfg(cfg)`` adds their config keys and
``load(path)`` opens an exported model. The same folder is ``trainers`` in the clone, ``advprompt``
once installed and ``trainers.advprompt`` inside a fork, so everything in it imports relatively.
"""

import importlib
import importlib.util

from .versions import check_torch

check_torch()

# `import dassl` and `import torchvision` must work before anything needs them
_COMPAT = "compat" if __name__ == "trainers" else f"{__name__}.compat"
if importlib.util.find_spec(_COMPAT):
    importlib.import_module(_COMPAT).install()

from . import (  # noqa: E402, F401  registers the trainers
    advpt,
    apd,
    baselines,
    capt,
    host,
    io,
    naptuning,
    own,
    records,
    templates,
)
from .config import extend_cfg  # noqa: E402
from .errors import UserError, nearest  # noqa: E402
from .version import __version__  # noqa: E402
from .zoo import load  # noqa: E402

__all__ = [
    "UserError",
    "__version__",
    "extend_cfg",
    "host",
    "io",
    "load",
    "nearest",
    "records",
    "templates",
]
