"""A tokenized corpus: transcripts read once, their ids kept in memory-mapped arrays.

Training works on this form only. It is built aside and renamed, and found again by the hash of its sources
and its tokenizer, so a resumed or repeated run starts at once and reads no text. It is built as a stream:
memory holds one group of conversations, however long the files are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from chatbot.tokenizer import Tokenizer, clip_turn
from chatbot.transcripts import Role, Transcript, read_transcripts

FORMAT = 1
"""Raised when the arrays change their meaning, so that no old cache is read as a new one."""
READ_AHEAD = 1 << 20
"""Characters that are tokenized together: enough work for every core, little memory."""
TURN_COST = 64
"""Characters that a turn counts for besides its own, so that very short ones do not add up to much memory."""
BLOCK = 1 << 10
"""Conversations whose turns are counted together."""


class OtherCorpus(ValueError):
    """A run was begun with other transcripts, or with other settings of how they are read."""

    def __init__(self, cache: Path) -> None:
        super().__init__(cache)
        self.cache = cache

    def __str__(self) -> str:
        return (
            f"{self.cache.parent} was begun with other transcripts or limits: resume with the same ones,"
            " or learn others in a run of their own (--base goes on from a model)"
        )


@dataclass(frozen=True)
class Corpus:
    """N turns of D conversations, P tokens."""

    tokens: NDArray[np.unsignedinteger[Any]]  # (P,) ids in the form of `Tokenizer.encode_turn`
    turn_start: NDArray[np.int64]  # (N + 1,) first token of each turn
    turn_is_reply: NDArray[np.bool_]  # (N,) an agent's turn that is to be learned
    turn_weight: NDArray[np.float32]  # (N,)
    dialogue_start: NDArray[np.int64]  # (D + 1,) first turn of each conversation

    def __len__(self) -> int:
        return len(self.dialogue_start) - 1

    @property
    def replies(self) -> int:
        return int(self.turn_is_reply.sum())

    def digest(self) -> str:
        """Hash of what is said and what is to be learned of it."""
        arrays = (self.tokens, self.turn_start, self.turn_is_reply, self.dialogue_start)
        return hashlib.sha256(b"".join(hashlib.sha256(array.data).digest() for array in arrays)).hexdigest()

    def dialogue_tokens(self) -> NDArray[np.int64]:
        """Tokens of each conversation, (D,)."""
        return np.diff(self.turn_start[self.dialogue_start])

    def dialogue_replies(self) -> NDArray[np.int64]:
        """Replies to be learned in each conversation, (D,)."""
        found = np.empty(len(self), np.int64)
        for first in range(0, len(self), BLOCK):  # numpy would widen the flags of all turns at once
            bounds = self.dialogue_start[first : first + BLOCK + 1]
            flags = self.turn_is_reply[bounds[0] : bounds[-1]]
            found[first : first + BLOCK] = np.add.reduceat(flags, bounds[:-1] - bounds[0], dtype=np.int64)
        return found

    def turn_lengths(self) -> NDArray[np.int64]:
        """Tokens of each turn, (N,)."""
        return np.diff(self.turn_start)


def open_corpus(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    *,
    cache: Path,
    max_turn_tokens: int,
    max_dialogue_tokens: int,
    same: bool = False,
) -> Corpus:
    """The corpus of ``files``, from ``cache`` when it was built before. Raises TranscriptError on a malformed
    line, and with ``same`` `OtherCorpus` when another one was built there and this one was not.
    """
    key = _key(files, tokenizer, max_turn_tokens, max_dialogue_tokens)
    place = cache / key
    if not place.exists():
        if same and any(not path.name.startswith(".") for path in cache.glob("*")):
            raise OtherCorpus(cache)
        cache.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=cache, prefix=".building-"))
        try:
            transcripts = (transcript for file in files for transcript in read_transcripts(file))
            build_corpus(
                aside,
                transcripts,
                tokenizer,
                max_turn_tokens=max_turn_tokens,
                max_dialogue_tokens=max_dialogue_tokens,
            )
            aside.rename(place)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            if not place.exists():  # another process may have built the same one meanwhile
                raise
    # Plain views: every slice of a memmap makes a memmap, which costs more than the few tokens it holds.
    return Corpus(*(np.load(place / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in _ARRAYS))


def corpus_of(
    transcripts: Iterable[Transcript],
    tokenizer: Tokenizer,
    *,
    max_turn_tokens: int,
    max_dialogue_tokens: int = 1 << 40,
) -> Corpus:
    """The same, in memory."""
    with tempfile.TemporaryDirectory() as name:
        build_corpus(
            Path(name),
            transcripts,
            tokenizer,
            max_turn_tokens=max_turn_tokens,
            max_dialogue_tokens=max_dialogue_tokens,
        )
        return Corpus(*(np.load(Path(name) / f"{array}.npy") for array in _ARRAYS))


_ARRAYS = tuple(Corpus.__dataclass_fields__)


def build_corpus(
    place: Path,
    transcripts: Iterable[Transcript],
    tokenizer: Tokenizer,
    *,
    max_turn_tokens: int,
    max_dialogue_tokens: int,
) -> None:
    """Write the arrays of a `Corpus` into the directory ``place``, one ``.npy`` file each."""
    small = tokenizer.vocab_size <= 1 << 16
    with ExitStack() as opened:

        def column(name: str, kind: type[np.generic]) -> _Column:
            return opened.enter_context(_Column(place / f"{name}.npy", kind))

        tokens = column("tokens", np.uint16 if small else np.uint32)
        turn_start, dialogue_start = column("turn_start", np.int64), column("dialogue_start", np.int64)
        turn_is_reply, turn_weight = column("turn_is_reply", np.bool_), column("turn_weight", np.float32)
        for starts in (turn_start, dialogue_start):
            starts.append([0])
        for group, turns in _tokenized(transcripts, tokenizer, max_turn_tokens):
            lengths = np.fromiter(map(len, turns), np.int64, len(turns))
            counts, begins = _cut(group, lengths, max_dialogue_tokens)
            weights = np.asarray([turn.weight for t in group for turn in t.turns], np.float32)
            by_agent = np.asarray([turn.role == "agent" for t in group for turn in t.turns], np.bool_)
            turn_start.append(len(tokens) + np.cumsum(lengths))
            dialogue_start.append(len(turn_weight) + np.cumsum(counts))
            tokens.append(np.fromiter(chain.from_iterable(turns), tokens.kind, int(lengths.sum())))
            turn_is_reply.append(by_agent & (weights > 0) & ~begins)
            turn_weight.append(weights)


class _Column:
    """A one-dimensional ``.npy`` file that grows at its end."""

    def __init__(self, path: Path, kind: type[np.generic]) -> None:
        self.kind = np.dtype(kind)
        self._length = 0
        self._file: IO[bytes] = path.open("wb")
        self._write_header()

    def __enter__(self) -> _Column:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file as file:
            file.seek(0)
            self._write_header()  # numpy leaves room in it for any length
            file.flush()
            os.fsync(file.fileno())

    def __len__(self) -> int:
        return self._length

    def append(self, values: Any) -> None:
        array = np.asarray(values, self.kind)
        self._file.write(array.data)
        self._length += len(array)

    def _write_header(self) -> None:
        shape = {"shape": (self._length,), "fortran_order": False, "descr": npy.dtype_to_descr(self.kind)}
        npy.write_array_header_1_0(self._file, shape)


def _tokenized(
    transcripts: Iterable[Transcript], tokenizer: Tokenizer, max_turn: int
) -> Iterator[tuple[list[Transcript], list[list[int]]]]:
    """Groups of conversations with the ids of all their turns."""
    for group in _grouped(transcripts):
        flat: list[tuple[Role, str]] = [(turn.role, turn.text) for t in group for turn in t.turns]
        yield group, [clip_turn(ids, max_turn) for ids in tokenizer.encode_turns(flat)]


def _grouped(transcripts: Iterable[Transcript]) -> Iterator[list[Transcript]]:
    group: list[Transcript] = []
    size = 0
    for transcript in transcripts:
        group.append(transcript)
        size += sum(TURN_COST + len(turn.text) for turn in transcript.turns)
        if size >= READ_AHEAD:
            yield group
            group, size = [], 0
    if group:
        yield group


def _cut(
    group: Sequence[Transcript], lengths: NDArray[np.int64], limit: int
) -> tuple[list[int], NDArray[np.bool_]]:
    """Turns of each dialogue of a group, where a very long conversation is several, and which turns begin a
    later part: they answer nothing that is left.
    """
    counts: list[int] = []
    begins = np.zeros(len(lengths), np.bool_)
    end = 0
    for transcript in group:
        start, end, size = end, end + len(transcript.turns), 0
        if int(lengths[start:end].sum()) > limit:
            first = start
            for turn, length in enumerate(lengths[start:end].tolist(), start):
                if turn > first and size + length > limit:
                    counts.append(turn - first)
                    begins[turn] = True
                    first, size = turn, 0
                size += length
            start = first
        if end > start:
            counts.append(end - start)
    return counts, begins


def _key(files: Sequence[Path], tokenizer: Tokenizer, *limits: int) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, *limits]).encode())
    digest.update(tokenizer.to_json().encode())
    for file in files:
        with file.open("rb") as raw:
            digest.update(hashlib.file_digest(raw, "sha256").digest())
    return digest.hexdigest()[:24]
