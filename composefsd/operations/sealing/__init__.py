"""Sealing an OCI image: the parts that `operations.seal` is made of, and that no daemon needs."""
