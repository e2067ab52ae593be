"""A tokenized corpus: transcripts read once, their ids kept in memory-mapped arrays.

Training works on this form only. It is built aside and renamed, and found again by the hash of its sources
and its tokenizer, so a resumed or repeated run starts at once and reads no text.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chatbot.tokenizer import Tokenizer, clip_turn
from chatbot.transcripts import Role, Transcript, read_transcripts

FORMAT = 1
"""Raised when the arrays change their meaning, so that no old cache is read as a new one."""
READ_AHEAD = 2048
"""Conversations that are tokenized together."""


@dataclass(frozen=True)
class Corpus:
    """N turns of D conversations, P tokens."""

    tokens: NDArray[np.uint32]  # (P,) ids in the form of `Tokenizer.encode_turn`
    turn_start: NDArray[np.int64]  # (N + 1,) first token of each turn
    turn_is_reply: NDArray[np.bool_]  # (N,) an agent's turn that is to be learned
    turn_weight: NDArray[np.float32]  # (N,)
    dialogue_start: NDArray[np.int64]  # (D + 1,) first turn of each conversation

    def __len__(self) -> int:
        return len(self.dialogue_start) - 1

    @property
    def replies(self) -> int:
        return int(self.turn_is_reply.sum())

    def dialogue_tokens(self) -> NDArray[np.int64]:
        """Tokens of each conversation, (D,)."""
        return np.diff(self.turn_start[self.dialogue_start])

    def dialogue_replies(self) -> NDArray[np.int64]:
        """Replies to be learned in each conversation, (D,)."""
        seen = np.concatenate([[0], np.cumsum(self.turn_is_reply, dtype=np.int64)])
        return np.diff(seen[self.dialogue_start])

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
) -> Corpus:
    """The corpus of ``files``, from ``cache`` when it was built before. Raises TranscriptError on a malformed
    line.
    """
    key = _key(files, tokenizer, max_turn_tokens, max_dialogue_tokens)
    place = cache / key
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=cache, prefix=".building-"))
        try:
            transcripts = (transcript for file in files for transcript in read_transcripts(file))
            _build(aside, transcripts, tokenizer, max_turn_tokens, max_dialogue_tokens)
            aside.rename(place)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            if not place.exists():  # another process may have built the same one meanwhile
                raise
    return Corpus(*(np.load(place / f"{name}.npy", mmap_mode="r") for name in _ARRAYS))


def corpus_of(
    transcripts: Iterable[Transcript],
    tokenizer: Tokenizer,
    *,
    max_turn_tokens: int,
    max_dialogue_tokens: int = 1 << 40,
) -> Corpus:
    """The same, in memory."""
    with tempfile.TemporaryDirectory() as name:
        _build(Path(name), transcripts, tokenizer, max_turn_tokens, max_dialogue_tokens)
        return Corpus(*(np.load(Path(name) / f"{array}.npy") for array in _ARRAYS))


_ARRAYS = tuple(Corpus.__dataclass_fields__)


def _build(
    place: Path, transcripts: Iterable[Transcript], tokenizer: Tokenizer, max_turn: int, max_dialogue: int
) -> None:
    """Stream the arrays to disk: memory stays bounded by the turns' bookkeeping, not by the tokens."""
    lengths: list[int] = []
    reply: list[bool] = []
    weights: list[float] = []
    turns_of: list[int] = []
    with (place / "tokens.bin").open("wb") as raw:
        for transcript, turns in _tokenized(transcripts, tokenizer, max_turn):
            count = size = 0
            for turn, ids in zip(transcript.turns, turns, strict=True):
                if count and size + len(ids) > max_dialogue:  # a very long one is cut between turns
                    turns_of.append(count)
                    count = size = 0
                np.asarray(ids, np.uint32).tofile(raw)
                lengths.append(len(ids))
                reply.append(
                    turn.role == "agent" and turn.weight > 0 and (count > 0 or transcript.turns[0] is turn)
                )
                weights.append(turn.weight)
                count, size = count + 1, size + len(ids)
            if count:
                turns_of.append(count)
    total = sum(lengths)
    arrays = {
        "tokens": np.memmap(place / "tokens.bin", np.uint32, "r", shape=(total,))
        if total
        else np.zeros(0, np.uint32),
        "turn_start": np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        "turn_is_reply": np.asarray(reply, np.bool_),
        "turn_weight": np.asarray(weights, np.float32),
        "dialogue_start": np.concatenate([[0], np.cumsum(turns_of, dtype=np.int64)]).astype(np.int64),
    }
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    (place / "tokens.bin").unlink()


def _tokenized(
    transcripts: Iterable[Transcript], tokenizer: Tokenizer, max_turn: int
) -> Iterator[tuple[Transcript, list[list[int]]]]:
    stream = iter(transcripts)
    while group := list(islice(stream, READ_AHEAD)):
        flat: list[tuple[Role, str]] = [(turn.role, turn.text) for t in group for turn in t.turns]
        ids = iter(tokenizer.encode_turns(flat))
        for transcript in group:
            yield transcript, [clip_turn(next(ids), max_turn) for _ in transcript.turns]


def _key(files: Sequence[Path], tokenizer: Tokenizer, *limits: int) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, *limits]).encode())
    digest.update(tokenizer.to_json().encode())
    for file in files:
        with file.open("rb") as raw:
            digest.update(hashlib.file_digest(raw, "sha256").digest())
    return digest.hexdigest()[:24]
