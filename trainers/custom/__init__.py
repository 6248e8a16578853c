"""Your own methods: every python file in this folder is imported, which registers its trainers.

``docs/add_a_method.md`` shows a complete one.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
