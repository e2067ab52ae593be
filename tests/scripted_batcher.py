"""A batcher that plays back a script, one piece a step, as far as a test lets it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chatbot.batcher import BatcherFull
from chatbot.replies import Event, Finished, FinishReason, Load, Piece, Reply, ReplyRequest

Script = Callable[[ReplyRequest], list[str]]


class Gate:
    """How many more steps may be made; open from the start, and for good after `open`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._steps: float = float("inf")

    def close(self) -> None:
        with self._changed:
            self._steps = 0

    def let(self, steps: int) -> None:
        with self._changed:
            self._steps += steps
            self._changed.notify_all()

    def open(self) -> None:
        with self._changed:
            self._steps = float("inf")
            self._changed.notify_all()

    def pass_through(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._steps >= 1, timeout=20), "a test forgot its gate"
            self._steps -= 1


@dataclass
class Playing:
    request: ReplyRequest
    pieces: Iterator[str]
    text: str = ""


class ScriptedBatcher:
    """`script` gives a request's pieces. Keeps what it was told, and on which threads."""

    def __init__(self, script: Script, gate: Gate | None = None, room: int = 1000) -> None:
        self._script = script
        self._gate = gate or Gate()
        self._room = room
        self._playing: dict[str, Playing] = {}
        self._ending: set[str] = set()
        self.requests: list[ReplyRequest] = []
        self.cancelled: list[str] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None

    def submit(self, request: ReplyRequest) -> None:
        self.threads.add(threading.current_thread().name)
        if len(self._playing) >= self._room:
            raise BatcherFull
        self.requests.append(request)
        self._playing[request.id] = Playing(request, iter(self._script(request)))

    def cancel(self, request_id: str) -> None:
        self.threads.add(threading.current_thread().name)
        self.cancelled.append(request_id)
        if request_id in self._playing:
            self._ending.add(request_id)

    @property
    def idle(self) -> bool:
        return not self._playing

    @property
    def load(self) -> Load:
        return Load(len(self._playing), 0)

    def step(self) -> list[Event]:
        self.threads.add(threading.current_thread().name)
        if self._playing and not self._ending:
            self._gate.pass_through()
        if self.error is not None:
            raise self.error
        events: list[Event] = []
        for playing in list(self._playing.values()):
            events += self._advance(playing)
        return events

    def _advance(self, playing: Playing) -> list[Event]:
        if playing.request.id in self._ending:
            return [self._finished(playing, "cancelled")]
        piece = next(playing.pieces, None)
        if piece is None:
            return [self._finished(playing, "stop")]
        playing.text += piece
        return [Piece(playing.request.id, piece)]

    def _finished(self, playing: Playing, reason: FinishReason) -> Finished:
        del self._playing[playing.request.id]
        self._ending.discard(playing.request.id)
        seed = playing.request.options.seed or 0
        return Finished(playing.request.id, Reply(playing.text, (1,), (-0.5,), reason, seed, ()))


def parrot(request: ReplyRequest) -> list[str]:
    """Repeats the last turn, word by word."""
    return [f"{word} " for word in request.turns[-1][1].split()]
