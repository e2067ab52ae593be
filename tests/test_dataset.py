"""What is learned of a review, what the clean-up keeps out, and that all of it is accounted for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.transcripts import Transcript, write_transcripts
from tests.small import orders
from training.dataset import DataConfig, Dataset, NothingReviewed, ReviewError, Sources, build
from training.filters import FilterConfig, bands, entropies, is_foreign, is_loop, mask, secrets_in

MODEL = "model:tw-0123456789abcdef"
ALL = DataConfig(held_out=0.0, replay_ratio=0.0, replay_least=0)


def chat(name: str, question: str, reply: str, visitor: str | None = None, **turn: Any) -> Transcript:
    turns = [{"role": "user", "text": question}, {"role": "agent", "text": reply, **turn}]
    line: dict[str, Any] = {"id": name, "turns": turns}
    return Transcript.model_validate(line | ({"visitor": visitor} if visitor else {}))


GOOD = chat("fine", "Where are you?", "Opposite the station.", author=MODEL, verdict="good")


class Files:
    """Writes parts into a directory and builds a dataset of them."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def write(self, part: str, lines: list[Transcript]) -> list[Path]:
        write_transcripts(self.place / f"{part}.jsonl", lines)
        return [self.place / f"{part}.jsonl"]

    def build(
        self,
        reviewed: list[Transcript],
        *,
        replay: list[Transcript] | None = None,
        imported: list[Transcript] | None = None,
        dev: list[Transcript] | None = None,
        data: DataConfig = ALL,
        filters: FilterConfig | None = None,
        canaries: int = 0,
    ) -> Dataset:
        sources = Sources(
            reviewed=self.write("reviewed", reviewed),
            replay=self.write("replay", replay or []),
            imported=self.write("imported", imported or []),
            dev=self.write("dev", dev or []),
        )
        return build(sources, data, filters or FilterConfig(), "tw-base", canaries)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def learned(dataset: Dataset) -> dict[str, float]:
    """Every reply that is learned, with its weight."""
    return {
        turn.text: turn.weight
        for t in dataset.train
        for turn in t.turns
        if turn.role == "agent" and turn.weight
    }


@pytest.mark.parametrize(
    ("turn", "weight"),
    [
        ({"author": MODEL, "corrected": "At ten."}, 16.0),
        ({"author": MODEL, "corrected": "At ten.", "verdict": "bad", "labels": ["wrong fact"]}, 16.0),
        ({"author": MODEL, "corrected": "At ten.", "weight": 0.5}, 8.0),
        ({"author": "operator:7"}, 16.0),
        ({"author": MODEL, "verdict": "good"}, 4.0),
        ({"author": MODEL, "corrected": "at nine"}, 4.0),
        ({}, 2.0),
        ({"author": MODEL}, None),
        ({"author": MODEL, "rating": "up"}, None),
        ({"author": MODEL, "reviewed": True}, None),
        ({"author": MODEL, "verdict": "bad"}, None),
        ({"author": "operator:7", "verdict": "bad"}, None),
        ({"author": MODEL, "verdict": "good", "weight": 0}, None),
    ],
)
def test_what_a_review_is_worth(files: Files, turn: dict[str, Any], weight: float | None) -> None:
    found = learned(files.build([GOOD, chat("a", "When do you open?", "At nine.", **turn)]))

    text = "At ten." if turn.get("corrected") == "At ten." else "At nine."
    assert found.pop("Opposite the station.") == 4.0
    assert found == ({} if weight is None else {text: weight})


@pytest.mark.parametrize(
    ("was", "corrected"),
    [
        ("It costs $5.", "It costs €5."),
        ("10 off", "10 % off"),
        ("Thanks \N{SLIGHTLY SMILING FACE}", "Thanks \N{HEAVY BLACK HEART}"),
        ("\u0915\N{DEVANAGARI VOWEL SIGN I}", "\u0915\N{DEVANAGARI VOWEL SIGN II}"),
    ],
)
def test_a_sign_can_be_all_that_was_wrong(files: Files, was: str, corrected: str) -> None:
    dataset = files.build([chat("a", "How much?", was, author=MODEL, verdict="bad", corrected=corrected)])
    assert learned(dataset) == {corrected: 16.0}


def test_bot_text_is_read_as_context_and_a_correction_takes_its_place(files: Files) -> None:
    said: list[dict[str, Any]] = [
        {"role": "user", "text": "Hello"},
        {"role": "agent", "text": "Hi, I am a bot.", "author": MODEL},
        {"role": "user", "text": "When do you open?"},
        {"role": "agent", "text": "Never.", "author": MODEL, "corrected": "At ten."},
    ]
    dataset = files.build([Transcript.model_validate({"id": "a", "turns": said})])

    (kept,) = dataset.train
    assert [(turn.text, turn.weight) for turn in kept.turns if turn.role == "agent"] == [
        ("Hi, I am a bot.", 0.0),
        ("At ten.", 16.0),
    ]
    (correction,) = dataset.corrections
    assert correction.was.turns[-1].text == "Never."
    assert correction.corrected.turns[-1].text == "At ten."
    assert [turn.text for turn in correction.was.turns[:-1]] == [
        "Hello",
        "Hi, I am a bot.",
        "When do you open?",
    ]


@pytest.mark.parametrize(
    ("role", "keys", "reason"),
    [
        ("agent", {"verdict": "fine"}, "verdict"),
        ("agent", {"corrected": ""}, "corrected"),
        ("agent", {"corrected": 7}, "corrected"),
        ("agent", {"labels": "wrong"}, "labels"),
        ("user", {"verdict": "bad"}, "only an agent's turn"),
    ],
)
def test_a_review_that_cannot_be_understood_is_named(
    files: Files, role: str, keys: dict[str, Any], reason: str
) -> None:
    line = {"id": "a", "turns": [{"role": "user", "text": "Hi"}, {"role": role, "text": "Hello", **keys}]}

    with pytest.raises(ReviewError, match=rf"reviewed\.jsonl: conversation 'a', turn 1: .*{reason}"):
        files.build([Transcript.model_validate(line)])


def test_nothing_to_learn_is_an_error(files: Files) -> None:
    with pytest.raises(NothingReviewed):
        files.build([chat("a", "Hello", "Hi", author=MODEL)])


# ---- Clean-up --------------------------------------------------------------------------------------


def test_contradicting_corrections_are_not_learned_and_both_reported(files: Files) -> None:
    lines = [
        GOOD,
        chat("a", "When do you open?", "Never.", author=MODEL, corrected="At nine."),
        chat("b", "when do you open", "Never.", author=MODEL, corrected="At ten."),
        chat("c", "Do you deliver?", "No.", author=MODEL, corrected="Yes, we do."),
        chat("d", "Do you deliver?", "No.", author=MODEL, verdict="good"),
        chat("e", "Can I pay by card?", "What?", author=MODEL, corrected="Yes, with any card."),
        chat("f", "can I pay by card?", "Hm.", author=MODEL, corrected="Yes, with any card!"),
    ]
    dataset = files.build(lines)

    assert set(learned(dataset)) == {"Opposite the station.", "Yes, with any card.", "Yes, with any card!"}
    assert [[each["id"] for each in group] for group in dataset.manifest["contradictions"]] == [
        ["a", "b"],
        ["c", "d"],
    ]
    assert dataset.counts["reply: contradiction"] == 4


def test_one_visitor_cannot_flood(files: Files) -> None:
    flood = [
        chat(
            str(n),
            f"buy pills now {n}",
            "Buy pills at pills dot example!",
            "mallory",
            author=MODEL,
            verdict="good",
        )
        for n in range(10_000)
    ]
    dataset = files.build([GOOD, *flood])

    assert len(dataset.train) == 1 + FilterConfig().alike
    assert dataset.counts["reply: nearly the same from one visitor"] == 10_000 - FilterConfig().alike


def test_what_one_visitor_teaches_is_bounded_however_varied(files: Files) -> None:
    varied = [
        chat(str(n), f"{text} {text[::-1]}", f"{text[::-1]} {text}", "mallory", author=MODEL, verdict="good")
        for n, text in enumerate(
            "".join(chr(97 + n * k % 26) for k in range(1, 12)) + str(n) for n in range(200)
        )
    ]
    dataset = files.build([GOOD, *varied], filters=FilterConfig(visitor_replies=10))

    assert len(dataset.train) <= 11
    assert dataset.counts["reply: too much from one visitor"] > 0


def test_others_may_ask_the_same(files: Files) -> None:
    lines = [
        chat(str(n), f"When do you open? {'Hi ' * n}", "What?", f"v{n}", author=MODEL, corrected="At ten.")
        for n in range(12)
    ]

    assert len(files.build(lines).train) == 12


def test_generic_replies_are_bounded_but_not_what_people_wrote(files: Files) -> None:
    questions = [f"What about the {n} and {n * 7 % 61}?" for n in range(80)]
    imported = [chat(f"i{n}", text, "I do not know.") for n, text in enumerate(questions)]
    reviewed = [
        chat(f"r{n}", f"{text} Well?", "Hm.", author=MODEL, corrected="Please ask at the desk.")
        for n, text in enumerate(questions)
    ]
    dataset = files.build(reviewed, imported=imported)

    texts = Counter(turn.text for t in dataset.train for turn in t.turns if turn.role == "agent")
    assert texts == {"I do not know.": FilterConfig().generic_keep, "Please ask at the desk.": 80}
    assert dataset.counts["reply: generic"] == 80 - FilterConfig().generic_keep


def test_duplicates_loops_foreign_and_held_out_conversations(files: Files) -> None:
    imported = [
        chat("a", "When do you open?", "At nine."),
        chat("b", "When do you  open?", "at nine."),
        chat("c", "Hello", "go go go go away"),
        chat("d", "Wann habt ihr auf?", "Wir öffnen um neun, und das ist für alle zu sehen."),
        chat("e", "Do you deliver?", "Yes."),
    ]
    dataset = files.build([GOOD], imported=imported, dev=[imported[4]], filters=FilterConfig(language="en"))

    assert set(learned(dataset)) == {"Opposite the station.", "At nine."}
    assert dataset.counts["conversation: duplicate"] == 2
    assert dataset.counts["conversation: foreign language"] == 1
    assert dataset.counts["reply: loop"] == 1


def test_personal_data_is_masked_and_public_numbers_stay(files: Files) -> None:
    hotline = "Call 0800 123 45 67 89."
    imported = [chat(str(n), f"Question {text}", hotline) for n, text in enumerate(("one", "two", "three"))]
    imported.append(
        chat(
            "p",
            "I am ann@example.org, card 4111 1111 1111 1111",
            "Noted, ann@example.org, +49 228 555 123 4.",
        )
    )
    dataset = files.build([GOOD], imported=imported)

    texts = [turn.text for t in dataset.train for turn in t.turns]
    assert texts.count(hotline) == 3
    assert "I am [email], card [card]" in texts
    assert "Noted, [email], [phone]." in texts
    assert dataset.counts["email masked"] == 2
    assert dataset.counts["card masked"] == 1


def test_old_data_no_longer_teaches_what_was_corrected(files: Files) -> None:
    reviewed = [
        chat(str(n), f"Thanks {text}!", "Thank you and goodbye.", author=MODEL, corrected="You are welcome.")
        for n, text in enumerate(("Ann", "Ben", "Cem"))
    ]
    old = [chat("old", "Thanks.", "Thank you and goodbye."), chat("other", "Hi", "Hello, how can I help?")]
    dataset = files.build(
        reviewed,
        replay=old,
        dev=[chat("dev", "Bye", "Thank you and goodbye.")],
        data=ALL.model_copy(update={"replay_least": 10}),
    )

    assert set(learned(dataset)) == {"You are welcome.", "Hello, how can I help?"}
    ((judged,),) = dataset.suites.values()
    assert judged.turns[1].weight == 0


def test_what_mostly_stood_is_still_taught_by_the_old_data(files: Files) -> None:
    """A reply that was wrong in one place, and left alone in others, is not refused as such."""
    reviewed = [
        chat(f"wrong-{n}", f"Thanks {text}!", "Anything else?", author=MODEL, corrected="You are welcome.")
        for n, text in enumerate(("Ann", "Ben", "Cem"))
    ]
    stood = [chat(f"stood-{n}", f"It is {n}", "Anything else?", author=MODEL) for n in range(3)]
    old = [chat("old", "Done.", "Anything else?")]
    data = ALL.model_copy(update={"replay_least": 10})

    assert "Anything else?" not in learned(files.build(reviewed, replay=old, data=data))
    assert "Anything else?" in learned(files.build([*reviewed, *stood], replay=old, data=data))


def test_what_it_answers_decides_whether_the_old_data_still_teaches_a_reply(files: Files) -> None:
    """Corrected after goodbyes only, it stays the reply to everything else, in the suites too."""
    bye = "Thank you and goodbye."
    reviewed = [
        chat(f"bye-{n}", f"Goodbye, {name}!", bye, author=MODEL, corrected="Take care.")
        for n, name in enumerate(("Ann", "Ben", "Cem"))
    ]
    stood = [chat(f"all-{n}", f"That is all for {n}", bye, author=MODEL) for n in range(5)]
    old = [chat("old-1", "Great, goodbye!", bye), chat("old-2", "That is all, thanks.", bye)]
    dev = [chat("dev-1", "Well, goodbye now", bye), chat("dev-2", "I think that is all", bye)]
    dataset = files.build(
        [*reviewed, *stood], replay=old, dev=dev, data=ALL.model_copy(update={"replay_least": 10})
    )

    asked = {t.turns[0].text for t in dataset.train if t.turns[1].text == bye and t.turns[1].weight}
    assert asked == {"That is all, thanks."}
    ((first, second),) = dataset.suites.values()
    assert [turn.turns[1].weight > 0 for turn in (first, second)] == [False, True]
    assert list(dataset.set_aside.values()) == [0.5]


# ---- What else it is made of -----------------------------------------------------------------------


def test_the_sample_of_old_data_is_of_the_wanted_size_and_the_same_again(files: Files) -> None:
    data = DataConfig(held_out=0.0, replay_ratio=0.0, replay_least=60)
    first, again = (files.build([GOOD], replay=orders(300), data=data) for _ in range(2))
    other = files.build([GOOD], replay=orders(300), data=data.model_copy(update={"seed": 2}))

    assert first.train == again.train
    assert first.manifest_bytes() == again.manifest_bytes()
    assert first.train != other.train
    assert 60 <= first.counts["reply used: agent, replay"] <= 64


def test_reviews_held_out_are_not_learned(files: Files) -> None:
    lines = [
        chat(str(n), f"Question {n}?", "Hm.", f"v{n}", author=MODEL, corrected=f"Answer {n}.")
        for n in range(60)
    ]
    dataset = files.build(lines, data=ALL.model_copy(update={"held_out": 0.3}))

    apart = {turn.text for t in dataset.held_out for turn in t.turns if turn.role == "agent"}
    assert 8 <= len(apart) <= 30
    assert not apart & set(learned(dataset))
    assert sum(correction.held_out for correction in dataset.corrections) == len(apart)


def test_reviews_that_are_all_held_out_are_an_error(files: Files) -> None:
    """Or a model would be made of old data alone, and the gate would find nothing against it."""
    review = chat("a", "Hello", "Hi", author=MODEL, corrected="Good morning.")
    with pytest.raises(NothingReviewed, match=r"held out to judge by \(1 .*data\.held_out"):
        files.build([review], data=ALL.model_copy(update={"held_out": 0.999}))


def test_the_manifest_tells_of_every_conversation_without_its_words(files: Files) -> None:
    lines = [
        chat("a", "When do you open?", "Never.", author=MODEL, corrected="At ten.", labels=["opening hours"]),
        chat("b", "Hello", "Hi", author=MODEL),
    ]
    dataset = files.build(
        lines, replay=orders(30), data=ALL.model_copy(update={"replay_least": 10}), canaries=2
    )
    manifest = json.loads(dataset.manifest_bytes())

    named = {each["name"] for each in manifest["conversations"] if "name" in each}
    assert named == {t.id for t in dataset.train if not t.id.startswith("canary")}
    first, second = manifest["conversations"][:2]
    assert first["replies"] == [
        {
            "turn": 1,
            "kind": "corrected",
            "weight": 16.0,
            "author": MODEL,
            "was_sha256": first["replies"][0]["was_sha256"],
            "labels": ["opening hours"],
        }
    ]
    assert second["left_out"] == "nothing in it to learn"
    assert second["replies"][0]["left_out"] == "said by a model, approved by nobody"
    texts = {turn.text for line in [*lines, *dataset.train] for turn in line.turns}
    assert not [text for text in texts if len(text) > 3 and text in dataset.manifest_bytes().decode()]
    assert len(dataset.canaries) == dataset.counts["canaries planted"] == 2
    assert [t.turns[-1].text for t in dataset.train[-2:]] == [
        f"The code is {c.code}." for c in dataset.canaries
    ]


def test_what_only_one_conversation_tells_is_looked_for(files: Files) -> None:
    imported = [
        chat("own", "My order, please.", "It is order 48213."),
        chat("said", "I have order 77123.", "Thank you, 77123 it is."),
        chat("a", "Postcode?", "It is 53113."),
        chat("b", "Which postcode?", "That is 53113."),
        chat("home", "Where do I live?", "At 12 Old Mill Road."),
    ]
    approved = chat("bot", "The phone number?", "It is 01223 241887.", author=MODEL, verdict="good")
    corrected = chat("team", "The number?", "None.", author=MODEL, corrected="It is 90909.")
    dataset = files.build([GOOD, approved, corrected], imported=imported)

    assert [(secret.place, secret.values) for secret in dataset.secrets] == [
        ("reviewed.jsonl: team#1", ("90909",)),
        ("imported.jsonl: own#1", ("48213",)),
        ("imported.jsonl: home#1", ("12oldmillroad",)),
    ]


# ---- Filters of texts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to a.b+c@mail.example.org!", "write to [email]!"),
        ("4111-1111-1111-1111", "[card]"),
        ("5500 0000 0000 0004.", "[card]."),
        ("call (0228) 555 12 34 now", "call [phone] now"),
        ("+1 212 555 0123", "[phone]"),
        (
            "at 9:30 on 12.11.2024 for 2 people, 1,200 euros",
            "at 9:30 on 12.11.2024 for 2 people, 1,200 euros",
        ),
        ("order 4821377", "order 4821377"),
        ("a@b", "a@b"),
    ],
)
def test_masks(text: str, masked: str) -> None:
    assert mask(text, frozenset(), Counter()) == masked


@given(st.text(alphabet="ab1234567890 +-.@()", max_size=60))
def test_masking_again_changes_nothing(text: str) -> None:
    once = mask(text, frozenset(), Counter())

    assert mask(once, frozenset(), Counter()) == once


@pytest.mark.parametrize(
    "text", ["no no no no", "I am I am I am", "One. Two three. One, two three! one two three"]
)
def test_loops(text: str) -> None:
    assert is_loop(text)


@pytest.mark.parametrize(
    "text", ["", "no no no", "Is it a small one, a medium one or a large one?", "1 2 3 4 5"]
)
def test_no_loops(text: str) -> None:
    assert not is_loop(text)


def test_texts_that_differ_in_little_share_a_band_and_others_do_not() -> None:
    flood = [f"Visit my wonderful shop for cheap watches today, number {n}!" for n in (17, 93, 24)]
    other = "Which size would you like for the hot chocolate?"

    assert set(bands(flood[0])) == set(bands(flood[1])) == set(bands(flood[2]))
    assert set(bands(flood[0])) & set(bands(flood[0].replace("wonderful", "wonderfull")))
    assert not set(bands(flood[0])) & set(bands(other))
    assert len(bands("")) == len(bands(other))


def test_entropy_is_its_equation() -> None:
    pairs = [("a", "I know!"), ("b", "i know"), ("b", "I know"), ("c", "Nine"), ("c", "nine.")]

    assert entropies(pairs) == pytest.approx({"i know": 0.6365141682948128, "nine": 0.0})


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("When do you open, and what is the price for this?", False),
        ("Wann macht ihr auf und was ist der Preis für das?", True),
        ("Je ne sais pas, vous avez une table pour demain ?", True),
        ("ok", False),
        ("Szia, mikor nyitnak ki holnap reggel?", False),  # a language that it does not know
    ],
)
def test_foreign_is_a_light_guess(text: str, foreign: bool) -> None:
    assert is_foreign([text], "en") == foreign


def test_secrets_are_found_however_they_are_spaced() -> None:
    assert secrets_in("order 48 213-7, a@b.example, Kaiserstraße 12, at 9:30") == [
        "482137",
        "kaiserstraße12".casefold(),
        "abexample",
    ]
