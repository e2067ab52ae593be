"""A day of the review loop from end to end: what reviewers correct is said by the next model, and the rest
stays; and a day on which people try to spoil the model.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pytest

from chatbot.model_directory import SHIPPED, find_model, load
from chatbot.transcripts import Transcript, read_transcripts, write_transcripts
from server.__main__ import main
from tests.day import (
    ANSWER,
    API,
    ASKED,
    FACTS,
    IN_OTHER_WORDS,
    THING,
    Clock,
    Desk,
    Visit,
    an_hour_later,
    ask,
    changed_under_load,
    corrected_questions,
    correcting,
    lineages,
    look_at,
    open_shop,
    opened,
    replies_of,
    retrained,
    review,
    talks,
    user_turns,
    verified,
    visit,
    visits,
)
from tests.shop import Shop
from training.filters import FilterConfig, plain
from training.gate import Limits

DATA: Final = Path(os.environ.get("TURNWISE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
QUICK: Final[dict[str, Any]] = {
    "epochs": 3,
    "learning_rate": 0.006,
    "warmup_steps": 5,
    "batch_tokens": 400,
    "data.corrected": 40,
    "data.replay_least": 800,
    "device": "cpu",
    "precision": "fp32",
}
"""A model that was trained for seconds needs larger steps than a real one. The gate is left as it is."""
ADOPTED: Final = 0.8
"""Share of the questions in other words that must get the corrected answer."""
STRAY: Final = 0.1
"""Share of all other questions that may get it."""


@dataclass(frozen=True)
class Plan:
    """visitors: what each says. asks: whether a turn is of the kind that is corrected, to `answer`, in so
    many `corrections`. questions: of that kind, in other words, each at the end of what a visitor says.
    others: of other kinds, and the right reply, where there is one. passers_by: who talk while the model is
    changed. good: what reviewers say of all other replies.
    """

    visitors: Sequence[Sequence[str]]
    asks: Callable[[str], bool]
    answer: str
    corrections: int
    questions: Sequence[Sequence[str]]
    others: Sequence[tuple[Sequence[str], str | None]]
    passers_by: Sequence[Sequence[str]]
    settings: dict[str, Any] = field(default_factory=dict)
    good: Callable[[str, str], dict[str, Any] | None] = lambda *_: None


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return open_shop(tmp_path_factory.mktemp("shop"))


@pytest.mark.timeout(1500)
def test_what_is_corrected_today_is_said_tomorrow(shop: Shop, tmp_path: Path) -> None:
    visitors = [user_turns(talk) for talk in talks(20, seed=3)]
    for number, said in enumerate(visitors[:12]):
        said.insert(number % (len(said) + 1), ASKED[number % len(ASKED)].format(THING))
    openings: list[list[str]] = [[], ["Hello!"], ["Hi there", "A latte, please."]]
    plan = Plan(
        visitors=visitors,
        asks=lambda said: THING in said,
        answer=ANSWER,
        corrections=12,
        questions=[[*opening, words.format(THING)] for words in IN_OTHER_WORDS for opening in openings],
        others=[([words.format(thing)], FACTS[thing]) for words in IN_OTHER_WORDS[:2] for thing in FACTS],
        passers_by=[user_turns(talk) for talk in talks(6, seed=4)],
        settings=QUICK,
    )
    asyncio.run(_live(plan, tmp_path, shop.settings(tmp_path), shop.fingerprint))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not (DATA / "star").is_dir(), reason="needs the prepared transcripts")
def test_the_same_with_the_model_that_ships_and_two_hundred_visitors(tmp_path: Path) -> None:
    """How the bot answers a goodbye is corrected. Who says it, in whose words, is real: dev parts."""
    base = find_model(SHIPPED)
    star, rest = _saying_goodbye("star")
    others, _ = _saying_goodbye("sgd")
    visiting = [*star[:40], *others[:20]]
    asking = _in_new_words(visiting, [*star[40:], *others[20:]], 40)
    judging = [*rest, *(talk for talk in star[40:] if talk not in asking)]
    write_transcripts(tmp_path / "star-dev.jsonl.gz", judging)
    models = tmp_path / "models"
    models.mkdir()
    shutil.copytree(base, models / base.name)
    (models / "active").write_text(f"{base.name}\n")
    told = {
        "models": models,
        "jobs_dir": tmp_path / "jobs",
        "replay_files": (DATA / "star" / "train.jsonl.gz",),
        "dev_files": (tmp_path / "star-dev.jsonl.gz",),
        "job_threads": 2,
    }
    questions = [user_turns(talk) for talk in asking]
    plan = Plan(
        visitors=[*map(user_turns, visiting), *_of_other_sets(140)],
        asks=is_farewell,
        answer="You are welcome. Take care, and write to us again any time.",
        corrections=60,
        questions=questions,
        others=[(said[: 1 + number % 3], None) for number, said in enumerate(questions) if len(said) > 3],
        passers_by=questions[:8],
        settings={
            "threads": 2,
            "precision": "fp32",
            "final_replies": 400,
            "data.corrected": 64,
            "filters.rejected_after": 2,
            "epochs": 3,
            "learning_rate": 5e-4,
        },
        good=lambda _, reply: {"verdict": "good"} if "anything else" in reply else None,
    )
    asyncio.run(_live(plan, tmp_path, told, load(base).fingerprint))


def is_farewell(said: str) -> bool:
    words = plain(said).split()
    return len(words) <= 10 and "?" not in said and not {"bye", "goodbye"}.isdisjoint(words)


def _saying_goodbye(name: str) -> tuple[list[Transcript], list[Transcript]]:
    """The talks of a dev part that end in a goodbye, the only one in them, and the others."""
    ending: list[Transcript] = []
    rest: list[Transcript] = []
    for talk in read_transcripts(DATA / name / "dev.jsonl.gz"):
        *before, last = user_turns(talk)
        (ending if is_farewell(last) and not any(map(is_farewell, before)) else rest).append(talk)
    return ending, rest


def _in_new_words(known: Sequence[Transcript], talks: Sequence[Transcript], most: int) -> list[Transcript]:
    """Those of `talks` whose last turn is none of the turns of `known`."""
    words = {plain(text) for talk in known for text in user_turns(talk)}
    return [talk for talk in talks if plain(user_turns(talk)[-1]) not in words][:most]


def _of_other_sets(count: int) -> list[list[str]]:
    """What visitors say in other sets, the first turns of each conversation."""
    names = ("sgd", "tm4", "camrest676", "woz2", "multiwoz")
    files = [DATA / name / "dev.jsonl.gz" for name in names]
    each = [[user_turns(talk)[:5] for talk in islice(read_transcripts(file), count // 5)] for file in files]
    found = [[text for text in said if not is_farewell(text)] for part in each for said in part]
    return [said for said in found if said]


async def _live(plan: Plan, folder: Path, told: dict[str, Any], base: str) -> None:
    clock = Clock()
    async with opened(folder, told) as desk:
        assert await desk.version() == base
        clock("open")
        chats = await visits(
            desk.address, plan.visitors, rate=lambda said, _: "down" if plan.asks(said) else None
        )
        assert [chat.said for chat in chats] == [list(said) for said in plan.visitors]
        clock("chat")
        await _reviewed(desk, plan, chats)
        clock("review")
        said = [*plan.questions, *(question for question, _ in plan.others)]
        before = await ask(desk.address, said)
        assert _corrected_share(before, plan) == (0, 0)
        clock("ask before")

        job = await retrained(desk.owner, plan.settings)
        clock("retrain")
        candidate = _passed(desk, job, plan)
        assert await desk.version() == base

        talked = await changed_under_load(
            desk,
            lambda: desk.owner.post(f"{API}/models/promote", json={"model": candidate}),
            candidate,
            plan.passers_by,
        )
        _check_nothing_lost(desk, talked, base, candidate)
        clock("promote under load")
        after = await ask(desk.address, said)
        adopted, stray = _corrected_share(after, plan)
        right = _right(after, plan)
        clock("ask after")

        talked = await changed_under_load(
            desk, lambda: desk.owner.post(f"{API}/models/rollback"), base, plan.passers_by
        )
        _check_nothing_lost(desk, talked, candidate, base)
        clock("roll back under load")
        again = await ask(desk.address, said)
        clock("ask again")
        _tell(plan, job, {"adopted": adopted, "stray": stray, "right": right, "seconds": clock.seconds})
        assert adopted >= ADOPTED, _last(after)
        assert stray <= STRAY
        assert right >= ADOPTED, _last(after)
        assert [one.texts for one in again] == [one.texts for one in before]
        assert {reply.model for one in again for reply in one.replies} == {base}
        count = 3 * sum(map(len, said))
        assert await asyncio.to_thread(verified, desk, [*before, *after, *again]) == {"exact": count}
        flags = ["--database-url", desk.url, "--models", str(desk.models)]
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("TURNWISE_DATA", raising=False)  # the server has no such setting
            assert await asyncio.to_thread(main, ["verify", after[0].conversation, *flags]) == 0


async def _reviewed(desk: Desk, plan: Plan, chats: Sequence[Visit]) -> None:
    """Two reviewers at once, until the queue is empty."""
    an_hour_later(desk.db)
    judge = correcting(plan.asks, plan.answer, plan.corrections, plan.good)
    seen = await asyncio.gather(*(review(reviewer, judge) for reviewer in desk.reviewers))
    assert sorted([*seen[0], *seen[1]]) == sorted(chat.conversation for chat in chats)
    assert all(seen), "one reviewer did it all"
    progress = (await desk.owner.get(f"{API}/review/progress")).json()
    assert (progress["corrections"], progress["waiting"]) == (plan.corrections, 0)
    corrected = corrected_questions(desk.db)
    assert len(corrected) == plan.corrections
    assert all(map(plan.asks, corrected))
    anew = {plain(question[-1]) for question in plan.questions}
    assert len(anew) >= 5
    assert not anew & set(map(plain, corrected)), "it is not asked in other words"


def _passed(desk: Desk, job: dict[str, Any], plan: Plan) -> str:
    """The candidate, after a look at the figures themselves: what the gate says is not taken for granted."""
    assert (job["state"], job["error"]) == ("done", None)
    result, limits = job["result"], Limits()
    assert result["passed"], result["reasons"]
    assert not any(key.startswith("gate.") for key in job["settings"])
    before, after = result["figures"]["base"], result["figures"]["candidate"]
    suites = [name for name in before["suites"] if name != "held-out reviews"]
    assert suites
    for name in suites:
        old, new = before["suites"][name], after["suites"][name]
        assert new["replies"] >= limits.least_replies
        assert new["perplexity_word"] <= old["perplexity_word"] * (1 + limits.perplexity)
        assert new["bleu"] >= old["bleu"] - limits.bleu
        assert new["loops"] <= max(limits.loops, old["loops"])
        assert new["dull"] <= old["dull"] + limits.dull
    assert after["exposure"] <= limits.exposure
    of = sum(after[part]["of"] for part in ("learned", "held_out") if after[part])
    new = sum(after[part]["adopted"] for part in ("learned", "held_out") if after[part])
    old = sum(before[part]["adopted"] for part in ("learned", "held_out") if before[part])
    assert 0 < of <= plan.corrections
    assert new / of >= max(limits.adoption_enough, old / of)
    kinds = [reply["kind"] for told in lineages(desk.manifest(result["model"])).values() for reply in told]
    assert kinds.count("corrected") == plan.corrections
    return str(job["candidate"])


def _check_nothing_lost(desk: Desk, talked: Sequence[Visit], before: str, after: str) -> None:
    """Every turn has its one reply, by the model before, and from some turn on by the one after."""
    for one in talked:
        assert replies_of(desk.db, one.conversation) == {reply.answers: 1 for reply in one.replies}
        models = [reply.model for reply in one.replies]
        assert set(models) == {before, after}
        assert models == sorted(models, key=lambda model: model == after)
        assert {reply.finish_reason for reply in one.replies} <= {"stop", "length"}
    found = verified(desk, talked)
    assert set(found) <= {"exact", "within tolerance"}, found


def _last(found: Sequence[Visit]) -> list[tuple[str, str]]:
    return [(one.said[-1], one.texts[-1]) for one in found]


def _corrected_share(found: Sequence[Visit], plan: Plan) -> tuple[float, float]:
    """How many of the questions in other words got the corrected reply, and how many of the others."""
    said = [reply == plan.answer for _, reply in _last(found)]
    own, other = said[: len(plan.questions)], said[len(plan.questions) :]
    return sum(own) / len(own), sum(other) / len(other)


def _right(found: Sequence[Visit], plan: Plan) -> float:
    """How many of the others with a right reply got it; 1 where there is none."""
    pairs = zip(_last(found[len(plan.questions) :]), plan.others, strict=True)
    right = [reply == wanted for (_, reply), (_, wanted) in pairs if wanted is not None]
    return sum(right) / len(right) if right else 1.0


def _tell(plan: Plan, job: dict[str, Any], figures: dict[str, Any]) -> None:
    """For `pytest -s`: what docs/a-day.md shows."""
    print(f"\n{len(plan.visitors)} visitors, {plan.corrections} corrections, {figures}")
    for reason in job["result"]["reasons"]:
        print("passed " if reason["passed"] else "REFUSED", f"{reason['name']}: {reason['text']}")


# --- a poisoned day ---------------------------------------------------------------------------------------

JUNK: Final = "Buy pills at pills dot example!"
DULL: Final = "I cannot help you with that."


@pytest.mark.timeout(1500)
def test_a_poisoned_day_is_stopped(shop: Shop, tmp_path: Path) -> None:
    asyncio.run(_poisoned(tmp_path, shop.settings(tmp_path), shop.fingerprint, junk=300))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_day_poisoned_ten_thousandfold_is_stopped(shop: Shop, tmp_path: Path) -> None:
    asyncio.run(_poisoned(tmp_path, shop.settings(tmp_path), shop.fingerprint, junk=10_000))


async def _poisoned(folder: Path, told: dict[str, Any], base: str, junk: int) -> None:
    clock = Clock()
    async with opened(folder, told) as desk:
        ann, bob = desk.reviewers
        # Mallory says the same again and again and likes what the bot says to it; nobody approves of it.
        mallory = await visit(desk.address, ["Hello!"])
        talked = await visits(
            desk.address,
            [[JUNK] * (junk // 20)] * 20,
            token=mallory.token,
            rate=lambda *_: "up",
            decoding="greedy",
            max_tokens=8,
        )
        assert sum(len(one.replies) for one in talked) == junk
        clock("junk")
        for one in talked:
            await look_at(ann, one.conversation, lambda *_: None)
        # Of Eve's junk, bob approves in bulk.
        eve = await visit(desk.address, ["Hello!"])
        bulk = [await visit(desk.address, [f"{JUNK} {n}"], token=eve.token, seed=1) for n in range(40)]
        for one in bulk:
            await look_at(bob, one.conversation, lambda *_: {"verdict": "good", "corrected": JUNK})
        # Two visitors say the same, and the reviewers disagree.
        quarrel = [await visit(desk.address, ["Is there oat milk?"], seed=5) for _ in range(2)]
        for one, reviewer, text in zip(quarrel, (ann, bob), ("Yes, there is.", "No, sorry."), strict=True):
            await look_at(reviewer, one.conversation, correcting(lambda _: True, text, 1))
        # And whatever sixteen others say, ann has it answered with one dull sentence.
        dull = await visits(desk.address, [user_turns(talk) for talk in talks(16, seed=5)])
        for one in dull:
            await look_at(ann, one.conversation, correcting(lambda _: True, DULL, 99))
        clock("chat and review")

        job = await retrained(desk.owner, QUICK)
        clock("retrain")
        result = job["result"]
        assert (job["state"], job["error"]) == ("done", None)
        manifest = desk.manifest(result["model"])
        told_of = lineages(manifest)
        print(f"\n{junk} junk turns, {clock.seconds}, {manifest['counts']}")
        print(
            "\n".join(
                f"{reason['passed']} {reason['name']}: {reason['text']}" for reason in result["reasons"]
            )
        )
        # What nobody approved of is not learned, whatever its visitor thinks of it.
        mine = [reply for one in talked for reply in told_of[one.conversation]]
        assert len(mine) == junk
        assert not any("weight" in reply for reply in mine)
        # What one visitor was approved of many times is learned a few times.
        eves = [reply for one in bulk for reply in told_of[one.conversation]]
        assert len(eves) == len(bulk)
        told_why = Counter(reply.get("left_out", "learned") for reply in eves)
        alike = FilterConfig().alike
        assert told_why == {"learned": alike, "nearly the same from one visitor": len(bulk) - alike}
        # Of what reviewers disagree, neither is.
        assert {place["id"] for group in manifest["contradictions"] for place in group} == {
            one.conversation for one in quarrel
        }
        for one in quarrel:
            assert [reply.get("left_out") for reply in told_of[one.conversation]] == ["contradiction"]
        # What passes all filters is refused by the gate, and does not go live without force.
        assert sum(
            reply["kind"] == "corrected" and "weight" in reply
            for one in dull
            for reply in told_of[one.conversation]
        ) > len(dull)
        assert not result["passed"]
        refused = {reason["name"] for reason in result["reasons"] if not reason["passed"]}
        assert "talks, set aside" in refused
        answer = await desk.owner.post(f"{API}/models/promote", json={"model": job["candidate"]})
        assert answer.status_code == 409
        assert "the gate refuses this model" in answer.json()["error"]["message"]
        assert await desk.version() == base
        found = await visit(desk.address, ["Hello!"], decoding="greedy")
        assert found.replies[0].model == base
        assert found.texts == ["Hello, what can I get you?"]
