"""Phrases that are never said: the automaton against regular expressions, and replies that try everything."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.batcher import Batcher, Finished, Piece, ReplyRequest
from chatbot.blocking import BlockList, Spellings, State, Watch
from chatbot.options import DecodingOptions
from chatbot.prefix import ByteIndex
from chatbot.tokenizer import SPECIALS, Tokenizer
from tests.batching import (
    Probabilities,
    Tree,
    ask,
    bigram_bundle,
    bundle_of,
    drain,
    failures,
    replies,
    until_idle,
)
from tests.small import SMALL

END, AGENT = Tokenizer.end_id, Tokenizer.agent_id
MODES = ("greedy", "sample", "beam")


@pytest.fixture(scope="module")
def spellings(tiny_tokenizer: Tokenizer) -> Spellings:
    return Spellings(tiny_tokenizer)


def signs(text: str) -> str:
    """Without case, with one blank for white space."""
    return " ".join(text.casefold().replace("’", "'").split())


def said(phrases: Sequence[str], text: str) -> bool:
    """Whether a whole text holds a phrase as whole words, by a regular expression."""

    def bounded(phrase: str) -> str:
        left = r"(?<![^\W_])" if phrase[0].isalnum() else ""
        right = r"(?![^\W_])" if phrase[-1].isalnum() else ""
        return left + re.escape(phrase) + right

    whole = signs(text) + text[len(text.rstrip()) :]
    return any(re.search(bounded(signs(phrase)), whole) for phrase in phrases)


def spell(tokenizer: Tokenizer, ids: Sequence[int], *, final: bool = True) -> str:
    """The text of ids; if it is not ``final``, without a character that is not complete at its end."""
    spelling = b"".join(map(tokenizer.token_bytes, ids))
    return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(spelling, final)


def read(phrases: BlockList, ids: Sequence[int]) -> State:
    state = State()
    for token in ids:
        state = phrases.read(state, token)
    return state


PHRASES = st.lists(
    st.text("abé -'!", min_size=1, max_size=4).map(str.strip).filter(bool)
    | st.sampled_from(["latte", "green tea", "Zoë", "b a", "c++", "Björn's", "é", "1"]),
    max_size=4,
)
PIECES = st.sampled_from([*"aAbéÉ-'’!+c1 \n", "  ", "latte", "Tea", " Tea", "green"])


@settings(max_examples=60, deadline=None)
@given(PHRASES, st.lists(PIECES, max_size=6))
def test_exactly_the_tokens_that_complete_a_phrase_are_forbidden(
    tiny_tokenizer: Tokenizer, spellings: Spellings, phrases: list[str], pieces: list[str]
) -> None:
    """Every text that holds a phrase is cut off at its first token that makes sure of it, and not earlier."""
    index = ByteIndex(tiny_tokenizer)
    blocked = BlockList(phrases, spellings)
    ids: list[int] = []
    text = "".join(pieces).encode()
    while text:
        ids.append(index.longest(text if len(ids) % 2 else text[:1]))  # whole tokens and single bytes
        text = text[len(tiny_tokenizer.token_bytes(ids[-1])) :]
    for at in range(len(ids)):
        if ids[at] in blocked.forbidden(read(blocked, ids[:at])):
            ids = ids[:at]
            break
    state = read(blocked, ids)
    for left in range(4):
        forbidden = blocked.forbidden(state, left)
        assert (END in forbidden) == said(phrases, spell(tiny_tokenizer, ids))
        for token in range(len(SPECIALS), tiny_tokenizer.vocab_size):
            # Whatever comes next: also if the last word goes on, with a letter that no phrase has.
            sure = said(phrases, spell(tiny_tokenizer, [*ids, token], final=False) + "x")
            cut = said(phrases, spell(tiny_tokenizer, [*ids, token]))
            lost = cut and not way_out(b"".join(map(tiny_tokenizer.token_bytes, [*ids, token])), left)
            assert (token in forbidden) == (sure or lost), tiny_tokenizer.token_bytes(token)


LETTERS = [chr(code).encode() for code in range(0x40000) if chr(code).isalnum()]
MISSING = {letter[:n]: len(letter) - n for letter in LETTERS for n in range(1, len(letter))}
"""By what a letter may begin with, the bytes that come after."""


def way_out(spelling: bytes, left: int) -> bool:
    """Whether a text that ends with a phrase can go on with a letter in ``left`` tokens, of one byte each."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(spelling)
    rest = decoder.getstate()[0]
    return left >= (MISSING.get(rest, 9) if rest else 1)


@pytest.mark.parametrize(
    ("phrase", "text", "held"),
    [
        ("ass", "assist the class", False),
        ("ass", "my ass.", True),
        ("ass", "my ASS is", True),
        ("ass", "my ass", False),  # it may become assist
        ("shut up", "Shut  \n up!", True),
        ("shut up", "shut upstairs", False),
        ("don't", "I don’t ", True),
        ("STRASSE", "die Straße ", True),
        ("naïve", "na\u00efve.", True),
        ("nai\u0308ve", "na\u00efve.", True),
        ("c++", "in c++", True),
        ("c++", "in abc++", False),
        ("_x_", "a_x_b", True),
        ("\0", "\ufffd", True),
    ],
)
def test_what_counts_as_holding_a_phrase(spellings: Spellings, phrase: str, text: str, held: bool) -> None:
    assert BlockList([phrase], spellings).holds(text) is held


def test_a_text_is_shown_up_to_where_it_could_end(tiny_tokenizer: Tokenizer, spellings: Spellings) -> None:
    watch = Watch(BlockList(["latte"], spellings), max_tokens=20)
    ids = tiny_tokenizer.encode("a latte")
    assert watch.showable(ids) < len(ids)
    assert watch.showable([*ids, *tiny_tokenizer.encode("s")[-1:]]) == len(ids) + 1
    assert watch.showable([]) == 0


# ---- Replies -----------------------------------------------------------------------------------------------


def test_not_even_nonsense_holds_a_blocked_phrase(tiny_tokenizer: Tokenizer) -> None:
    """Words of one letter between bytes that are no text, cut off anywhere."""
    config = SMALL.model_copy(update={"vocab_size": tiny_tokenizer.vocab_size})
    bundle = bundle_of(Tree(config, range(4, 260), 0, sharpness=0.5), tiny_tokenizer)
    options = DecodingOptions.checked(
        {"decoding": "sample", "samples": 4, "n_best": 4, "max_tokens": 6, "blocked": [*"aeiouy123"]}
    )
    requests = [
        ReplyRequest(str(seed), (("user", "Hello"),), options.model_copy(update={"seed": seed}))
        for seed in range(150)
    ]
    for reply in replies(drain(Batcher(bundle, waiting=150), *requests)).values():
        for alternative in reply.alternatives:
            assert not said([*"aeiouy123"], alternative.text)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("longest", [3, 12])
def test_no_reply_holds_a_blocked_phrase(tiny_tokenizer: Tokenizer, mode: str, longest: int) -> None:
    """A model that says little else than the phrase, in every spelling there is."""
    index = ByteIndex(tiny_tokenizer)
    tokens = [*{index.longest(piece) for piece in (b"h", b"o", b"t", b" h", b" ", b"ot", b"!", b"s")}, END]
    config = SMALL.model_copy(update={"vocab_size": tiny_tokenizer.vocab_size})
    free, kept = 0, 0
    for seed in range(25):
        bundle = bundle_of(Tree(config, tokens, seed, sharpness=3.0), tiny_tokenizer)
        options = {"decoding": mode, "seed": seed, "max_tokens": longest, "n_best": 2}
        free += said(["hot", "h"], ask(bundle, DecodingOptions.checked(options)).text)
        reply = ask(bundle, DecodingOptions.checked({**options, "blocked": ["Hot", "h"]}))
        texts = [reply.text, *(alternative.text for alternative in reply.alternatives)]
        assert not any(said(["hot", "h"], text) for text in texts)
        kept += any("h" in text for text in texts)
    assert free
    assert kept or longest == 3


def test_what_is_shown_of_a_reply_could_always_be_all_of_it(tiny_tokenizer: Tokenizer) -> None:
    (name,) = tiny_tokenizer.encode("name")
    s = ByteIndex(tiny_tokenizer).longest(b"s")
    config = SMALL.model_copy(update={"vocab_size": tiny_tokenizer.vocab_size})
    plural: Probabilities = {AGENT: {name: 1.0}, name: {END: 0.9, s: 0.1}, s: {END: 1.0}}
    bundle = bigram_bundle(config, tiny_tokenizer, plural)
    options = DecodingOptions.checked({"blocked": ["name"]})
    batcher = Batcher(bundle)
    batcher.submit(ReplyRequest("whole", (("user", "Hello"),), options))
    assert batcher.step() == []
    assert batcher.step() == [Piece("whole", "names")]
    until_idle(batcher)
    batcher.submit(ReplyRequest("stopped", (("user", "Hello"),), options))
    batcher.step()
    batcher.cancel("stopped")
    (finished,) = batcher.step()
    assert isinstance(finished, Finished)
    assert finished.reply.text == ""


def test_a_prefix_may_not_hold_what_is_blocked(tiny_tokenizer: Tokenizer) -> None:
    config = SMALL.model_copy(update={"vocab_size": tiny_tokenizer.vocab_size})
    bundle = bigram_bundle(config, tiny_tokenizer, {AGENT: {END: 1.0}})
    options = {"blocked": ["latte"], "max_tokens": 20}

    def asked(name: str, prefix: str) -> ReplyRequest:
        return ReplyRequest(
            name, (("user", "Hello"),), DecodingOptions.checked({**options, "prefix": prefix})
        )

    events = drain(Batcher(bundle), asked("whole", "A Latte, please"), asked("open", "A latte"))
    assert failures(events)["whole"].field == "prefix"
    assert not said(["latte"], replies(events)["open"].text)
    assert replies(events)["open"].text.startswith("A latte")


def test_a_word_that_a_prefix_begins_does_not_grow_into_what_is_blocked(tiny_tokenizer: Tokenizer) -> None:
    beginning, name = (tiny_tokenizer.encode(text)[0] for text in ("na", "name"))
    config = SMALL.model_copy(update={"vocab_size": tiny_tokenizer.vocab_size})
    bundle = bigram_bundle(config, tiny_tokenizer, {AGENT: {name: 0.9, beginning: 0.1}})
    options = {"prefix": "na", "max_tokens": 1}
    assert ask(bundle, DecodingOptions.checked(options)).text == "name"
    assert ask(bundle, DecodingOptions.checked({**options, "blocked": ["name"]})).text == "na"


def test_block_lists_are_kept_for_the_next_reply_but_not_for_ever(tiny_tokenizer: Tokenizer) -> None:
    from chatbot.terms import Terms

    terms = Terms(tiny_tokenizer, 4)
    first = terms.grant(DecodingOptions(blocked=("one",))).blocked
    assert terms.grant(DecodingOptions(blocked=("one",))).blocked is first
    for number in range(20):
        terms.grant(DecodingOptions(blocked=(f"word {number}",)))
    assert terms.grant(DecodingOptions(blocked=("one",))).blocked is not first
