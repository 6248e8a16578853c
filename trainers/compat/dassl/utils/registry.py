"""A mapping from names to classes or functions."""

from .tools import nearest

__all__ = ["Registry"]


class Registry:
    """Names -> objects, filled by decorator or by call.

    Examples::
        REGISTRY = Registry("TRAINER")

        @REGISTRY.register()
        class MyTrainer: ...

        REGISTRY.get("MyTrainer")
    """

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
        """Register ``obj`` under its own name; without ``obj``, return a decorator.

        Raises:
            KeyError: the name is taken and ``force`` is not set.
        """

        def add(fn_or_class):
            self._do_register(fn_or_class.__name__, fn_or_class, force=force)
            return fn_or_class

        return add if obj is None else add(obj)

    def get(self, name: str):
        """Return the object called ``name``.

        Raises:
            KeyError: nothing has that name; the message offers the nearest ones.
        """
        if name not in self._obj_map:
            raise KeyError(
                f"'{name}' is not in the {self._name} registry.{nearest(name, self._obj_map)}"
            )
        return self._obj_map[name]

    def registered_names(self) -> list:
        """Return all names in the order of registration."""
        return list(self._obj_map)
