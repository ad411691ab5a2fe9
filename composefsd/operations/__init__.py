"""Use cases: what a method of the bus, or a daemonless command, asks for; the room that sees all others."""
