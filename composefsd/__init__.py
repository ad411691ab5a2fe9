"""composefsd: the daemon that owns the composefs object repository of a host."""

from typing import Final

VERSION: Final = "0.1.0"
