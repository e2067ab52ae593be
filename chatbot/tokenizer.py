"""Byte-level byte-pair encoding (Sennrich et al. 2016) with a token for each role and for the end of a turn.

A turn is ``<role> text <end>``; a reply is decoded from ``<agent>`` until ``<end>``. Bytes are the base
alphabet, so no text is out of vocabulary and no unknown token exists. Digits stand alone, which lets numbers
be composed and copied digit by digit. Text that merely looks like a special token is ordinary text.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Final

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from chatbot.transcripts import Role

PAD: Final = "<pad>"
USER: Final = "<user>"
AGENT: Final = "<agent>"
END: Final = "<end>"
SPECIALS: Final = (PAD, USER, AGENT, END)

_WORD = Regex(r"'(?:[sdmt]|ll|ve|re)\b| ?\p{L}{1,64}| ?\p{N}| ?[^\s\p{L}\p{N}]{1,32}|\s{1,32}(?!\S)|\s{1,32}")
"""Pieces that no merge crosses. Bounded lengths keep a hostile text of one letter linear in time."""
_JOINED = Regex(r"\s+(?=[?!,;](?:\s|$)|\.(?:\s+\p{Lu}|\s*$)|(?i:n't|'(?:s|m|d|re|ve|ll))\b)")
"""Spaces that tokenized corpora put before punctuation and clitics (``do n't know .``)."""


class Tokenizer:
    """Text to ids and back. Immutable; safe to share between threads."""

    pad_id: Final = 0
    user_id: Final = 1
    agent_id: Final = 2
    end_id: Final = 3

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        found = tuple(inner.id_to_token(i) for i in range(len(SPECIALS)))
        if found != SPECIALS:
            raise ValueError(f"the first tokens must be {SPECIALS}, found {found}")
        inner.encode_special_tokens = True  # "<end>" typed by a visitor is six characters, not the end
        self._inner = inner
        self.vocab_size: int = inner.get_vocab_size()
        self._bytes = tuple(_token_bytes(inner.id_to_token(i), i) for i in range(self.vocab_size))

    @classmethod
    def train(
        cls, texts: Iterable[str], *, vocab_size: int, lowercase: bool = False, min_frequency: int = 2
    ) -> Tokenizer:
        """Learn merges from ``texts`` until there are ``vocab_size`` tokens or no pair occurs
        ``min_frequency`` times.
        """
        inner = tokenizers.Tokenizer(models.BPE())
        inner.normalizer = normalizers.Sequence(_normalizers(lowercase))
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(_WORD, behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """A tokenizer from its ``tokenizer.json``. Raises ValueError when it is not one of ours."""
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            raise ValueError(f"not a tokenizer: {error}") from None
        return cls(inner)

    def with_dropout(self, share: float) -> Tokenizer:
        """The same tokens, but each merge is left out with this probability, drawn anew for every text
        (BPE-dropout, Provilkov et al. 2020). The library draws, and takes no seed.
        """
        inner = tokenizers.Tokenizer.from_str(self.to_json())
        inner.model.dropout = share
        return Tokenizer(inner)

    def to_json(self) -> str:
        return self._inner.to_str(pretty=False)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens; empty for an empty text."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def encode_turn(self, role: Role, text: str) -> list[int]:
        """``<role> text <end>``."""
        return [self.role_id(role), *self.encode(text), self.end_id]

    def encode_turns(self, turns: Sequence[tuple[Role, str]]) -> list[list[int]]:
        """`encode_turn` of many turns at once, on all cores."""
        encoded = self._inner.encode_batch_fast([text for _, text in turns], add_special_tokens=False)
        return [
            [self.role_id(role), *e.ids, self.end_id] for (role, _), e in zip(turns, encoded, strict=True)
        ]

    def role_id(self, role: Role) -> int:
        return self.user_id if role == "user" else self.agent_id

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a special token."""
        return self._bytes[token]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are skipped, broken UTF-8 becomes U+FFFD."""
        stream = TextStream(self)
        return "".join([*map(stream.push, ids), stream.finish()])

    def normalize(self, text: str) -> str:
        """The text as the model sees it: what ``decode(encode(text))`` gives."""
        return self.decode(self.encode(text))


class TextStream:
    """Ids in, text out, piece by piece: never half a character, and the pieces add up to ``decode(ids)``."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begun = False

    def push(self, token: int) -> str:
        """The characters that ``token`` completes; empty while a character is still incomplete."""
        return self._begin(self._utf8.decode(self._tokenizer.token_bytes(token)))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole."""
        return self._begin(self._utf8.decode(b"", final=True))

    def _begin(self, text: str) -> str:
        """Drop the space that every text is encoded with, so that a word is one token wherever it stands."""
        if self._begun or not text:
            return text
        self._begun = True
        return text.removeprefix(" ")


def clip_turn(ids: Sequence[int], limit: int) -> list[int]:
    """A turn's ids cut to at most ``limit``, its end token kept."""
    return list(ids) if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def _normalizers(lowercase: bool) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = [
        normalizers.NFC(),
        normalizers.Replace(Regex(r"[^\S\n]+"), " "),
        normalizers.Replace(_JOINED, ""),
        normalizers.Strip(),
    ]
    if lowercase:
        steps.append(normalizers.Lowercase())
    return [*steps, normalizers.Prepend(" ")]


@cache
def _byte_of_character() -> dict[str, int]:
    """Inverse of the byte-level alphabet: printable bytes stand for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return table


def _token_bytes(token: str | None, index: int) -> bytes:
    if token is None:
        raise ValueError(f"the vocabulary has no token {index}")
    if index < len(SPECIALS):
        return b""
    try:
        return bytes(_byte_of_character()[character] for character in token)
    except KeyError:
        raise ValueError(f"token {index} ({token!r}) is not byte-level") from None
