"""Hot loops, each of them twice: in C, and in Python as its twin, which tells what it does.

The package is built with the modules in C.  Where it is used without being built, the twins do the same, slower;
tests hold both to the same answers.  Both work on columns alone, `array`s and bytes, and know nothing of what these
mean to the other rooms.
"""

try:
    from composefsd.compiled._labels import descend
except ImportError:  # not built
    from composefsd.compiled.labels import descend
from composefsd.compiled.labels import FRAME, Stop

__all__ = ["FRAME", "Stop", "descend"]
