"""OCI images: references, manifests, and where they come from."""
