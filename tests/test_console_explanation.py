"""Why a reply came out as it did: attention by words, approved turns like it, verification."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import Engine, delete, insert, text, update

from chatbot.config import ModelConfig
from chatbot.model import Seq2Seq
from chatbot.model_directory import ModelBundle, load, seal
from chatbot.options import DecodingOptions
from chatbot.replies import Reply
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Role, Transcript, write_transcripts
from chatbot.turn_index import IndexBuilder, IndexedTurn, TurnIndex
from chatbot.turn_states import state_of, states_after
from server.console import words
from server.console.accounts import Identity
from server.console.bundles import Shelf
from server.console.explanation import Explainer, attended
from server.console.masking import Masker
from server.console.nearest import AT_ONCE, Gallery
from server.console.review import GivenVerdict, judge
from server.database import writing
from server.store import NewReply, Store
from server.tables import Conversation, ImportBatch, ImportedTranscript, Message, Verdict
from server.verify import make
from tests.console_client import TestConsole, console_over, run
from tests.models import seal_tiny
from tests.scripted_batcher import parrot
from tests.small import SMALL, orders
from tests.small import transcript as conversation_of
from training.index import index

ANN = Identity("ann", "ann", "reviewer")
NOTHING = Masker(kinds=()).mask


# --- words ------------------------------------------------------------------------------------------------


def test_tokens_read_as_the_text_and_words_as_its_words(tiny_tokenizer: Tokenizer) -> None:
    said = "Zoë's latte — 中文 ☕, please!  \nThanks"
    tokens = tiny_tokenizer.encode(said)
    parts = words.texts(tiny_tokenizer, tokens)
    assert len(parts) == len(tokens)
    assert "".join(parts) == tiny_tokenizer.decode(tokens)
    pieces = words.masked(parts, NOTHING)
    assert [piece.text for piece in pieces] == parts
    found = words.words(pieces)
    assert [word.text for word in found] == tiny_tokenizer.decode(tokens).split()
    assert [token for word in found for token in word.tokens] == list(range(len(tokens)))


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("mail bob@example.org or me", ["mail", "[email]", "or", "me"]),
        ("bob@example.org", ["[email]"]),
        ("I am Ann, or ann@example.org.", ["I", "am", "[name],", "or", "[email]."]),
        ("e m a i l bob@example.org l", ["e", "m", "a", "i", "l", "[email]", "l"]),
        ("a literal [email] Ann", ["a", "literal", "[email]", "[name]"]),
        ("Ann Ann Ann", ["[name]", "[name]", "[name]"]),
    ],
)
def test_what_is_masked_is_masked_in_every_piece(
    tiny_tokenizer: Tokenizer, said: str, shown: list[str]
) -> None:
    mask = Masker(["Ann"]).mask
    parts = words.texts(tiny_tokenizer, tiny_tokenizer.encode(said))
    pieces = words.masked(parts, mask)
    assert "".join(piece.text for piece in pieces) == mask(said)
    assert [token for piece in pieces for token in piece.tokens] == list(range(len(parts)))
    assert [word.text for word in words.words(pieces)] == shown


def test_tokens_that_are_none_and_half_a_character_do_no_harm(tiny_tokenizer: Tokenizer) -> None:
    half = tiny_tokenizer.encode("☕")[:-1]
    assert words.texts(tiny_tokenizer, [10**6, -1]) == ["", ""]
    assert "".join(words.texts(tiny_tokenizer, half)) == tiny_tokenizer.decode(half)
    assert words.words([]) == words.masked([], NOTHING) == []


# --- attention --------------------------------------------------------------------------------------------

SHAPES: dict[str, dict[str, Any]] = {
    "as it ships": {},
    "last turn": {"encoder": "last_turn"},
    "continuous": {"encoder": "continuous", "bidirectional": False},
    "window": {"encoder": "window"},
    "reversed": {"reverse_input": True},
}
SAID: list[tuple[Role, str]] = [
    ("user", "Hello there, good morning"),
    ("agent", "Hello, what can I get you?"),
    ("user", "A large mocha, please."),
]


def bundle_of(folder: Path, tokenizer: Tokenizer, **shape: Any) -> ModelBundle:
    """An untrained model of that shape."""
    torch.manual_seed(3)
    config = ModelConfig.model_validate({**SMALL.model_dump(), "vocab_size": tokenizer.vocab_size, **shape})
    defaults = DecodingOptions(max_tokens=12, min_tokens=8)
    model = Seq2Seq(config).eval()
    seal(folder, model=model, tokenizer=tokenizer, defaults=defaults, metrics={}, card="# Shape\n")
    return load(folder)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_is_told_of_the_tokens_that_were_looked_at(
    tmp_path: Path, tiny_tokenizer: Tokenizer, shape: str
) -> None:
    """Against what decoding itself tells when it is asked for."""
    bundle = bundle_of(tmp_path / "model", tiny_tokenizer, **SHAPES[shape])
    reply = make(
        bundle, SAID, DecodingOptions.merged(bundle.defaults, {"attention": True, "decoding": "greedy"})
    )
    assert reply is not None
    assert reply.attention is not None
    ids = tiny_tokenizer.encode_turns(SAID)
    found = attended(bundle, ids, reply.token_ids)
    assert found is not None
    tokens = [ids[turn][place] for turn, place in found.places]
    ages = [len(SAID) - 1 - turn for turn, _ in found.places]
    assert tokens == [token.id for token in reply.attention.remembered]
    assert ages == [token.age for token in reply.attention.remembered]
    assert np.allclose(found.weights, np.array(reply.attention.weights), atol=1e-5)


def test_without_attention_there_is_none(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    bundle = bundle_of(tmp_path / "model", tiny_tokenizer, attention="none", copying=False)
    assert attended(bundle, tiny_tokenizer.encode_turns(SAID), [5, 6]) is None


# --- a reply ----------------------------------------------------------------------------------------------


class Desk:
    """Conversations in which a real model answers, and who explains them."""

    def __init__(self, db: Engine, models: Path, indexes: Path) -> None:
        self.db = db
        self.indexes = indexes
        self.store = Store(db)
        self.shelf = Shelf(models)
        self.bundle = load(models)
        self.explainer = Explainer(db, self.shelf, indexes, seconds=20)

    def talk(self, *said: str, **options: Any) -> tuple[str, list[str]]:
        """A conversation and its replies."""
        conversation = self.store.open_conversation(self.store.new_visitor().visitor_id)
        return conversation, [self.say(conversation, text, **options) for text in said]

    def say(self, conversation: str, said: str, **options: Any) -> str:
        number = str(self.store.last_seq(conversation))
        turn = self.store.add_user_turn(conversation, number, said, {}).message_id
        chosen = DecodingOptions.merged(self.bundle.defaults, {"seed": 3, "min_tokens": 8, **options})
        made = make(self.bundle, self.store.history(conversation, answering=turn), chosen)
        assert made is not None
        return self.store.add_reply(conversation, kept(self.bundle, turn, made, chosen)).message_id

    def explain(self, message: str, mask: words.Mask = NOTHING) -> dict[str, Any]:
        found = self.explainer.explain(message, mask, self.bundle.fingerprint)
        assert found is not None
        return found.model_dump()

    def judge(self, message: str, **given: Any) -> None:
        judge(self.db, ANN, message, GivenVerdict(**{"verdict": "good", **given}), 4000)


def kept(bundle: ModelBundle, turn: str, made: Reply, options: DecodingOptions) -> NewReply:
    return NewReply(
        reply_id=f"r{turn}",
        answers=turn,
        text=made.text.replace("\0", "\N{REPLACEMENT CHARACTER}"),
        finish_reason=made.finish_reason,
        model=bundle.fingerprint,
        options=options.model_dump(),
        seed=made.seed,
        token_ids=made.token_ids,
        logprobs=made.logprobs,
        alternatives=(),
        queued_ms=0.0,
        first_token_ms=0.0,
        total_ms=0.0,
    )


@pytest.fixture
def desk(engine: Engine, tiny_model_dir: Path, tmp_path: Path) -> Desk:
    return Desk(engine, tiny_model_dir, tmp_path / "indexes")


def test_a_reply_is_verified_and_its_attention_told_by_words(desk: Desk) -> None:
    _, (_, reply) = desk.talk("Hello there, good morning", "A large mocha, please.")
    found = desk.explain(reply)
    assert found["verify"] | {"outcome": "exact", "reason": ""} == found["verify"]
    assert found["verify"]["difference"] < 1e-3
    shown = found["attention"]
    last = shown["source"][-1]
    assert (last["turn"], last["role"], last["words"]) == (3, "user", ["A", "large", "mocha,", "please."])
    assert [turn["turn"] for turn in shown["source"]] == sorted(turn["turn"] for turn in shown["source"])
    columns = sum(len(turn["words"]) for turn in shown["source"])
    weights = np.array(shown["weights"])
    assert weights.shape == (len(shown["words"]), columns)
    assert (weights >= 0).all()
    sums = weights.sum(1)
    assert ((sums > 0.3) & (sums <= 1.001)).all(), "all but what the marks of turns got"
    assert desk.explain(reply) == found


def test_a_word_is_looked_at_as_much_as_its_tokens_and_looks_as_they_do_on_average(desk: Desk) -> None:
    conversation, (reply,) = desk.talk("espresso Björn")
    shown = desk.explain(reply)["attention"]
    logged = next(m for m in desk.explainer._verifier.logged(conversation) if m.id == reply)
    ids = desk.bundle.tokenizer.encode_turns([("user", "espresso Björn")])
    tokens = [token for token in logged.made.token_ids if token > 3]
    raw = attended(desk.bundle, ids, tokens)
    assert raw is not None
    assert shown["source"] == [{"turn": 1, "role": "user", "words": ["espresso", "Björn"]}]
    assert len(ids[0]) > 4, "words of several tokens, or this says nothing"
    sizes = [len(desk.bundle.tokenizer.encode(word)) for word in ("espresso", "Björn")]
    first = raw.weights[:, 1 : 1 + sizes[0]].sum(1)
    groups = words.words(words.masked(words.texts(desk.bundle.tokenizer, tokens), NOTHING))
    expected = [first[list(group.tokens)].mean() for group in groups]
    assert np.allclose([row[0] for row in shown["weights"]], expected, atol=1e-4)


def test_a_false_log_a_lost_model_and_a_person_are_told_apart(desk: Desk) -> None:
    _, (false, lost, person) = desk.talk("Hello", "A latte, please", "small")
    with writing(desk.db) as connection:
        connection.execute(
            text("UPDATE generation SET logprobs = :w WHERE message_id = :m"),
            {"w": str([-0.1] * 64), "m": false},
        )
        connection.execute(
            text("UPDATE generation SET model = 'tw-0000000000000000' WHERE message_id = :m"), {"m": lost}
        )
        connection.execute(text("DELETE FROM generation WHERE message_id = :m"), {"m": person})
        connection.execute(update(Message).where(Message.id == person).values(operator_id="ann"))
    assert desk.explain(false)["verify"]["outcome"] == "mismatch"
    found = desk.explain(lost)
    assert (found["verify"]["outcome"], found["attention"], found["nearest"]) == ("unknown", None, [])
    assert "not there" in found["verify"]["reason"]
    assert str(desk.shelf.directory) not in str(found)
    assert desk.explain(person)["verify"]["outcome"] == "unknown"
    assert desk.explain(person)["attention"] is None


def test_a_user_turn_and_an_unknown_message_have_no_explanation(desk: Desk) -> None:
    conversation, _ = desk.talk("Hello")
    said = desk.store.messages(conversation)[0].message_id
    for wrong in (said, "nobody", "\0", "\ud800"):
        assert desk.explainer.explain(wrong, NOTHING, desk.bundle.fingerprint) is None


def test_an_explanation_is_masked_for_whom_it_must_be_also_from_the_cache(desk: Desk) -> None:
    _, (reply,) = desk.talk("I am Chidi, chidi@example.org")
    desk.judge(reply, corrected="Hello Chidi")
    _, (other,) = desk.talk("I am Chidi, chidi@example.org ")
    plain = desk.explain(other)
    assert "chidi@example.org" in str(plain["attention"])
    assert "Hello Chidi" in str(plain["nearest"])
    masked = desk.explain(other, Masker(["chidi"]).mask)
    assert "chidi" not in str(masked).lower()
    assert masked["attention"]["source"][0]["words"] == ["I", "am", "[name],", "[email]"]
    assert np.array(masked["attention"]["weights"]).sum() == pytest.approx(
        np.array(plain["attention"]["weights"]).sum(), abs=0.01
    )
    assert desk.explain(other) == plain


def test_what_is_cut_off_from_a_long_turn_is_not_shown_by_half(desk: Desk) -> None:
    """Half an address is not known as one."""
    for filler in range(4, 24):
        said = "a " * filler + "chidi@example.org and more"
        _, (reply,) = desk.talk(said)
        shown = desk.explain(reply, Masker().mask)["attention"]["source"][0]["words"]
        assert "".join(shown).strip("a") in ("", "[email]", "[email]and", "[email]andmore"), filler


def test_a_model_is_found_among_many_by_its_fingerprint(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    names = [seal_tiny(tmp_path / str(seed), tiny_tokenizer, seed) for seed in (1, 2, 3)]
    (tmp_path / "2" / "model.safetensors").write_bytes(b"broken")
    (tmp_path / "empty").mkdir()
    shelf = Shelf(tmp_path, keep=1)
    first = shelf.bundle(names[0])
    assert first is not None
    assert first.fingerprint == names[0]
    assert shelf.bundle(names[0]) is first
    assert shelf.bundle(names[1]) is None, "not as it was sealed"
    third = shelf.bundle(names[2])
    assert third is not None
    assert third.fingerprint == names[2]
    assert shelf.bundle(names[0]) is not first, "one is kept"
    assert shelf.tokenizer(names[2]) is third.tokenizer, "of tokenizers more"
    assert shelf.bundle("tw-0000000000000000") is None
    assert Shelf(tmp_path / "nowhere").bundle(names[0]) is None


# --- nearest ----------------------------------------------------------------------------------------------


def nearest(desk: Desk, message: str) -> list[tuple[str, str, bool, str | None]]:
    return [
        (n["text"], n["reply"], n["corrected"], n["conversation"]) for n in desk.explain(message)["nearest"]
    ]


def test_the_nearest_are_approved_turns_by_likeness_and_never_the_reply_itself(desk: Desk) -> None:
    _, (asked,) = desk.talk("A large mocha, please.")
    corrected_in, (corrected,) = desk.talk("A large mocha, please!")
    good_in, (good,) = desk.talk("Zoë")
    _, (bad,) = desk.talk("A large mocha , please.")
    desk.talk("A large mocha, please.")
    desk.judge(asked)
    desk.judge(corrected, verdict="bad", corrected="One large mocha.")
    desk.judge(good)
    desk.judge(bad, verdict="bad")
    found = desk.explain(asked)
    assert found["compared"] == 3
    assert [(n["text"], n["corrected"], n["conversation"]) for n in found["nearest"]] == [
        ("A large mocha, please!", True, corrected_in),
        ("Zoë", False, good_in),
    ]
    assert found["nearest"][0]["reply"] == "One large mocha."
    similar, other = (n["similarity"] for n in found["nearest"])
    assert 1.0001 > similar > other > -1


def test_what_is_judged_otherwise_taken_back_or_erased_is_not_shown_again(desk: Desk) -> None:
    _, (asked,) = desk.talk("A large mocha, please.")
    _, (one,) = desk.talk("A small mocha, please.")
    gone, (two,) = desk.talk("A medium mocha, please.")
    for reply in (one, two):
        desk.judge(reply)
    assert {found[0] for found in nearest(desk, asked)} == {
        "A small mocha, please.",
        "A medium mocha, please.",
    }
    desk.judge(one, verdict="bad", corrected="Which size?")
    with writing(desk.db) as connection:
        connection.execute(delete(Conversation).where(Conversation.id == gone))
    assert [found[:3] for found in nearest(desk, asked)] == [("A small mocha, please.", "Which size?", True)]
    desk.judge(one, verdict="bad")
    assert nearest(desk, asked) == []
    desk.judge(one)
    assert len(nearest(desk, asked)) == 1
    with writing(desk.db) as connection:
        connection.execute(delete(Verdict))
    assert nearest(desk, asked) == []


def test_operators_and_imported_transcripts_are_among_them(desk: Desk) -> None:
    _, (asked,) = desk.talk("A large mocha, please.")
    taken, _ = desk.talk("A large mocha please")
    with writing(desk.db) as connection:
        row = {
            "id": "spoken", "conversation_id": taken, "seq": 3, "role": "agent", "text": "Right away!",
            "created_at": datetime.now(UTC), "superseded": False, "operator_id": "ann",
        }  # fmt: skip
        connection.execute(insert(Message).values(row))
        connection.execute(update(Conversation).where(Conversation.id == taken).values(owner_version=1))
    transcript(
        desk.db,
        "b1",
        [("user", "A large latte, please."), ("agent", "Sure."), ("agent", "And?"), ("user", "x")],
    )
    found = nearest(desk, asked)
    assert set(found) == {
        ("A large mocha please", "Right away!", False, taken),
        ("A large latte, please.", "Sure.", False, None),
    }
    with writing(desk.db) as connection:
        connection.execute(delete(ImportBatch))
    assert [each[1] for each in nearest(desk, asked)] == ["Right away!"]
    assert nearest(desk, "spoken") == [], (
        "what an operator said is explained too, and is not its own neighbour"
    )


# --- the files that a model was trained on ----------------------------------------------------------------


def learned(desk: Desk, *transcripts: Transcript, name: str = "old.jsonl") -> Path:
    """The index of a file that the model was trained on, for all that anybody knows."""
    desk.indexes.mkdir(exist_ok=True)
    write_transcripts(desk.indexes.parent / name, transcripts)
    out = desk.indexes / f"{name}.safetensors"
    index(desk.bundle, [desk.indexes.parent / name], out)
    return out


def test_the_nearest_are_sought_in_the_training_files_too_and_say_where_they_are_from(desk: Desk) -> None:
    _, (asked,) = desk.talk("A large mocha, please.")
    assert desk.explain(asked)["compared"] == 0
    good_in, (good,) = desk.talk("A large mocha, please!")
    desk.judge(good)
    transcript(desk.db, "b1", [("user", "A large latte, please."), ("agent", "Sure.")])
    old = conversation_of("Hello!", "Hello, what can I get you?", "A mocha", "Which size?", name="t7")
    again = conversation_of("Hello!", "hello, what can I get you? ", name="t8")
    learned(desk, old, again, conversation_of("A large mocha, please. ", "Coming.", name="t9"))
    found = desk.explain(asked)
    assert found["compared"] == 2 + 4
    sources = {
        n["reply"].casefold().strip(): [
            n[key] for key in ("source", "conversation", "file", "transcript", "turn")
        ]
        for n in found["nearest"]
    }
    said = next(m.text for m in desk.store.messages(good_in) if m.message_id == good)
    assert sources == {
        said.casefold().strip(): ["review", good_in, None, None, None],
        "sure.": ["import", None, "f", "b1", 1],
        "coming.": ["training", None, "old.jsonl", "t9", 1],
        "which size?": ["training", None, "old.jsonl", "t7", 3],
        "hello, what can i get you?": [
            "training",
            None,
            "old.jsonl",
            sources["hello, what can i get you?"][3],
            1,
        ],
    }
    assert [n["similarity"] for n in found["nearest"]] == sorted(
        (n["similarity"] for n in found["nearest"]), reverse=True
    )
    assert found["nearest"][0]["reply"] in ("Coming.", said)


def test_of_two_alike_the_one_with_a_conversation_is_shown(desk: Desk) -> None:
    _, (asked,) = desk.talk("A large mocha, please.")
    talk, (good,) = desk.talk("Zoë")
    desk.judge(good, verdict="bad", corrected="Thanks, Zoë.")
    learned(desk, conversation_of("Zoë", "Thanks, Zoë."))
    assert [(n["source"], n["conversation"]) for n in desk.explain(asked)["nearest"]] == [("review", talk)]


def test_many_copies_of_one_turn_do_not_hide_the_others(desk: Desk) -> None:
    _, (asked,) = desk.talk("Hello!")
    greetings = [conversation_of("Hello!", "Hi, what can I get you?", name=f"g{n}") for n in range(100)]
    learned(desk, *greetings, conversation_of("Zoë", "Thanks, Zoë.", name="z"))
    assert [n["text"] for n in desk.explain(asked)["nearest"]] == ["Hello!", "Zoë"]


def test_the_texts_of_training_files_are_masked_and_so_are_names_of_transcripts(desk: Desk) -> None:
    _, (asked,) = desk.talk("A large mocha, please.")
    learned(desk, conversation_of("I am Chidi", "Mail chidi@example.org", name="chidi@example.org 1"))
    [plain] = desk.explain(asked)["nearest"]
    assert plain["transcript"] == "chidi@example.org 1"
    [masked] = desk.explain(asked, Masker(["chidi"]).mask)["nearest"]
    assert [masked[key] for key in ("text", "reply", "transcript")] == [
        "I am [name]",
        "Mail [email]",
        "[email] 1",
    ]
    assert [plain] == desk.explain(asked)["nearest"]


def test_an_index_that_cannot_be_used_is_told_once_and_the_rest_goes_on(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    _, (asked,) = desk.talk("A large mocha, please.")
    good = learned(desk, *orders(3))
    broken = desk.indexes / "broken.safetensors"
    broken.write_bytes(good.read_bytes()[:-1])
    (desk.indexes / ".aside.safetensors").write_bytes(b"half")
    seal_tiny(tmp_path / "another", tiny_tokenizer, seed=9)
    index(load(tmp_path / "another"), [tmp_path / "old.jsonl"], desk.indexes / "another.safetensors")
    narrow().write(desk.indexes / "narrow.safetensors", desk.bundle.fingerprint, 1)
    first = desk.explain(asked)
    assert first["compared"] == len(TurnIndex(good))
    assert {n["source"] for n in first["nearest"]} == {"training"}
    assert refused(caplog) == {
        "broken.safetensors": "it is not a whole safetensors file",
        "narrow.safetensors": "its states have 3 numbers, the model's 12",
    }
    caplog.clear()
    assert desk.explain(asked) == first
    assert refused(caplog) == {}
    broken.write_bytes(b"other")
    assert desk.explain(asked) == first
    assert [*refused(caplog)] == ["broken.safetensors"], "it is another one now"
    good.unlink()
    assert desk.explain(asked)["compared"] == 0


def narrow() -> IndexBuilder:
    builder = IndexBuilder(1, ["a.jsonl"])
    builder.add(np.ones((1, 3), np.float32), [IndexedTurn("a.jsonl", "t", 1, "q", "r")])
    return builder


def refused(caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    records = [record for record in caplog.records if record.getMessage() == "index_refused"]
    return {record.fields["index"]: record.fields["reason"] for record in records}  # type: ignore[attr-defined]


# --- beside them ------------------------------------------------------------------------------------------


def transcript(db: Engine, batch: str, turns: Sequence[tuple[str, str]]) -> None:
    form = {"id": batch, "turns": [{"role": role, "text": said} for role, said in turns]}
    with writing(db) as connection:
        row = {
            "name": "f",
            "sha256": batch,
            "operator_id": "ann",
            "created_at": datetime.now(UTC),
            "conversations": 1,
        }
        connection.execute(insert(ImportBatch).values(id=batch, **row))
        connection.execute(insert(ImportedTranscript).values(batch_id=batch, number=1, transcript=form))


def test_a_gallery_grows_for_a_bounded_time_newest_first_and_holds_so_many(desk: Desk) -> None:
    replies = [desk.talk(f"order {number}")[1][0] for number in range(100)]
    now = datetime.now(UTC)
    with writing(desk.db) as connection:
        for age, reply in enumerate(replies):
            row = {"verdict": "good", "labels": [], "operator_id": "ann", "created_at": now}
            moment = now - timedelta(minutes=age)
            connection.execute(insert(Verdict).values(message_id=reply, updated_at=moment, **row))
    ticks = iter(range(1000))
    gallery = Gallery(desk.db, desk.bundle, clock=lambda: float(next(ticks)))
    gallery.grow(seconds=1)
    assert (len(gallery), gallery.complete) == (AT_ONCE, False)
    state = state_of(desk.bundle, [[("user", "order 5")]])[0]
    assert gallery.find(state)[0].text == "order 5"
    assert all(int(found.text.split()[1]) < AT_ONCE for found in gallery.find(state, 20))
    gallery.grow(seconds=50)
    assert (len(gallery), gallery.complete) == (100, True)
    small = Gallery(desk.db, desk.bundle, most=40)
    small.grow(60)
    assert (len(small), small.complete) == (40, True)
    newest = desk.talk("order 1000")[1][0]
    desk.judge(newest)
    small.grow(60)
    assert len(small) == 40
    assert "order 1000" in {found.text for found in small.find(state, 40)}


@pytest.mark.parametrize("shape", [*SHAPES, "lstm"])
def test_states_do_not_depend_on_what_they_are_worked_out_beside(
    tmp_path: Path, tiny_tokenizer: Tokenizer, shape: str
) -> None:
    bundle = bundle_of(tmp_path / "model", tiny_tokenizer, **SHAPES.get(shape, {"cell": "lstm"}))
    other: list[tuple[Role, str]] = [("user", "Hi there")]
    both, alone = state_of(bundle, [SAID, other]), state_of(bundle, [SAID])
    assert np.allclose(both[0], alone[0], atol=1e-6)
    assert np.allclose(np.linalg.norm(both, axis=1), 1, atol=1e-5)
    assert not np.allclose(both[0], both[1], atol=1e-3)


def test_states_along_a_conversation_are_those_of_its_beginnings(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    bundle = bundle_of(tmp_path / "model", tiny_tokenizer)
    other: list[tuple[Role, str]] = [("user", "Hi there")]
    first, second = states_after(bundle, [[SAID[:1], SAID[1:]], [other]])
    assert np.allclose(first, state_of(bundle, [SAID[:1], other]), atol=1e-6)
    assert np.allclose(second, state_of(bundle, [SAID, other]), atol=1e-6)


def test_a_language_model_has_no_states(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    shape = {"encoder": "none", "attention": "none", "copying": False}
    bundle = bundle_of(tmp_path / "model", tiny_tokenizer, **shape)
    assert state_of(bundle, [SAID]).shape == (1, 0)


# --- over HTTP --------------------------------------------------------------------------------------------


def test_over_http_on_a_thread_of_its_own(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        reviewer, admin = await console.sign_in("reviewer"), await console.sign_in("admin")
        desk = Desk(console.db, tiny_model_dir, tmp_path / "indexes")
        _, (reply,) = desk.talk("I am bob@example.org <b>")
        path = f"/api/operator/messages/{reply}/explanation"
        answer = await admin.get(path)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.json()["attention"]["source"][0]["words"] == ["I", "am", "bob@example.org", "<b>"]
        assert answer.json()["verify"]["outcome"] == "exact"
        for masked in (await reviewer.get(path), await admin.get(path, params={"mask": "true"})):
            assert masked.json()["attention"]["source"][0]["words"] == ["I", "am", "[email]", "<b>"]
        assert (await admin.get(path, params={"mask": "perhaps"})).status_code == 400

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)
