"""A second process beside a check's own."""

from __future__ import annotations

import os
import pickle
import select
import socket
from collections.abc import Callable
from typing import Any


class Line:
    """One end of a line between two processes."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def say(self, word: str = "now") -> None:
        """Send a word."""
        self._end.sendall(word.encode() + b"\n")

    def hear(self) -> str:
        """Wait for the next word; empty when the other process has gone."""
        word = b""
        while not word.endswith(b"\n"):
            piece = self._end.recv(1)
            if not piece:
                return ""
            word += piece
        return word.decode().removesuffix("\n")

    def silent(self) -> bool:
        """Whether no word comes for a moment; a late word is no failure, so this can miss but never err."""
        return not select.select([self._end], [], [], 0.1)[0]


class Peer:
    """A forked process that calls a function with its end of a line; ``line`` is the other end."""

    def __init__(self, body: Callable[[Line], Any]) -> None:
        near, far = socket.socketpair()
        self._answer, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            near.close()
            os.close(self._answer)
            try:
                outcome: object = body(Line(far))
            except BaseException as error:
                outcome = error
            with os.fdopen(answer, "wb") as file:
                pickle.dump(outcome, file)
            os._exit(0)
        far.close()
        os.close(answer)
        self.line = Line(near)

    def result(self) -> Any:
        """Wait for its end and return what the function answered, or raise what it raised."""
        with os.fdopen(self._answer, "rb") as file:
            data = file.read()
        os.waitpid(self.pid, 0)
        if not data:
            raise AssertionError("the second process left without an answer")
        outcome = pickle.loads(data)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome
