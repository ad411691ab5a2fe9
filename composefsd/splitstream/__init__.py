"""The splitstream codec; knows no repository."""
