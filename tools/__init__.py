"""Command-line tools: ``python -m tools.NAME`` in a clone, ``advprompt NAME`` once installed.

``core`` is the package with the trainers under whatever name it was imported.
"""

import importlib

core = importlib.import_module(__name__.rpartition(".")[0] or "trainers")
