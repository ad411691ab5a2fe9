"""What a verb has to work with: the daemon, the streams, and a way to wait for a job."""

import argparse
import sys
from collections.abc import Callable
from typing import BinaryIO

from composefsd.client.follow import Follower, Outcome, identified
from composefsd.client.interrupts import Interrupts
from composefsd.client.progress import Bar, Lines, Quiet, View
from composefsd.client.proxy import COMPUTE, JobRequest, Proxy
from composefsd.client.render import Screen
from composefsd.client.results import to_json
from composefsd.client.text import escape


class Session:
    """One run of composefsctl over the bus."""

    def __init__(self, proxy: Proxy, interrupts: Interrupts, args: argparse.Namespace) -> None:
        self.proxy = proxy
        self._interrupts = interrupts
        self._args = args
        self._out = Screen.of(sys.stdout)
        self._err = Screen.of(sys.stderr)

    def answer(self, value: object, show: Callable[[Screen], None] | None = None) -> None:
        """Print what a verb found out: `value` as JSON if that is wanted, else what `show` makes of it."""
        if self._args.json:
            self._out.write(to_json(value) + "\n")
        elif show is not None:
            show(self._out)

    def document(self, text: str) -> None:
        """Print a document as it is, or on a terminal without anything that could control it."""
        if self._out.width is not None:
            text = "\n".join(escape(line) for line in text.split("\n"))
        self._out.write(text if text.endswith("\n") else text + "\n")

    def copy(self, lines: BinaryIO) -> None:
        """Print a document of many lines, none of it kept in memory, as `document` does."""
        for line in lines:
            text = line.decode("utf-8", "backslashreplace").removesuffix("\n")
            self._out.write((text if self._out.width is None else escape(text)) + "\n")

    async def job(self, request: JobRequest) -> Outcome | None:
        """Start a job and wait for its end, or print its id and answer None if nobody wants to wait."""
        request = request.asking({"request-id": self._args.request_id})
        if not self._args.no_wait:
            return await Follower(self.proxy, self._view(request), self._interrupts).run(request)
        job = await self.proxy.start(identified(request))
        self.answer({"job": job.id, "path": job.path}, lambda screen: screen.line(str(job.id)))
        return None

    def _view(self, request: JobRequest) -> View:
        if self._args.quiet:
            return Quiet()
        if self._err.live:
            return Bar(self._err)
        # Lines go to stdout, as stderr has the error and nothing else; where stdout is a value, there are none.
        return Quiet() if self._args.json or request.member is COMPUTE else Lines(self._out)
