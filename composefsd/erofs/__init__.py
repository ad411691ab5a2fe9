"""EROFS images: a tree as bytes, and back."""
