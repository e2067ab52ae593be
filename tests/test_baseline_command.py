"""``python -m training baseline``: what is learned, what is measured, and what each option changes."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Transcript, Turn, write_transcripts
from tests.small import orders
from training.__main__ import main
from training.baseline_command import replies_of, training_turns
from training.evaluate import find_references
from training.ngram import NGramModel, Spelling, Vocabulary
from training.words import split_words


def transcript(id_: str, *turns: tuple[str, str] | tuple[str, str, float]) -> Transcript:
    """A conversation of ``(role, text)`` or ``(role, text, weight)``."""
    made = [
        Turn.model_validate({"role": role, "text": text, "weight": weight[0] if weight else 1.0})
        for role, text, *weight in turns
    ]
    return Transcript(id=id_, turns=tuple(made))


CONVERSATIONS = [
    transcript("plain", ("user", "Hello"), ("agent", "Hi, you!"), ("user", "Bye"), ("agent", "Bye.")),
    transcript("begun by the agent", ("agent", "Anybody there?"), ("user", "Me"), ("agent", "Hi, Me!")),
    transcript("agent twice", ("user", "Hm"), ("agent", "Yes?"), ("agent", "Well?")),
    transcript("weightless", ("user", "What", 0.0), ("agent", "Nonsense", 0.0), ("user", "Oh")),
    transcript("half", ("user", "What"), ("agent", "Hi.", 0.5)),
]


def written(path: Path, conversations: list[Transcript]) -> Path:
    write_transcripts(path, conversations)
    return path


@pytest.fixture
def orders_train(tmp_path: Path) -> Path:
    return written(tmp_path / "drinks" / "train.jsonl.gz", orders(150, seed=1))


@pytest.fixture
def orders_dev(tmp_path: Path) -> Path:
    return written(tmp_path / "drinks" / "dev.jsonl.gz", orders(30, seed=2))


def baseline(capsys: pytest.CaptureFixture[str], kind: str, *args: object) -> dict[str, Any]:
    assert main(["baseline", kind, *map(str, args), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def figures(capsys: pytest.CaptureFixture[str], train: Path, dev: Path, *args: object) -> dict[str, Any]:
    """Of an n-gram model on one file."""
    (row,) = baseline(capsys, "ngram", "--train", train, "--dev", dev, *args).values()
    assert isinstance(row, dict)
    return row


# ---- Text ------------------------------------------------------------------------------------------


def test_learned_are_the_turns_of_the_agent_or_all_but_those_of_weight_zero() -> None:
    agent = training_turns(iter(CONVERSATIONS), agent_only=True, lowercase=False)
    everybody = training_turns(iter(CONVERSATIONS), agent_only=False, lowercase=True)

    assert [" ".join(turn) for turn in agent] == [
        *("Hi , you !", "Bye .", "Anybody there ?", "Hi , Me !", "Yes ?", "Well ?", "Hi .")
    ]
    assert [" ".join(turn) for turn in everybody] == [
        *("hello", "hi , you !", "bye", "bye .", "anybody there ?", "me", "hi , me !"),
        *("hm", "yes ?", "well ?", "oh", "what", "hi ."),
    ]


def test_measured_are_the_turns_and_words_that_evaluate_measures(tiny_tokenizer: Tokenizer) -> None:
    transcripts = [*CONVERSATIONS, *orders(20)]
    references = find_references(transcripts, tiny_tokenizer, 64)

    replies = replies_of(iter(transcripts), lowercase=False)

    assert [len(words) + 1 for words in replies] == [reference.words for reference in references]
    assert replies == [split_words(reference.text) for reference in references]


# ---- Figures ---------------------------------------------------------------------------------------


def test_single_words_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = written(tmp_path / "train.jsonl", [transcript("1", ("user", "?"), ("agent", "a a b"))])
    dev = written(tmp_path / "dev.jsonl", [transcript("1", ("user", "?"), ("agent", "a zz"))])
    # Counts are 2, 1 and 1 for the end: discounts of 1, 0.5 and 0.5 go to all four symbols alike.
    a, end, unknown = 1 / 4 + 1 / 8, 0.5 / 4 + 1 / 8, 1 / 8

    row = figures(capsys, train, dev, "--order", 1, "--min-count", 1, "--unknown", "class")

    assert row == {
        "replies": 1,
        "words": 3,
        "unknown_share": pytest.approx(1 / 3),
        "nll": pytest.approx(-math.log(a * unknown * end)),
        "perplexity_word": pytest.approx((a * unknown * end) ** (-1 / 3)),
    }


def agent_words(path: Path, *, replies: bool) -> list[list[str]]:
    """Of a file of `orders`, in which every agent turn is a reply."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    pairs = (pair for line in lines for pair in pairwise(line["turns"]))
    return [split_words(b["text"]) for a, b in pairs if (a["role"], b["role"]) == ("user", "agent")]


def test_an_unknown_word_costs_its_class_and_its_spelling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = written(tmp_path / "train.jsonl", orders(60, seed=1))
    dev = written(tmp_path / "dev.jsonl", orders(20, seed=2))
    words, replies = agent_words(train, replies=True), agent_words(dev, replies=True)
    vocabulary = Vocabulary.of(words, 12)
    rare = [word for turn in words for word in turn if word not in vocabulary]
    unknown = [word for turn in replies for word in turn if word not in vocabulary]
    model = NGramModel.train(vocabulary.encode(words), symbols=vocabulary.symbols, order=3)
    of_class = -model.log_probabilities(vocabulary.encode(replies)).sum()
    spelled = -Spelling.train([*rare, *vocabulary]).log_probabilities(unknown).sum()

    options = ("--order", 3, "--min-count", 12)
    flattering = figures(capsys, train, dev, *options, "--unknown", "class")
    honest = figures(capsys, train, dev, *options)

    assert unknown
    assert spelled > 0
    assert flattering["nll"] == pytest.approx(of_class)
    assert honest["nll"] == pytest.approx(of_class + spelled)
    assert honest["unknown_share"] == pytest.approx(len(unknown) / honest["words"])
    assert honest["perplexity_word"] == pytest.approx(math.exp(honest["nll"] / honest["words"]))


def test_every_dev_file_has_a_row_under_its_name(
    orders_train: Path, orders_dev: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = written(tmp_path / "other.jsonl", CONVERSATIONS)

    together = baseline(capsys, "ngram", "--train", orders_train, "--dev", orders_dev, other)

    assert list(together) == ["drinks", "other"]
    assert together["drinks"] == figures(capsys, orders_train, orders_dev)
    assert together["other"] == figures(capsys, orders_train, other)
    assert together["other"]["replies"] == 5


def test_several_training_files_are_learned_together(
    orders_train: Path, orders_dev: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    halves = [
        written(tmp_path / f"{i}.jsonl", part)
        for i, part in enumerate([orders(150, seed=1)[:70], orders(150, seed=1)[70:]])
    ]

    (both,) = baseline(capsys, "ngram", "--train", *halves, "--dev", orders_dev).values()

    assert both == figures(capsys, orders_train, orders_dev)


@pytest.mark.parametrize(
    "option",
    [("--order", "1"), ("--lowercase",), ("--min-count", "40"), ("--unknown", "class"), ("--turns", "all")],
    ids=lambda option: option[0],
)
def test_every_option_changes_the_figure(
    option: tuple[str, ...], orders_train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = written(tmp_path / "dev.jsonl", [*orders(30, seed=2), *CONVERSATIONS])

    changed = figures(capsys, orders_train, dev, *option)["nll"]

    assert changed != pytest.approx(figures(capsys, orders_train, dev)["nll"], rel=1e-4)


def test_lower_cased_text_is_the_same_however_it_was_written(
    orders_train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(text: str) -> dict[str, Any]:
        dev = written(tmp_path / "dev.jsonl", [transcript("1", ("user", "?"), ("agent", text))])
        return figures(capsys, orders_train, dev, "--lowercase")

    assert row("WHICH size? Ähem") == row("which SIZE? ähem")


def test_the_table_shows_the_same_figures(
    orders_train: Path, orders_dev: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = figures(capsys, orders_train, orders_dev)
    files = ["--train", str(orders_train), "--dev", str(orders_dev)]

    assert main(["baseline", "ngram", *files]) == 0

    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["replies", "words", "unknown", "nll", "perplexity_word"]
    assert line.split() == [
        "drinks",
        str(row["replies"]),
        str(row["words"]),
        f"{row['unknown_share']:.2%}",
        f"{row['nll']:.1f}",
        f"{row['perplexity_word']:.3f}",
    ]


def test_the_feed_forward_model_learns_the_same_words(
    orders_train: Path, orders_dev: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--train", orders_train, "--dev", orders_dev)
    ngram = baseline(capsys, "ngram", *files)["drinks"]

    def row(*options: object) -> dict[str, Any]:
        small = ("--hidden", 16, "--embedding", 8, "--device", "cpu", "--epochs", 12)
        found = baseline(capsys, "feed-forward", *files, *small, *options)["drinks"]
        assert isinstance(found, dict)
        return found

    plain = row()
    assert {key: plain[key] for key in ("replies", "words", "unknown_share")} == {
        key: ngram[key] for key in ("replies", "words", "unknown_share")
    }
    assert plain["perplexity_word"] < 3 * ngram["perplexity_word"]
    assert row() == plain  # the same seed
    brief = row("--epochs", 1)
    assert brief["nll"] > plain["nll"]
    for changed in (["--seed", 2], ["--hidden", 4], ["--embedding", 2], ["--direct"], ["--order", 2]):
        assert row("--epochs", 1, *changed)["nll"] != brief["nll"], changed
    assert row("--minutes", 1e-9)["perplexity_word"] > 10 * plain["perplexity_word"]


# ---- Trouble ---------------------------------------------------------------------------------------


def refusal(capsys: pytest.CaptureFixture[str], *args: object, kind: str = "ngram", status: int = 1) -> str:
    assert main(["baseline", kind, *map(str, args)]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("kind", ["ngram", "feed-forward"])
def test_a_missing_file_is_named(
    kind: str, orders_train: Path, orders_dev: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for files in (
        ("--train", "nowhere.jsonl", "--dev", orders_dev),
        ("--train", orders_train, "--dev", "nowhere.jsonl"),
    ):
        assert "nowhere.jsonl" in refusal(capsys, *files, kind=kind)


def test_a_malformed_line_is_named(
    orders_train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": "1"}\n', encoding="utf-8")

    assert f"{broken}:1: turns" in refusal(capsys, "--train", orders_train, "--dev", broken)


@pytest.mark.parametrize("kind", ["ngram", "feed-forward"])
@pytest.mark.parametrize(
    "turns",
    [[("user", "hello")], [("user", "hello"), ("agent", " \n")], [("user", "hello"), ("agent", "hi", 0.0)]],
)
def test_without_a_word_to_learn_nothing_is_trained(
    kind: str, turns: list[Any], orders_dev: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = written(tmp_path / "silent.jsonl", [transcript("1", *turns)])

    assert "no word to learn in" in refusal(capsys, "--train", train, "--dev", orders_dev, kind=kind)


def test_without_a_reply_to_measure_the_file_is_named(
    orders_train: Path, orders_dev: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = written(tmp_path / "silent.jsonl", [transcript("1", ("agent", "hello"), ("user", "hi"))])

    assert f"{silent}: no agent turn" in refusal(capsys, "--train", orders_train, "--dev", orders_dev, silent)


def test_a_device_that_is_not_there_is_named(
    orders_train: Path, orders_dev: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--train", orders_train, "--dev", orders_dev)

    assert "--device nonsense" in refusal(
        capsys, *files, "--device", "nonsense", kind="feed-forward", status=2
    )


@pytest.mark.parametrize(
    "args",
    [
        ["ngram", "--order", "0"],
        ["ngram", "--order", "8"],
        ["ngram", "--order", "few"],
        ["ngram", "--min-count", "0"],
        ["ngram", "--hidden", "10"],
        ["feed-forward", "--order", "1"],
        ["feed-forward", "--minutes", "0"],
        ["feed-forward", "--minutes", "soon"],
        ["feed-forward", "--minutes", "nan"],
        ["bigram"],
    ],
    ids=" ".join,
)
def test_an_argument_out_of_range_is_a_usage_error(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["baseline", *args, "--train", "a.jsonl", "--dev", "b.jsonl"])

    assert ended.value.code == 2
    assert args[-2:][0] in capsys.readouterr().err  # the option, or the kind


def test_a_recurrent_language_model_learns_what_is_said_and_not_what_it_answers(
    orders_train: Path, orders_dev: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--train", orders_train, "--dev", orders_dev, "--embedding", 16, "--hidden", 24]
    (little,) = baseline(capsys, "recurrent", *files, "--epochs", 1).values()
    (more,) = baseline(capsys, "recurrent", *files, "--epochs", 60).values()
    (ngram,) = baseline(capsys, "ngram", *files[:4]).values()
    assert more["perplexity_word"] < 0.7 * little["perplexity_word"]
    assert (more["replies"], more["words"]) == (ngram["replies"], ngram["words"])
    assert more["perplexity_word"] == pytest.approx(math.exp(more["nll"] / more["words"]))


def test_the_device_of_a_recurrent_language_model_is_checked(
    orders_train: Path, orders_dev: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--train", str(orders_train), "--dev", str(orders_dev)]
    assert main(["baseline", "recurrent", *files, "--device", "nowhere"]) == 2
    assert "device" in capsys.readouterr().err
