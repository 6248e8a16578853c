"""A small stand-in for Dassl 0.6.3, used only where Dassl itself is not installed.

It offers the part of Dassl's interface that CoOp-style trainers and data sets use, under the same
module paths, with the same config keys, defaults, random draws and log lines. The interface is
that of Dassl by Kaiyang Zhou (https://github.com/KaiyangZhou/Dassl.pytorch); the code is our own.
"""

__version__ = "0.6.3"
STAND_IN = True
