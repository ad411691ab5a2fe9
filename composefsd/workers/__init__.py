"""Processes beside the daemon: how they are started, spoken to, fenced in, and how bulk data reaches them."""
