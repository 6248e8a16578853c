"""advprompt: adversarially robust prompt learning for CLIP, as a plug-in for CoOp/Dassl.

Importing this package registers the trainers; ``extend_cfg(cfg)`` adds their config keys and
``load(path)`` opens an exported model. The same folder is ``trainers`` in the clone, ``advprompt``
once installed and ``trainers.advprompt`` inside a fork, so everything in it imports relatively.
"""


def _install_host() -> None:
    """Make ``import dassl`` and ``import torchvision`` work before anything needs them."""
    try:
        from .compat import install  # installed: compat lies inside the package
    except ImportError:
        try:
            from compat import install  # the clone: compat/ lies beside trainers/
        except ImportError:
            return  # copied into a fork, which brings its own Dassl
    install()


_install_host()

from . import (  # noqa: E402, F401  registers the trainers
    advpt,
    apd,
    baselines,
    capt,
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
    "io",
    "load",
    "nearest",
    "records",
    "templates",
]
