"""`python -m chatbot`: what it prints and returns, and how it takes bad input, Ctrl-C and a closed pipe."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.batcher import Batcher, ReplyRequest
from chatbot.chat import Chat
from chatbot.cli import build_parser, given_options, main
from chatbot.decoding import derived_seed
from chatbot.model_directory import ModelBundle, load
from chatbot.options import DecodingOptions
from chatbot.terminal import printable
from chatbot.transcripts import Transcript, render_transcript
from tests.batching import drain, replies
from tests.small import orders, transcript

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], None]:
    """What standard input holds."""

    def type_in(text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    return type_in


@pytest.fixture(scope="module")
def bundle(tiny_model_dir: Path) -> ModelBundle:
    return load(tiny_model_dir)


def questions(count: int) -> list[Transcript]:
    """Conversations that end in a user turn."""
    return [t.model_copy(update={"turns": t.turns[:-1]}) for t in orders(count)]


def lines(transcripts: list[Transcript]) -> str:
    return "".join(render_transcript(t) + "\n" for t in transcripts)


# ---- reply -------------------------------------------------------------------------------------------------


def test_replies_come_in_the_order_of_their_conversations(
    tiny_model_dir: Path, type_in: Callable[[str], None], capsys: Capture
) -> None:
    asked = questions(20)
    type_in(lines(asked))
    assert main(["reply", str(tiny_model_dir), "--rows", "3", "--min-tokens", "0"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["id"] for answer in answers] == [t.id for t in asked]
    assert all(answer.keys() >= {"id", "text", "alternatives", "logprob"} for answer in answers)
    assert all(answer["alternatives"] == [] and answer["logprob"] < 0 for answer in answers)


def test_a_reply_is_that_of_the_batcher(
    tiny_model_dir: Path, bundle: ModelBundle, type_in: Callable[[str], None], capsys: Capture
) -> None:
    asked = transcript("Hello!", "Hello, what can I get you?", "A mocha, please.", name="one")
    type_in(lines([asked]))
    options = [
        "--decoding",
        "beam",
        "--beam-size",
        "3",
        "--n-best",
        "2",
        "--length-penalty",
        "1",
        "--max-tokens",
        "6",
    ]
    assert main(["reply", str(tiny_model_dir), *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    request = ReplyRequest(
        "x",
        tuple((turn.role, turn.text) for turn in asked.turns),
        DecodingOptions(decoding="beam", beam_size=3, n_best=2, length_penalty=1, max_tokens=6),
    )
    reply = replies(drain(Batcher(bundle), request))["x"]
    assert answer["text"] == reply.text
    assert answer["logprob"] == pytest.approx(sum(reply.logprobs), abs=1e-4)
    assert [a["text"] for a in answer["alternatives"]] == [a.text for a in reply.alternatives]
    assert [a["score"] for a in answer["alternatives"]] == pytest.approx(
        [a.score for a in reply.alternatives], abs=1e-4
    )


def test_details_are_written_when_they_are_asked_for(
    tiny_model_dir: Path, bundle: ModelBundle, type_in: Callable[[str], None], capsys: Capture
) -> None:
    asked = transcript("Hello!", name="one")

    def answer(*flags: str) -> dict[str, Any]:
        type_in(lines([asked]))
        assert main(["reply", str(tiny_model_dir), "--max-tokens", "3", *flags]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    plain, logprobs, top = answer(), answer("--logprobs"), answer("--top-alternatives", "2")
    attention = answer("--top-alternatives", "1", "--attention")
    assert plain.keys() == {"id", "text", "alternatives", "logprob", "finish_reason", "seed"}
    assert logprobs.keys() - plain.keys() == {"tokens"}
    assert [token.keys() for token in logprobs["tokens"]] == [{"id", "text", "logprob"}] * 3
    assert sum(token["logprob"] for token in logprobs["tokens"]) == pytest.approx(plain["logprob"])
    assert "".join(token["text"] for token in logprobs["tokens"]).strip() == plain["text"]
    assert [len(token["top"]) for token in top["tokens"]] == [2] * 3
    assert top["tokens"][0]["top"][0] == logprobs["tokens"][0]  # greedy takes the likeliest
    assert attention.keys() - top.keys() == {"attention"}
    ids = bundle.tokenizer.encode_turn("user", "Hello!")
    assert [token["id"] for token in attention["attention"]["remembered"]] == ids
    assert {token["age"] for token in attention["attention"]["remembered"]} == {0}
    sums = [sum(weights) for weights in attention["attention"]["weights"]]
    assert sums == pytest.approx([1.0] * 3, abs=0.01)


def test_a_sampled_reply_depends_on_its_conversation_and_the_seed_alone(
    tiny_model_dir: Path, type_in: Callable[[str], None], capsys: Capture
) -> None:
    asked = questions(6)

    def sampled(some: list[Transcript], *seed: str) -> dict[str, Any]:
        type_in(lines(some))
        assert main(["reply", str(tiny_model_dir), "--decoding", "sample", *seed]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return {answer["id"]: (answer["text"], answer["seed"]) for answer in found}

    first = sampled(asked, "--seed", "5")
    assert sampled(asked[::-1], "--seed", "5") == first
    assert sampled(asked[2:3], "--seed", "5").items() <= first.items()
    assert sampled(asked, "--seed", "6") != first
    assert sampled(asked) == sampled(asked, "--seed", "0")
    assert first[asked[0].id][1] == derived_seed(5, asked[0].id)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "<stdin>:3: "),
        ('{"id": "x"}', "<stdin>:3: turns: "),
        ('{"id": "x", "turns": []}', "<stdin>:3: the conversation does not end in a user turn"),
        (
            lines([transcript("Hi", "Hello")]).strip(),
            "<stdin>:3: the conversation does not end in a user turn",
        ),
        ('{"id": "x", "turns": [{"role": "user", "text": "\\ud800"}]}', "<stdin>:3: "),
    ],
)
def test_a_bad_line_is_named_and_what_is_before_it_is_answered(
    tiny_model_dir: Path, type_in: Callable[[str], None], capsys: Capture, bad: str, reason: str
) -> None:
    good = questions(2)
    type_in(lines(good[:1]) + "\n" + bad + "\n" + lines(good[1:]))
    assert main(["reply", str(tiny_model_dir)]) == 1
    printed = capsys.readouterr()
    assert [json.loads(line)["id"] for line in printed.out.splitlines()] == [good[0].id]
    assert printed.err.startswith(f"error: {reason}")


def test_a_conversation_that_gets_no_reply_is_named(
    tiny_model_dir: Path, type_in: Callable[[str], None], capsys: Capture
) -> None:
    type_in(lines(questions(2)))
    assert main(["reply", str(tiny_model_dir), "--prefix", "so many words " * 9]) == 1
    assert capsys.readouterr().err.startswith("error: <stdin>:1: prefix: has ")


def test_nothing_in_is_nothing_out(
    tiny_model_dir: Path, type_in: Callable[[str], None], capsys: Capture
) -> None:
    type_in("")
    assert main(["reply", str(tiny_model_dir)]) == 0
    assert capsys.readouterr().out == ""


def test_a_reader_that_leaves_ends_the_command_quietly(
    tiny_model_dir: Path,
    type_in: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    type_in(lines(questions(2)))
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["reply", str(tiny_model_dir)]) == 1
    assert capsys.readouterr().err == ""


# ---- Options as flags --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--temperature", "0"], "--temperature must be a number from 0.05 to 5"),
        (["--temperature", "nan"], "--temperature must be a number from 0.05 to 5"),
        (["--top-k", "-1"], "--top-k must be a whole number from 0 to 1000000"),
        (["--top-k", "331"], "--top-k must be a whole number from 0 to 330, the size of the vocabulary"),
        (
            ["--beam-size", "3", "--n-best", "4"],
            "--n-best must be a whole number from 1 to beam_size or samples",
        ),
        (["--seed", str(2**64)], f"--seed must be null or a whole number from 0 to {2**63 - 1}"),
    ],
)
def test_an_option_out_of_range_is_refused_by_its_flag(
    tiny_model_dir: Path, type_in: Callable[[str], None], capsys: Capture, flags: list[str], reason: str
) -> None:
    type_in("")
    assert main(["reply", str(tiny_model_dir), *flags]) == 2
    assert capsys.readouterr().err == f"error: {reason}\n"


def test_a_flag_that_takes_several_values_is_given_several_times() -> None:
    parsed = build_parser().parse_args(["reply", "--blocked", "one", "--blocked", "two words"])
    assert given_options(parsed) == {"blocked": ["one", "two words"]}


def test_every_option_is_a_flag(capsys: Capture) -> None:
    for command in ("chat", "reply"):
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0
        words = capsys.readouterr().out
        for name in DecodingOptions.model_fields:
            assert f"--{name.replace('_', '-')}" in words


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sing"],
        ["reply", "--temperature", "warm"],
        ["chat", "--decoding", "best"],
        ["inspect", "--threads", "-1"],
        ["reply", "--rows", "0"],
    ],
)
def test_a_command_that_does_not_exist_is_a_usage_error(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help_loads_no_torch() -> None:
    script = (
        "import sys; from chatbot.cli import main\n"
        "try: main(['reply', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


# ---- inspect -----------------------------------------------------------------------------------------------


def test_inspect_tells_what_a_model_is(tiny_model_dir: Path, bundle: ModelBundle, capsys: Capture) -> None:
    assert main(["inspect", str(tiny_model_dir)]) == 0
    words = capsys.readouterr().out
    assert bundle.fingerprint in words
    assert "# Tiny" in words
    assert main(["inspect", str(tiny_model_dir), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["fingerprint"] == bundle.fingerprint
    assert facts["parameters"] == sum(p.numel() for p in bundle.model.parameters())
    assert facts["bytes"] == sum(f.stat().st_size for f in tiny_model_dir.iterdir())
    assert facts["config"] == bundle.config.model_dump()
    assert facts["defaults"]["max_tokens"] == 12


def test_a_directory_of_models_means_the_active_one(
    tiny_model_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    for name in ("one", "two"):
        shutil.copytree(tiny_model_dir, tmp_path / name)
    assert main(["inspect", str(tmp_path)]) == 1
    assert "several models (one, two)" in capsys.readouterr().err
    (tmp_path / "active").write_text("two\n")
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(tmp_path / "two")


@pytest.mark.parametrize("command", ["chat", "reply", "inspect"])
def test_a_broken_model_is_refused_in_words(
    tiny_model_dir: Path, tmp_path: Path, capsys: Capture, command: str
) -> None:
    broken = Path(shutil.copytree(tiny_model_dir, tmp_path / "broken"))
    (broken / "model.pt").write_bytes(b"\x80\x04.")
    assert main([command, str(broken)]) == 1
    assert capsys.readouterr().err == f"error: {broken}: 'model.pt' does not belong into a model directory\n"


def test_a_model_card_cannot_steer_the_terminal(
    tiny_model_dir: Path, tmp_path: Path, bundle: ModelBundle, capsys: Capture
) -> None:
    from chatbot.model_directory import seal

    parts = {"model": bundle.model, "tokenizer": bundle.tokenizer, "defaults": bundle.defaults}
    seal(tmp_path / "loud", **parts, metrics={"\x1b[2J": 1}, card="\x1b]0;owned\x07\u202e")  # type: ignore[arg-type]
    assert main(["inspect", str(tmp_path / "loud")]) == 0
    assert not set("\x1b\x07\u202e") & set(capsys.readouterr().out)


# ---- chat --------------------------------------------------------------------------------------------------


def test_every_line_is_answered(
    tiny_model_dir: Path, type_in: Callable[[str], None], capsys: Capture
) -> None:
    type_in("Hello!\n\n   \n/new\nA latte, please.\n")
    assert main(["chat", str(tiny_model_dir), "--min-tokens", "3", "--max-tokens", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("…") == 2
    assert "(a new conversation)" in printed


def test_bytes_that_are_no_text_do_not_end_the_chat(
    tiny_model_dir: Path, type_in: Callable[[bytes], None], capsys: Capture
) -> None:
    type_in(b"\xff\xfe\x00\n" + b"x" * 20_000 + b"\n")
    assert main(["chat", str(tiny_model_dir), "--max-tokens", "2"]) == 0
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    """What was written, and something that happens at the first piece of a reply."""

    def __init__(self, at_first: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._at_first: Callable[[], None] | None = at_first

    def write(self, text: str) -> int:
        if self._at_first is not None:
            at_first = self._at_first
            self._at_first = None
            at_first()
        return super().write(text)


def reader(*typed: str | type[BaseException]) -> Callable[[], str]:
    remaining: Iterator[str | type[BaseException]] = iter(typed)

    def read() -> str:
        line = next(remaining, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read


LONG = DecodingOptions(min_tokens=40, max_tokens=40)


def test_ctrl_c_stops_a_reply_and_the_chat_goes_on(bundle: ModelBundle) -> None:
    before = signal.getsignal(signal.SIGINT)
    terminal = Terminal(lambda: signal.raise_signal(signal.SIGINT))
    chat = Chat(bundle, LONG, terminal)
    stopped = chat.say("Hello!")
    assert stopped is not None
    assert stopped.finish_reason == "cancelled"
    assert 0 < len(stopped.token_ids) < 40
    finished = chat.say("Go on")
    assert finished is not None
    assert len(finished.token_ids) == 40
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("leaving", [EOFError, KeyboardInterrupt])
def test_ctrl_d_and_ctrl_c_at_the_prompt_leave(bundle: ModelBundle, leaving: type[BaseException]) -> None:
    terminal = Terminal()
    Chat(bundle, DecodingOptions(max_tokens=2), terminal).run(reader("Hello!", leaving, "never read"))
    assert terminal.getvalue().count("\n") == 1


def test_the_same_seed_and_words_give_the_same_conversation(bundle: ModelBundle) -> None:
    def talk(seed: str) -> str:
        terminal = Terminal()
        options = DecodingOptions(decoding="sample", max_tokens=10)
        Chat(bundle, options, terminal).run(reader(f"/seed {seed}", "Hello!", "Hello!"))
        return terminal.getvalue()

    assert talk("7") == talk("7")
    assert talk("7").splitlines()[1:] != talk("8").splitlines()[1:]


def test_a_drawn_seed_can_be_asked_for(bundle: ModelBundle) -> None:
    terminal = Terminal()
    chat = Chat(bundle, DecodingOptions(decoding="sample"), terminal)
    chat.run(reader("/seed"))
    assert terminal.getvalue() == f"(seed {chat.seed})\n"
    assert chat.seed != Chat(bundle, DecodingOptions(decoding="sample"), terminal).seed


@pytest.mark.parametrize("bad", ["-1", "x", "²", str(2**64), "1 2"])
def test_a_bad_seed_changes_nothing(bundle: ModelBundle, bad: str) -> None:
    terminal = Terminal()
    chat = Chat(bundle, DecodingOptions(seed=4), terminal)
    chat.run(reader(f"/seed {bad}"))
    assert chat.seed == 4
    assert terminal.getvalue().startswith("(")


def test_a_new_conversation_forgets_the_old_one(bundle: ModelBundle) -> None:
    chat = Chat(bundle, LONG, Terminal())
    first = chat.say("Hello!")
    second = chat.say("Hello!")
    chat.run(reader("/new"))
    assert chat.say("Hello!") == first
    assert second != first


def test_help_lists_the_commands_and_an_unknown_one_points_to_it(bundle: ModelBundle) -> None:
    terminal = Terminal()
    Chat(bundle, LONG, terminal).run(reader("/help", "/dance"))
    assert "/new" in terminal.getvalue()
    assert "no such command" in terminal.getvalue()


def test_alternatives_of_a_beam_are_shown(bundle: ModelBundle) -> None:
    terminal = Terminal()
    options = DecodingOptions(decoding="beam", n_best=3, max_tokens=4)
    reply = Chat(bundle, options, terminal).say("Hello!")
    assert reply is not None
    for number, other in enumerate(reply.alternatives[1:], start=2):
        assert f"  {number}. ({other.score:.2f}) {printable(other.text)}\n" in terminal.getvalue()


def test_a_request_that_fails_is_told_and_the_chat_goes_on(bundle: ModelBundle) -> None:
    terminal = Terminal()
    chat = Chat(bundle, DecodingOptions(max_tokens=3, prefix="far too many words"), terminal)
    assert chat.say("Hello!") is None
    assert "(no reply: prefix: has " in terminal.getvalue()


# ---- Strangers' text on a terminal -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\rb\tc\x00\x7f\x9b", r"a\rb\tc\x00\x7f\x9b"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("\ud800", r"\ud800"),
        ("two\nlines\u2028", "two\nlines\\u2028"),
        ("Zoë → 日本 🙂", "Zoë → 日本 🙂"),
    ],
)
def test_what_steers_a_terminal_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@settings(deadline=None)
@given(st.text(st.characters(codec=None)))
def test_nothing_printable_is_lost_and_nothing_else_is_left(text: str) -> None:
    shown = printable(text)
    assert all(c == "\n" or not unicodedata.category(c).startswith("C") for c in shown)
    if all(c == "\n" or c.isprintable() for c in text):
        assert shown == text
