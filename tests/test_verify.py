"""`python -m server verify`: what a model said is told from what it did not say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import Engine, text

from chatbot import int8
from chatbot.model import Seq2Seq
from chatbot.model_directory import ModelBundle, load, seal
from chatbot.options import DecodingOptions
from chatbot.replies import Reply
from chatbot.served import served
from chatbot.tokenizer import Tokenizer
from server import database
from server.__main__ import main
from server.store import NewReply, Store
from server.verify import Verifier, make
from tests.small import SMALL


@pytest.fixture
def url(tmp_path: Path) -> str:
    found = f"sqlite:///{tmp_path / 'turnwise.db'}"
    database.upgrade(found)
    return found


@pytest.fixture
def db(url: str) -> Iterator[Engine]:
    engine = database.connect(url)
    yield engine
    engine.dispose()


class Talk:
    """A conversation whose replies are made as the server makes them."""

    def __init__(self, db: Engine, bundle: ModelBundle) -> None:
        self.store = Store(db)
        self.bundle = bundle
        self.id = self.store.open_conversation(self.store.new_visitor().visitor_id)
        self.count = 0

    def say(self, said: str) -> str:
        self.count += 1
        return self.store.add_user_turn(self.id, str(self.count), said, {}).message_id

    def answer(self, turn: str, changes: dict[str, Any] | None = None, **options: Any) -> Reply:
        """Make and keep a reply to `turn`; `changes` falsifies what is kept."""
        chosen = DecodingOptions.merged(self.bundle.defaults, {"seed": 3, **options})
        reply = make(self.bundle, self.store.history(self.id, answering=turn), chosen)
        assert reply is not None
        self.count += 1
        kept: dict[str, Any] = {
            "reply_id": f"r{self.count}",
            "answers": turn,
            "text": reply.text.replace("\0", "\N{REPLACEMENT CHARACTER}"),
            "finish_reason": reply.finish_reason,
            "model": self.bundle.fingerprint,
            "options": chosen.model_dump(),
            "seed": reply.seed,
            "token_ids": reply.token_ids,
            "logprobs": reply.logprobs,
            "alternatives": (),
            "queued_ms": 0.0,
            "first_token_ms": 0.0,
            "total_ms": 0.0,
        }
        self.store.add_reply(self.id, NewReply(**{**kept, **(changes or {})}))
        return reply


@pytest.fixture
def talk(db: Engine, tiny_model_dir: Path) -> Talk:
    return Talk(db, load(tiny_model_dir))


def verdicts(db: Engine, talk: Talk, models: Path) -> list[str]:
    return [finding.verdict for finding in Verifier(db, models).verify(talk.id)]


@pytest.mark.parametrize(
    "options",
    [
        {"decoding": "greedy"},
        {"decoding": "sample", "temperature": 1.5, "top_k": 50},
        {"decoding": "sample", "samples": 3, "n_best": 2},
        {"decoding": "beam", "beam_size": 4, "n_best": 2},
        {"prefix": "Hello, ", "no_repeat_ngram": 2, "repetition_penalty": 1.3},
    ],
)
def test_replies_as_they_were_made_are_exact(
    db: Engine, talk: Talk, tiny_model_dir: Path, options: dict[str, Any]
) -> None:
    talk.answer(talk.say("Hello"), **options)
    talk.answer(talk.say("A latte, please"), **options)
    assert verdicts(db, talk, tiny_model_dir) == ["exact", "exact"]


def test_a_reply_made_again_after_others_is_checked_against_what_was_said_then(
    db: Engine, talk: Talk, tiny_model_dir: Path
) -> None:
    first = talk.say("Hello")
    talk.answer(first, decoding="sample", seed=1)
    talk.answer(talk.say("A latte, please"), decoding="sample", seed=2)
    talk.answer(first, decoding="sample", seed=99)
    talk.answer(talk.say("small"), decoding="sample", seed=4)
    assert verdicts(db, talk, tiny_model_dir) == ["exact"] * 4


@pytest.fixture
def low(db: Engine, tiny_tokenizer: Tokenizer, tmp_path: Path) -> Talk:
    """With a model that is large enough for 8 bits, and served in them."""
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "encoder_size": 32, "state_size": 32, "vocab_size": tiny_tokenizer.vocab_size}
    model = Seq2Seq(SMALL.model_copy(update=sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    defaults = DecodingOptions(max_tokens=12, min_tokens=12)
    seal(tmp_path / "low", model=model, tokenizer=tiny_tokenizer, defaults=defaults, metrics={}, card="# Low")
    return Talk(db, served(load(tmp_path / "low"), "int8"))


@pytest.mark.skipif(int8.missing() is not None, reason=str(int8.missing()))
def test_replies_in_8_bits_are_held_against_8_bits(
    db: Engine, low: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    low.answer(low.say("Hello"))
    low.answer(low.say("A latte, please"), {"logprobs": tuple([-0.1] * 12)})
    right, false = Verifier(db, tmp_path / "low", tolerance=1e-4).verify(low.id)
    assert (right.verdict, right.precision) == ("exact", "int8")
    assert false.verdict == "mismatch"
    # Where there are no 8 bits, they may have been the reason for a small difference, not for a large one.
    monkeypatch.setattr(int8, "missing", lambda: "this processor has none")
    right, false = Verifier(db, tmp_path / "low", tolerance=1e-4).verify(low.id)
    assert (right.verdict, right.precision) == ("cannot", "float32")
    assert false.verdict == "mismatch"


def test_false_log_probabilities_are_a_mismatch(db: Engine, talk: Talk, tiny_model_dir: Path) -> None:
    turn = talk.say("Hello")
    talk.answer(turn, {"logprobs": tuple([-0.1] * 12)}, min_tokens=12)
    assert verdicts(db, talk, tiny_model_dir) == ["mismatch"]


def test_another_seed_than_the_logged_one_is_not_exact(db: Engine, talk: Talk, tiny_model_dir: Path) -> None:
    talk.answer(talk.say("Hello"), {"seed": 4}, decoding="sample", min_tokens=12)
    assert verdicts(db, talk, tiny_model_dir) == ["within tolerance"]


def test_a_question_that_was_altered_is_a_mismatch(db: Engine, talk: Talk, tiny_model_dir: Path) -> None:
    talk.answer(talk.say("Hello"))
    with db.begin() as connection:
        connection.execute(text("UPDATE message SET text = 'good morning' WHERE role = 'user'"))
    assert verdicts(db, talk, tiny_model_dir) == ["mismatch"]


def test_a_masked_reply_cannot_be_checked_nor_what_came_after_it(
    db: Engine, talk: Talk, tiny_model_dir: Path
) -> None:
    talk.answer(talk.say("Hello"))
    talk.answer(talk.say("A latte, please"))
    with db.begin() as connection:
        connection.execute(text("UPDATE message SET text = '[masked]' WHERE seq = 2"))
    first, second = Verifier(db, tiny_model_dir).verify(talk.id)
    assert (first.verdict, second.verdict) == ("cannot", "cannot")
    assert "masked" in first.reason
    assert "earlier" in second.reason


def test_of_a_cancelled_reply_the_beginning_is_checked(db: Engine, talk: Talk, tiny_model_dir: Path) -> None:
    turn = talk.say("Hello")
    whole = talk.answer(turn, min_tokens=12)
    for tokens in (whole.token_ids[:4], (*whole.token_ids[:3], whole.token_ids[3] + 1)):
        said = talk.bundle.tokenizer.decode(tokens)
        cut = {
            "finish_reason": "cancelled", "token_ids": tokens, "logprobs": whole.logprobs[:4], "text": said
        }  # fmt: skip
        talk.answer(turn, cut, min_tokens=12)
    assert verdicts(db, talk, tiny_model_dir) == ["exact", "exact", "mismatch"]


def test_a_model_that_is_not_there_and_a_person_cannot_be_checked(
    db: Engine, talk: Talk, tiny_model_dir: Path
) -> None:
    talk.answer(talk.say("Hello"), {"model": "tw-0000000000000000"})
    talk.answer(talk.say("A latte, please"))
    with db.begin() as connection:
        connection.execute(
            text("DELETE FROM generation WHERE message_id IN (SELECT id FROM message WHERE seq = 4)")
        )
    assert verdicts(db, talk, tiny_model_dir) == ["cannot", "cannot"]


def test_the_command_reports_and_its_status_tells(
    url: str, talk: Talk, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "models" / "tiny")
    arguments = ["verify", talk.id, "--database-url", url, "--models", str(tmp_path / "models")]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "no replies\n"
    talk.answer(talk.say("Hello"))
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counts"] == {"exact": 1}
    assert report["replies"][0]["model"] == talk.bundle.fingerprint
    assert 0 <= report["replies"][0]["difference"] < 1e-3
    talk.answer(talk.say("Bye"), {"logprobs": tuple([-0.1] * 12)}, min_tokens=12)
    assert main(arguments) == 1
    assert "1 exact, 1 mismatch" in capsys.readouterr().out
    for tolerance in ("nan", "inf", "-1", "much"):  # under the first two nothing would be a mismatch
        with pytest.raises(SystemExit) as left:
            main([*arguments, f"--tolerance={tolerance}"])
        assert left.value.code == 2
        assert "--tolerance: must be a number from 0" in capsys.readouterr().err
    assert main(["verify", "nobody", *arguments[2:]]) == 1
    assert "no conversation 'nobody'" in capsys.readouterr().err
