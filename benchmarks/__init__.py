"""Timing claims of this project, measured in pairs; nothing here is a test.

``core`` is the package with the trainers under whatever name it was imported.
"""

import importlib

core = importlib.import_module("trainers")
