"""Talking with a model in the terminal: a line in, a streaming reply out."""

from __future__ import annotations

import contextlib
import secrets
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final, TextIO

from chatbot.batcher import Batcher, Failed, Finished, Piece, Reply, ReplyRequest
from chatbot.decoder import Bundle
from chatbot.decoding import derived_seed
from chatbot.options import MAX_BEAM, MAX_SEED, DecodingOptions, OptionError
from chatbot.reranking import Rerankers
from chatbot.terminal import printable
from chatbot.transcripts import Role

HELP: Final = """\
/new        start a new conversation
/seed N     make replies repeatable: the same seed and the same words give the same replies
/seed       show the seed
/help       this text
Ctrl-C stops a reply; Ctrl-C again, or Ctrl-D, leaves.
"""


class Chat:
    """One conversation at a time with a model; text goes to ``out``."""

    def __init__(
        self, bundle: Bundle, options: DecodingOptions, out: TextIO, rerankers: Rerankers | None = None
    ) -> None:
        self._batcher = Batcher(bundle, rows=MAX_BEAM, waiting=1, rerankers=rerankers)
        self._options = options
        self._out = out
        self._turns: list[tuple[Role, str]] = []
        self.seed = secrets.randbelow(MAX_SEED) if options.seed is None else options.seed

    def run(self, read: Callable[[], str]) -> None:
        """Answer every line that ``read`` returns, until it raises EOFError or KeyboardInterrupt."""
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            while True:
                line = read().strip()
                if line.startswith("/"):
                    self._command(line)
                elif line:
                    self.say(line)

    def say(self, text: str) -> Reply | None:
        """Answer ``text`` and show the answer as it is made. A stopped reply counts as far as it came."""
        self._turns.append(("user", text))
        options = self._options.model_copy(update={"seed": derived_seed(self.seed, str(len(self._turns)))})
        self._batcher.submit(ReplyRequest("reply", tuple(self._turns), options))
        with _interrupts() as interrupted:
            while not self._batcher.idle:
                if interrupted():
                    self._batcher.cancel("reply")
                for event in self._batcher.step():
                    match event:
                        case Piece(text=piece):
                            self._show(printable(piece))
                        case Finished(reply=reply):
                            return self._finish(reply)
                        case Failed(message=message):
                            self._turns.pop()
                            self._show(f"(no reply: {message})\n")
        return None

    def _finish(self, reply: Reply) -> Reply:
        if reply.text:
            self._turns.append(("agent", reply.text))
        self._show(" …\n" if reply.finish_reason != "stop" else "\n")
        for number, other in enumerate(reply.alternatives[1:], start=2):
            self._show(f"  {number}. ({other.score:.2f}) {printable(other.text)}\n")
        return reply

    def _command(self, line: str) -> None:
        match line.split():
            case ["/new"]:
                self._turns.clear()
                self._show("(a new conversation)\n")
            case ["/seed"]:
                self._show(f"(seed {self.seed})\n")
            case ["/seed", number]:
                self._set_seed(number)
            case ["/help"]:
                self._show(HELP)
            case _:
                self._show("(no such command; /help lists them)\n")

    def _set_seed(self, number: str) -> None:
        try:
            if not (number.isascii() and number.isdigit() and len(number) < 20):
                raise OptionError("seed", f"must be {DecodingOptions.allowed('seed')}")
            checked = DecodingOptions.merged(self._options, {"seed": int(number)}).seed
        except OptionError as error:
            self._show(f"({error})\n")
        else:
            self.seed = checked or 0
            self._show(f"(seed {self.seed})\n")

    def _show(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Count Ctrl-C instead of raising it, so that it never falls into the middle of a step."""
    seen = False

    def note(_signal: int, _frame: FrameType | None) -> None:
        nonlocal seen
        seen = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)
