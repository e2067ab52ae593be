"""The map of what people talk about: the plane, the groups, the words, and the routes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from sqlalchemy import delete, func, select, update

from chatbot import model_directory
from chatbot.transcripts import Role
from chatbot.turn_states import state_of
from server.console import erasing, topics
from server.console.bundles import Shelf
from server.console.masking import Masker
from server.console.projection import (
    LANDMARKS,
    in_groups,
    neighbourhoods,
    principal_components,
    project,
    t_sne,
)
from server.console.topic_words import telling_words, words_of
from server.console.topics import Rest, Topics, states_of
from server.database import reading, writing
from server.tables import AuditEntry, Conversation, MaskedName, TopicMap, TopicPoint, Visitor
from tests.console_client import TestConsole, console_over, run
from tests.databases import KINDS, fresh_database
from tests.scripted_batcher import parrot

TOPICS = "/api/operator/topics"


def blobs(count: int, kinds: int = 4, width: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors around as many centers, and which is whose."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(kinds, (count,), generator=generator)
    centers = torch.randn(kinds, width, generator=generator)
    return torch.tanh(centers[kind] + 0.3 * torch.randn(count, width, generator=generator)), kind


# --- the plane --------------------------------------------------------------------------------------------


def test_principal_components_are_those_of_the_decomposition() -> None:
    vectors, _ = blobs(50, width=12)
    found = principal_components(vectors, 5)
    u, s, _ = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    assert torch.allclose(found.abs(), (u * s)[:, :5].abs(), atol=1e-4)
    assert torch.equal(found.gather(0, found.abs().argmax(0, keepdim=True)) > 0, torch.ones(1, 5) > 0)


def test_neighbourhoods_have_the_perplexity_asked_for() -> None:
    vectors, _ = blobs(80)
    near = neighbourhoods(vectors, 10.0)
    assert torch.allclose(near, near.T)
    assert float(near.sum()) == pytest.approx(1, abs=1e-5)
    assert not near.diagonal().any()
    # One row as the paper has it, before both directions are added: its entropy is log perplexity.
    distances = torch.cdist(vectors, vectors).square()
    distances = distances / distances.mean()
    rows = torch.stack([row_of(distances[i], i, 10.0) for i in range(80)])
    assert torch.allclose(near, (rows + rows.T) / 160, rtol=0.02, atol=1e-6)


def row_of(distances: torch.Tensor, own: int, perplexity: float) -> torch.Tensor:
    """Of all widths on a fine grid, the row whose perplexity is nearest."""
    rows = []
    for beta in torch.logspace(-3, 4, 4000):
        weights = torch.exp(-beta * (distances - distances.min()))
        weights[own] = 0
        rows.append(weights / weights.sum().clamp(min=1e-30))
    every = torch.stack(rows)
    entropies = -(every * every.clamp(min=1e-30).log()).sum(1)
    return every[int((entropies.exp() - perplexity).abs().argmin())]


def test_what_belongs_together_lies_together() -> None:
    vectors, kind = blobs(240)
    projected = project(vectors)
    distances = torch.cdist(projected.places, projected.places).fill_diagonal_(torch.inf)
    assert float((kind[distances.argmin(1)] == kind).double().mean()) > 0.97
    # No group has conversations of two kinds; there may be more groups than kinds.
    for group in range(int(projected.groups.max()) + 1):
        assert len(set(kind[projected.groups == group].tolist())) == 1


def test_more_than_the_landmarks_are_placed_beside_them() -> None:
    vectors, kind = blobs(LANDMARKS + 300)
    places = project(vectors).places
    distances = torch.cdist(places, places).fill_diagonal_(torch.inf)
    assert float((kind[distances.argmin(1)] == kind).double().mean()) > 0.97


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 40])
def test_few_or_equal_vectors_have_places_too(count: int) -> None:
    for vectors in (
        blobs(count)[0],
        torch.ones(count, 8),
        torch.zeros(count, 8),
        torch.full((count, 2), torch.nan),
    ):
        projected = project(vectors)
        assert projected.places.shape == (count, 2)
        assert bool((projected.places.abs() <= 1).all())
        assert projected.groups.tolist() == [0] * count or count > 7


def test_the_same_seed_gives_the_same_map() -> None:
    vectors, _ = blobs(150)
    one, two = project(vectors, seed=3), project(vectors, seed=3)
    assert torch.equal(one.places, two.places)
    assert torch.equal(one.groups, two.groups)


def test_groups_are_numbered_from_the_largest() -> None:
    vectors, kind = blobs(200)
    groups = in_groups(vectors, 4, torch.Generator().manual_seed(0), lambda: None)
    sizes = groups.bincount().tolist()
    assert sizes == sorted(kind.bincount().tolist(), reverse=True)


def test_t_sne_makes_the_divergence_smaller() -> None:
    vectors, _ = blobs(100)
    near = neighbourhoods(vectors, 30.0)

    def divergence(places: torch.Tensor) -> float:
        close = 1 / (1 + torch.cdist(places, places).square()).fill_diagonal_(torch.inf)
        shares = (close / close.sum()).clamp(min=1e-12)
        return float((near * (near.clamp(min=1e-12) / shares).log()).sum())

    assert divergence(t_sne(vectors)) < 0.5 * divergence(vectors[:, :2] * 1e-4)


# --- words ------------------------------------------------------------------------------------------------


def test_words_are_letters_that_tell_something() -> None:
    told = "Hello, I'd like a TAXI to café Nord; call 0770 900 1234 or ann@nord.example, says Ann. R2D2 7pm"
    assert words_of([told], Masker(["Ann"])) == {"taxi", "café", "nord", "call", "says"}
    assert words_of(["[email] [name]"], Masker()) == set()


def test_the_most_telling_words_come_first() -> None:
    taxis = [(0, str(n), ["book a taxi to the station", "the station please"]) for n in range(5)]
    banks = [(1, str(n), ["book a look at my bank balance"]) for n in range(5)]
    found = telling_words([*taxis, *banks], Masker())
    assert found == {0: ["station", "taxi", "book"], 1: ["balance", "bank", "book"]}


def test_what_one_visitor_says_is_not_shown_however_often() -> None:
    junk = [(0, "one", ["secretword taxi"])] * 1000
    assert telling_words([*junk, (0, "another", ["taxi"])], Masker()) == {0: ["taxi"]}


def test_a_conversation_is_where_it_has_been(tiny_model_dir: Path) -> None:
    bundle = model_directory.load(tiny_model_dir)
    turns: list[tuple[Role, str]] = [
        ("user", "Hello!"),
        ("agent", "Hi."),
        ("user", "A latte"),
        ("user", "so"),
    ]
    turns += [("agent", "Sure."), ("user", "thanks " * 30)]
    single: tuple[tuple[Role, str], ...] = (("user", "mocha"),)
    found = states_of(bundle, [tuple(turns), single, tuple(turns[:3])])
    # As if it had been read anew up to each turn of the user.
    upto = [turns[:1], turns[:3], turns[:4], turns[:6]]
    expected = np.concatenate([state_of(bundle, [each]) for each in upto]).mean(0)
    assert np.allclose(found[0], expected / np.linalg.norm(expected), atol=1e-5)
    assert np.allclose(found[1], state_of(bundle, [single])[0], atol=1e-5)


def test_a_rest_is_as_long_as_the_work() -> None:
    now, slept = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    rest = Rest(lambda: now, sleep)
    now += 0.001
    rest()
    now += 0.019
    rest()
    now += 0.5
    rest()
    assert slept == pytest.approx([0.02, 0.5])


# --- maps -------------------------------------------------------------------------------------------------


def maker(console: TestConsole, **more: Any) -> Topics:
    return Topics(console.db, console.desk.shelf, rest=lambda: lambda: None, **more)


async def made(client: httpx.AsyncClient) -> Any:
    """The newest map, once none is being made."""
    async with asyncio.timeout(60):
        while (found := (await client.get(TOPICS)).json())["building"]:  # noqa: ASYNC110 - as a page
            await asyncio.sleep(0.02)
    return found["map"]


def said(console: TestConsole, texts: Sequence[str]) -> list[str]:
    return [console.conversation([(text, "hm"), (text, None)]).id for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_is_made_kept_and_shown(kind: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("reviewer")
        assert (await client.get(TOPICS)).json() == {"map": None, "building": False}
        taxis, banks = said(console, ["taxi to the station"] * 3), said(console, ["bank balance"] * 3)
        console.conversation([])
        with writing(console.db) as connection:
            values = {"thumbs_down": True, "waiting_since": func.now(), "confidence": 0.1}
            connection.execute(update(Conversation).where(Conversation.id == taxis[0]).values(values))
        begun = await client.post(TOPICS)
        assert (begun.status_code, begun.json()) == (202, {"building": True, "begun": True})
        found = await made(client)
        assert found["model"] == console.desk.engine.speaker.fingerprint
        assert sorted(point["conversation"] for point in found["points"]) == sorted([*taxis, *banks])
        assert all(-1 <= point[axis] <= 1 for point in found["points"] for axis in "xy")
        [cluster] = found["clusters"]  # six are too few for two
        assert cluster["size"] == 6
        assert set(cluster["words"]) == {"taxi", "station", "bank", "balance"}
        assert [cluster[name] for name in ("thumbs_down", "waiting", "low_confidence")] == pytest.approx(
            [1 / 6] * 3
        )

        with writing(console.db) as connection:  # what is erased is on no map any more
            gone = select(Conversation.visitor_id).where(Conversation.id == taxis[0])
            connection.execute(delete(Visitor).where(Visitor.id.in_(gone)))
        found = (await client.get(TOPICS)).json()["map"]
        [cluster] = found["clusters"]
        assert (len(found["points"]), cluster["size"], cluster["thumbs_down"]) == (5, 5, 0)
        with reading(console.db) as connection:
            [entry] = connection.execute(select(AuditEntry).where(AuditEntry.action == "topics.make")).all()
        assert (entry.operator, entry.subject) == ("reviewer", found["id"])
        assert (entry.details or {})["conversations"] == 6

    with fresh_database(kind, tmp_path) as url:
        run(console_over(url=url, models=tiny_model_dir, script=parrot), test)


def test_one_at_a_time(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("reviewer")
        said(console, ["taxi"] * 3)
        going_on = asyncio.Event()
        loop = asyncio.get_running_loop()
        waited = []

        def wait(*_: Any, **__: Any) -> Any:
            waited.append(asyncio.run_coroutine_threadsafe(going_on.wait(), loop).result(20))
            return real(*_, **__)

        real = topics.states_of
        monkeypatch.setattr(topics, "states_of", wait)
        assert (await client.post(TOPICS)).json() == {"building": True, "begun": True}
        assert (await client.post(TOPICS)).json() == {"building": True, "begun": False}
        assert (await client.get(TOPICS)).json() == {"map": None, "building": True}
        going_on.set()
        assert await made(client) is not None
        assert waited == [True]

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def test_states_are_read_once(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(console: TestConsole) -> None:
        read: list[int] = []

        def counted(bundle: Any, conversations: Sequence[Any]) -> np.ndarray:
            read.append(len(conversations))
            return real(bundle, conversations)

        real = topics.states_of
        monkeypatch.setattr(topics, "states_of", counted)
        talks = [console.conversation([("taxi", "hm")]) for _ in range(3)]
        desk, model = maker(console), console.desk.engine.speaker.fingerprint

        async def another() -> str | None:
            assert desk.begin(model, "somebody")
            return await asyncio.to_thread(desk.wait, 60)

        maps = [await another()]
        maps.append(await another())
        console.say(talks[0], "and a bank")
        maps.append(await another())
        assert read == [3, 1]
        assert None not in maps
        with reading(console.db) as connection:  # two are kept, with their points
            kept = set(connection.scalars(select(TopicMap.id)))
            assert set(connection.scalars(select(TopicPoint.map_id))) == kept == set(maps[1:])
        newest = desk.newest()
        assert newest is not None
        assert newest.id == maps[2]
        assert not await asyncio.to_thread(desk.begin, "tw-unknown", "somebody") or desk.wait(60) is None
        assert desk.newest() == newest
        desk.close()

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def test_only_the_newest_are_on_the_map_and_no_masked_names(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        with writing(console.db) as connection:
            connection.execute(MaskedName.__table__.insert().values(name="Ann", created_at=func.now()))  # type: ignore[attr-defined]
        ids = said(console, ["bank of Ann"] * 5)
        desk = maker(console, most=3)
        assert desk.begin(console.desk.engine.speaker.fingerprint, "somebody")
        await asyncio.to_thread(desk.wait, 60)
        newest = desk.newest()
        assert newest is not None
        assert {point.conversation for point in newest.points} == set(ids[2:])
        assert [cluster.words for cluster in newest.clusters] == [["bank"]]
        desk.close()

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def test_a_map_tells_no_word_of_somebody_who_was_erased_while_it_was_made(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(console: TestConsole) -> None:
        first, *_ = said(console, ["taxi to the station", "taxi to the bank", "station at the bank"])

        def erased_first(*arguments: Any) -> dict[int, list[str]]:
            visitor = erasing.visitor_of(console.db, conversation=first)
            assert visitor is not None
            assert erasing.erase(console.db, visitor, None) is not None
            return telling_words(*arguments)

        monkeypatch.setattr(topics, "telling_words", erased_first)
        desk = maker(console)
        assert desk.begin(console.desk.engine.speaker.fingerprint, "somebody")
        await asyncio.to_thread(desk.wait, 60)
        newest = desk.newest()
        assert newest is not None
        assert [(cluster.size, cluster.words) for cluster in newest.clusters] == [(2, ["bank"])]
        desk.close()

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def test_closing_gives_up_what_is_being_made(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        said(console, ["taxi"] * 3)
        desk = Topics(console.db, Shelf(tiny_model_dir), rest=lambda: desk.stop)
        assert desk.begin(console.desk.engine.speaker.fingerprint, "somebody")
        assert await asyncio.to_thread(desk.wait, 60) is None
        desk.close()
        assert desk.newest() is None

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)
