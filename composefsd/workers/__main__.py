"""The worker program: `python -I -m composefsd.workers MODULE CONTROL [--sandbox [DIRECTORY …]]`.

MODULE is imported for its `TASKS`; CONTROL is the descriptor of the control socket; with `--sandbox` the process
fences itself in first and keeps read access beneath the directory descriptors that follow.  Only the daemon starts
it.
"""

import gc
import importlib
import logging
import os
import signal
import socket
import sys

from composefsd.workers import sandbox
from composefsd.workers.serve import serve


def main(module: str, control: str, *options: str) -> None:
    """Run a worker; see the module's docstring for the arguments."""
    logging.basicConfig(level=logging.WARNING, format="composefsd worker: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the daemon, which then stops us
    sandbox.die_with_parent()
    if not module.startswith("composefsd."):
        raise SystemExit(f"no module of composefsd: {module}")
    tasks = importlib.import_module(module).TASKS
    os.nice(10)  # the bus comes first
    if options:
        fences = sandbox.enter([int(fd) for fd in options[1:]])
        logging.getLogger(__name__).debug("fences: %s", " ".join(fences))
    gc.disable()  # tasks build columns, not cycles
    serve(socket.socket(fileno=int(control)), tasks)


main(*sys.argv[1:])
