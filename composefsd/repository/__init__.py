"""The object repository of composefs-rs: objects, streams, images, refs."""
