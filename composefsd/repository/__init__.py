"""The object repository of composefs-rs: objects, streams, images, refs."""

from composefsd.repository.metadata import Metadata
from composefsd.repository.repository import Repository

__all__ = ["Metadata", "Repository"]
