"""The methods that the four are compared with; importing this package registers them."""

from . import zsclip  # noqa: F401
