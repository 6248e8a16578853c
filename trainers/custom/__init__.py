"""Your own methods: every Python file in this folder is imported, which registers its trainers.

``docs/add_a_method.md`` shows a complete one.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f".{_module.name}", __name__)
