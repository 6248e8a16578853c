"""A mapping from names to classes or functions."""

from .tools import check_availability, nearest

__all__ = ["Registry"]


class Registry:
    """Names -> objects, filled by the decorator ``@REGISTRY.register()`` or by call."""

    def __init__(self, name: str):
        self._name = name
        self._obj_map = {}

    def _do_register(self, name, obj, force=False):
        if name in self._obj_map and not force:
            raise KeyError(
                f"'{name}' is already in the {self._name} registry; rename one or pass force=True"
            )
        self._obj_map[name] = obj

    def register(self, obj=None, force=False):
        """Register ``obj`` under its own name; without ``obj``, return a decorator."""

        def add(fn_or_class):
            self._do_register(fn_or_class.__name__, fn_or_class, force=force)
            return fn_or_class

        return add if obj is None else add(obj)

    def get(self, name: str):
        if name not in self._obj_map:
            raise KeyError(
                f"'{name}' is not in the {self._name} registry.{nearest(name, self._obj_map)}"
            )
        return self._obj_map[name]

    def registered_names(self) -> list:
        return list(self._obj_map)

    def build(self, name, verbose, *args, **kwargs):
        """Announce and call the object called ``name``; ValueError if there is none."""
        check_availability(name, self.registered_names())
        if verbose:
            print(f"Loading {self._name.lower()}: {name}")
        return self.get(name)(*args, **kwargs)
