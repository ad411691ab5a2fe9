"""The splitstream codec; knows no repository."""

from composefsd.splitstream.format import ContentType
from composefsd.splitstream.reader import Splitstream
from composefsd.splitstream.writer import Writer

__all__ = ["ContentType", "Splitstream", "Writer"]
