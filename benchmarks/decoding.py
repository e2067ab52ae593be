"""``python -m benchmarks.decoding [MODEL]``: tokens a second of the batcher beside references in one run.

Sizes are "model S" (vocabulary 8000, embedding and hidden 512, two decoder layers), untrained, or those of
MODEL; a conversation of one turn of 40 tokens, replies of exactly 20, from request to text. Beside it: a loop
of `Seq2Seq.step` in float32 over as many rows that reads the turn and chooses nothing; with ``--joeynmt
PYTHON``, an interpreter that has JoeyNMT 2.3, its search with a model of the sizes of model S.

``--transcripts FILE`` tells what the served precision costs: perplexity, and the share of greedy replies that
differ from those of float32.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import get_args

import torch

from benchmarks.figures import interleaved, report
from benchmarks.joeynmt_model import SOURCE, TARGET
from benchmarks.peers import Searcher
from benchmarks.training import MODEL_S
from chatbot.batcher import Batcher, Finished, ReplyRequest
from chatbot.model import Seq2Seq
from chatbot.model_directory import SHIPPED, ModelBundle, find_model, load
from chatbot.options import DecodingOptions
from chatbot.replies import Reply
from chatbot.served import Precision, precision_of, served
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Role, Transcript, read_transcripts
from training.batches import collate, plan_epoch
from training.corpus import corpus_of

ROWS = (
    ("greedy", 1, 1),
    ("greedy", 32, 1),
    ("sample", 1, 1),
    ("sample", 32, 1),
    ("beam", 1, 5),
    ("beam", 16, 5),
)
BATCH_TOKENS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", help="model S if left out")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument("--joeynmt", metavar="PYTHON", help="an interpreter that has JoeyNMT 2.3")
    parser.add_argument("--transcripts", type=Path, metavar="FILE", help="compare what is said there")
    parser.add_argument("--conversations", type=int, default=100, help="of the transcripts")
    parser.add_argument("--only", help="rows whose name begins with this")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    own = load(find_model(args.model or SHIPPED), device=args.device)
    if args.transcripts:
        quality(own, served(own, args.precision), args.transcripts, args.conversations)
        return
    speed(own if args.model else model_s(own), args.precision, args.runs, args.joeynmt, args.only or "")


# ---- Speed -------------------------------------------------------------------------------------------------


def model_s(like: ModelBundle) -> ModelBundle:
    """An untrained model of the sizes of model S, with another's tokenizer."""
    torch.manual_seed(0)
    device = like.model.bias.device
    config = MODEL_S.model_copy(update={"vocab_size": like.tokenizer.vocab_size})
    return ModelBundle(
        path=Path("model-s"),
        config=config,
        model=Seq2Seq(config).to(device).eval(),
        tokenizer=like.tokenizer,
        defaults=DecodingOptions(),
        metrics={},
        card="",
        fingerprint="model-s",
    )


def speed(plain: ModelBundle, precision: Precision, runs: int, joeynmt: str | None, only: str) -> None:
    """Every row beside its references."""
    bundle, turn = served(plain, precision), turn_of(plain.tokenizer, SOURCE)
    peer = Searcher(joeynmt, torch.get_num_threads()) if joeynmt else None
    for decoding, replies, beam in ROWS:
        name = f"{decoding}_{replies}" + (f"_beam_{beam}" if beam > 1 else "")
        if not name.startswith(only):
            continue
        work: list[Callable[[], object]] = [
            partial(
                answer, Batcher(bundle, rows=replies * beam, waiting=replies), turn, decoding, replies, beam
            ),
            partial(bare_steps, plain, turn, replies * beam),
        ]
        references = ["a loop of float32 steps that chooses nothing"]
        if peer is not None and decoding != "sample":
            work.append(partial(peer.search, replies, beam))
            references.append("JoeyNMT 2.3, recurrent with attention, the sizes of model S")
        timing, *others = interleaved(runs, *work)
        for reference, other in zip(references, others, strict=True):
            report(
                name,
                replies * TARGET / timing.median,
                "tokens/s",
                replies * TARGET / other.median,
                reference,
                model=bundle.fingerprint,
                precision=precision_of(bundle.model),
                threads=torch.get_num_threads(),
                device=str(bundle.model.bias.device),
            )
    if peer is not None:
        peer.close()


def turn_of(tokenizer: Tokenizer, tokens: int) -> tuple[Role, str]:
    """A turn of the visitor that is read as so many tokens."""
    text = "Hello,"
    words = ["I", "would", "like", "a", "table", "for", "four", "people", "on", "Friday", "evening"]
    for number in range(tokens):
        if len(tokenizer.encode_turn("user", text)) >= tokens:
            break
        text = f"{text} {words[number % len(words)]}"
    return "user", text


def answer(batcher: Batcher, turn: tuple[Role, str], decoding: str, replies: int, beam: int) -> None:
    """As many replies of exactly `TARGET` tokens at once, from request to text."""
    options = DecodingOptions.checked(
        {"decoding": decoding, "beam_size": beam, "min_tokens": TARGET, "max_tokens": TARGET, "seed": 1}
    )
    for number in range(replies):
        batcher.submit(ReplyRequest(str(number), (turn,), options))
    finished = 0
    while not batcher.idle:
        finished += sum(isinstance(event, Finished) for event in batcher.step())
    assert finished == replies


def bare_steps(bundle: ModelBundle, turn: tuple[Role, str], rows: int) -> None:
    """The model alone."""
    model, ids = bundle.model, bundle.tokenizer.encode_turn(*turn)
    tokens = torch.full((rows,), bundle.tokenizer.agent_id, device=model.bias.device)
    with torch.inference_mode():
        state, memory = model.start(model.encode_conversations([[ids]] * rows))
        for _ in range(TARGET):
            _, state, _ = model.step(tokens, state, memory)


# ---- Quality -----------------------------------------------------------------------------------------------


def quality(plain: ModelBundle, lowered: ModelBundle, file: Path, conversations: int) -> None:
    """What the precision changes on the first ``conversations`` of ``file``."""
    transcripts = list(islice(read_transcripts(file), conversations))
    about = {"precision": precision_of(lowered.model), "model": plain.fingerprint}
    losses = [token_losses(bundle, transcripts) for bundle in (lowered, plain)]
    own, reference = (math.exp(each.mean().item()) for each in losses)
    change = (losses[0] - losses[1]).abs()
    report(
        "perplexity_token",
        own,
        "",
        reference,
        "float32",
        tokens=len(change),
        mean_change_nats=round(change.mean().item(), 5),
        largest_change_nats=round(change.max().item(), 4),
        **about,
    )
    ours, theirs = (greedy_replies(bundle, transcripts) for bundle in (lowered, plain))
    changed = sum(one.token_ids != other.token_ids for one, other in zip(ours, theirs, strict=True))
    report("changed_replies", changed, "replies", len(ours), "all greedy replies", **about)


def token_losses(bundle: ModelBundle, transcripts: list[Transcript]) -> torch.Tensor:
    """Negative log-likelihoods in nats of all tokens of all replies."""
    corpus = corpus_of(transcripts, bundle.tokenizer, max_turn_tokens=bundle.config.max_turn_tokens)
    plan = plan_epoch(corpus, budget=BATCH_TOKENS, seed=0, epoch=0)
    with torch.inference_mode():
        return torch.cat([bundle.model.token_losses(collate(corpus, batch)) for batch in plan]).double()


def greedy_replies(bundle: ModelBundle, transcripts: list[Transcript]) -> list[Reply]:
    """A reply to every turn of a visitor that an agent has answered."""
    questions = [
        tuple((turn.role, turn.text) for turn in transcript.turns[:at])
        for transcript in transcripts
        for at in range(1, len(transcript.turns))
        if transcript.turns[at].role == "agent" and transcript.turns[at - 1].role == "user"
    ]
    options = DecodingOptions.merged(bundle.defaults, {"decoding": "greedy"})
    batcher = Batcher(bundle, rows=32, waiting=len(questions))
    for number, turns in enumerate(questions):
        batcher.submit(ReplyRequest(str(number), turns, options))
    replies: dict[int, Reply] = {}
    while not batcher.idle:
        for event in batcher.step():
            if isinstance(event, Finished):
                replies[int(event.id)] = event.reply
    return [replies[number] for number in range(len(questions))]


if __name__ == "__main__":
    main()
