"""Several models as one: the mean of what each says by itself, in replies and in losses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from chatbot.batcher import Batcher, ReplyRequest
from chatbot.config import ModelConfig
from chatbot.decoder import TokenizersDiffer, extent
from chatbot.ensemble import Ensemble, EnsembleBundle
from chatbot.model import Seq2Seq
from chatbot.model_directory import ModelBundle, seal
from chatbot.options import DecodingOptions
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Role
from tests.batching import bundle_of, drain, replies
from tests.small import SMALL, orders, texts
from training.evaluate import evaluate, measure

AGENT = Tokenizer.agent_id
Turns = tuple[tuple[Role, str], ...]
HELLO: Turns = (("user", "Hello"),)
LONG: Turns = (("user", "Hello!"), ("agent", "Hello, what can I get you?")) * 4 + (("user", "A latte"),)


def model(tokenizer: Tokenizer, seed: int, **sizes: int) -> Seq2Seq:
    torch.manual_seed(seed)
    config = SMALL.model_copy(update={"vocab_size": tokenizer.vocab_size, **sizes})
    made = Seq2Seq(config).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)
        made.bias[Tokenizer.end_id] += 3.0
    return made


@pytest.fixture(scope="module")
def members(tiny_tokenizer: Tokenizer) -> list[ModelBundle]:
    """Models of different sizes; the second remembers less, the third more."""
    return [
        bundle_of(model(tiny_tokenizer, 1), tiny_tokenizer),
        bundle_of(model(tiny_tokenizer, 2, memory_tokens=7, hidden_size=12, turn_ages=2), tiny_tokenizer),
        bundle_of(
            model(tiny_tokenizer, 3, memory_tokens=40, decoder_layers=3, max_turn_tokens=20), tiny_tokenizer
        ),
    ]


def requests() -> list[ReplyRequest]:
    options: list[tuple[str, Turns, dict[str, object]]] = [
        ("greedy", LONG, {"attention": True, "top_alternatives": 2}),
        ("sampled", HELLO, {"decoding": "sample", "seed": 4}),
        ("beam", LONG, {"decoding": "beam", "n_best": 3, "coverage_penalty": 0.3}),
        ("samples", LONG, {"decoding": "sample", "seed": 5, "samples": 3}),
    ]
    return [
        ReplyRequest(name, turns, DecodingOptions.checked({"max_tokens": 10, **more}))
        for name, turns, more in options
    ]


def ids_of(tokenizer: Tokenizer, turns: Turns) -> list[list[int]]:
    return [tokenizer.encode_turn(role, text) for role, text in turns]


def probabilities(member: Seq2Seq, conversation: list[list[int]], said: Sequence[int]) -> torch.Tensor:
    """What a member says comes after each token of a reply, step by step, (n, V)."""
    with torch.inference_mode():
        state, memory = member.start(member.encode_conversations([conversation]))
        found = []
        for token in [AGENT, *said[:-1]]:
            logits, state, _ = member.step(torch.tensor([token]), state, memory)
            found.append(logits[0].softmax(0))
    return torch.stack(found)


def test_an_ensemble_of_one_is_that_model(members: list[ModelBundle]) -> None:
    alone = replies(drain(Batcher(members[0]), *requests()))
    together = replies(drain(Batcher(EnsembleBundle((members[0],))), *requests()))
    for name, reply in alone.items():
        other = together[name]
        assert (other.text, other.token_ids) == (reply.text, reply.token_ids)
        assert other.logprobs == pytest.approx(reply.logprobs)
        assert [a.text for a in other.alternatives] == [a.text for a in reply.alternatives]
        assert (other.attention is None) == (reply.attention is None)
        if reply.attention is not None and other.attention is not None:
            assert other.attention.remembered == reply.attention.remembered
            assert sum(other.attention.weights, ()) == pytest.approx(sum(reply.attention.weights, ()))


@pytest.mark.parametrize("count", [2, 3])
def test_probabilities_are_the_mean_of_those_of_the_members(
    members: list[ModelBundle], tiny_tokenizer: Tokenizer, count: int
) -> None:
    batcher = Batcher(EnsembleBundle(tuple(members[:count])))
    for name, reply in replies(drain(batcher, *requests())).items():
        turns = next(request.turns for request in requests() if request.id == name)
        conversation = ids_of(tiny_tokenizer, turns)
        solo = [probabilities(member.model, conversation, reply.token_ids) for member in members[:count]]
        mean = torch.stack(solo).mean(0)
        expected = mean[range(len(reply.token_ids)), list(reply.token_ids)].log().tolist()
        assert reply.logprobs == pytest.approx(expected)
        if name == "greedy":
            assert [mean[at].argmax().item() for at in range(len(mean))] == [
                place[0].id for place in reply.top
            ]


def test_every_reply_of_an_ensemble_is_what_it_is_alone(members: list[ModelBundle]) -> None:
    bundle = EnsembleBundle(tuple(members))
    alone = {one.id: replies(drain(Batcher(bundle), one))[one.id] for one in requests()}
    together = replies(drain(Batcher(bundle, rows=9), *requests()))
    for name, reply in alone.items():
        assert together[name].token_ids == reply.token_ids
        assert together[name].logprobs == pytest.approx(reply.logprobs)


def test_memories_end_with_the_newest_token(members: list[ModelBundle], tiny_tokenizer: Tokenizer) -> None:
    ensemble = Ensemble([member.model for member in members])
    conversations = [ids_of(tiny_tokenizer, LONG), ids_of(tiny_tokenizer, HELLO)]
    with torch.inference_mode():
        _, memory = ensemble.start(ensemble.encode_conversations(conversations))
    lengths = [sum(len(turn) for turn in conversation) for conversation in conversations]
    assert extent(memory.mask).tolist() == [min(length, 40) for length in lengths]
    for own, limit in zip(memory.members(), (24, 7, 40), strict=True):
        assert own.mask.sum(1).tolist() == [min(length, limit) for length in lengths]
        assert torch.equal(own.tokens[own.mask], memory.tokens[own.mask])
    for row, conversation in enumerate(conversations):
        flat = [token for turn in conversation for token in turn]
        assert memory.tokens[row][memory.mask[row]].tolist() == flat[-40:]


def test_the_losses_of_an_ensemble_are_those_of_its_mean(
    members: list[ModelBundle], tiny_tokenizer: Tokenizer
) -> None:
    bundle = EnsembleBundle(tuple(members[:2]))
    transcripts = orders(6, seed=3)
    for item in measure(bundle, transcripts, max_replies=0):
        turns = transcripts[item.reference.transcript].turns[: item.reference.turn]
        said = tiny_tokenizer.encode_turn("agent", item.reference.text)[1:]
        conversation = [tiny_tokenizer.encode_turn(turn.role, turn.text)[:24] for turn in turns]
        if item.reference.truncated or any(len(turn) > 23 for turn in conversation):
            continue
        solo = [probabilities(member.model, conversation, said) for member in members[:2]]
        mean = torch.stack(solo).mean(0)
        assert item.nll == pytest.approx(-mean[range(len(said)), said].log().sum().item(), rel=1e-6)


def test_an_ensemble_is_less_perplexed_than_its_members_on_average(members: list[ModelBundle]) -> None:
    """The logarithm of a mean is at least the mean of the logarithms."""
    transcripts = orders(10, seed=5)
    solo = [evaluate(member, transcripts, max_replies=0).nll for member in members]
    assert evaluate(EnsembleBundle(tuple(members)), transcripts, max_replies=0).nll < sum(solo) / 3


def test_members_share_a_tokenizer(members: list[ModelBundle], tiny_tokenizer: Tokenizer) -> None:
    copied = bundle_of(model(tiny_tokenizer, 4), Tokenizer.from_json(tiny_tokenizer.to_json()))
    assert EnsembleBundle((members[0], copied)).fingerprint == "tw-test+tw-test"
    other = Tokenizer.train(texts(orders(50, seed=9)), vocab_size=SMALL.vocab_size)
    stranger = bundle_of(model(other, 5), other)
    with pytest.raises(TokenizersDiffer, match="tokenizers differ"):
        EnsembleBundle((members[0], stranger))


# ---- Commands ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directories(
    members: list[ModelBundle], tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    folder = tmp_path_factory.mktemp("ensemble")
    defaults = DecodingOptions(max_tokens=6)
    for number, member in enumerate(members[:2]):
        seal(
            folder / str(number),
            model=member.model,
            tokenizer=tiny_tokenizer,
            defaults=defaults,
            metrics={},
            card="x",
        )
    return [folder / "0", folder / "1"]


def test_commands_take_several_models(
    directories: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import io
    import sys

    from chatbot import cli
    from chatbot.transcripts import render_transcript, write_transcripts
    from tests.small import transcript
    from training.__main__ import main as training

    def answer(*flags: str) -> float:
        asked = render_transcript(transcript("Hello!")).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(asked)))
        assert cli.main(["reply", *flags, "--prefix", "A latte"]) == 0
        found: float = json.loads(capsys.readouterr().out)["logprob"]
        return found

    def perplexity(*flags: str) -> float:
        assert training(["evaluate", *flags, str(file), "--json", "--no-generate", "--device", "cpu"]) == 0
        found: float = json.loads(capsys.readouterr().out)["perplexity_token"]
        return found

    file = tmp_path / "dev.jsonl.gz"
    write_transcripts(file, orders(3))
    first, second = map(str, directories)
    for measured in (answer, perplexity):
        one, two, both = measured(first), measured(second), measured(first, "--ensemble", second)
        assert len({round(figure, 6) for figure in (one, two, both)}) == 3
        assert measured(first, "--ensemble", first) == pytest.approx(one, abs=1e-3)


def test_models_that_cannot_work_together_are_refused_in_words(
    directories: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from chatbot import cli

    other = Tokenizer.train(texts(orders(50, seed=9)), vocab_size=SMALL.vocab_size)
    seal(
        tmp_path / "other",
        model=model(other, 5),
        tokenizer=other,
        defaults=DecodingOptions(),
        metrics={},
        card="x",
    )
    assert cli.main(["reply", str(directories[0]), "--ensemble", str(tmp_path / "other")]) == 1
    assert "cannot work together: their tokenizers differ" in capsys.readouterr().err


def test_configurations_meet_where_all_members_can_follow(members: list[ModelBundle]) -> None:
    config: ModelConfig = EnsembleBundle(tuple(members)).config
    assert config.memory_tokens == 40
    assert config.max_turn_tokens == 20
    assert math.isfinite(EnsembleBundle(tuple(members)).model.bias.sum().item())
