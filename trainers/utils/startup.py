"""Start and stop our own commands faster; nothing here runs on ``import advprompt``."""

import atexit
import gc
import importlib
import sys
import types

COMPILER = "torch._dynamo"


def hasten() -> None:
    """Collect garbage less often and not at exit, and leave PyTorch's compiler unloaded.

    PyTorch's modules hold hundreds of thousands of objects: searching them for garbage takes as
    long as importing them.
    """
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = _Compiler(COMPILER)


class _Compiler(types.ModuleType):
    """Replaces ``torch._dynamo`` until its first use.

    Every optimizer imports the compiler, which takes a second, only to mark itself as not to be
    compiled: the two functions for that do nothing here. Any other use loads the real module.
    """

    __file__ = None  # for code that lists modules

    def graph_break(self, *args, **kwargs) -> None:
        """Nothing is being compiled."""

    def disable(self, fn=None, *args, **kwargs):
        return fn if fn is not None else lambda inner: inner

    def __getattr__(self, name: str):
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
            importlib.import_module(COMPILER)
        return getattr(sys.modules[COMPILER], name)
