"""The daemon on D-Bus."""
