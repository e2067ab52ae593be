"""What people talk about: conversations on a map, where those that the model takes for alike lie together.

    the newest conversations ── the encoder's states after the visitor's turns, their mean
        ── places and groups (console.projection) ── each group's most telling words (console.topic_words)
        ── topic_map, topic_point

A map is made when somebody asks for one, on a thread of its own that rests as long as it works, and stays
until the next.

The state after the last turn alone tells above all how far a conversation has come: who confirms a flight and
who confirms a table then lie together. The mean over the visitor's turns tells what it is about.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from threading import Lock
from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch
from sqlalchemy import ColumnElement, Connection, Engine, case, delete, func, insert, select
from sqlalchemy.orm import InstrumentedAttribute
from torch.nn import functional as F

from chatbot.model_directory import ModelBundle
from chatbot.tokenizer import clip_turn
from chatbot.transcripts import Role
from chatbot.turn_states import WINDOW
from server import logs
from server.console import audit
from server.console.bundles import Shelf
from server.console.filters import UNSURE
from server.console.masking import Masker, masker
from server.console.projection import Projection, project
from server.console.topic_words import telling_words, words_of
from server.database import reading, writing
from server.desk import new_id
from server.tables import Conversation, Message, TopicMap, TopicPoint

log = logging.getLogger(__name__)

MOST: Final = 5000
"""Conversations of a map: the newest."""
KEPT: Final = 2
"""Maps in the database: the newest, and one that somebody may be looking at."""
AT_ONCE: Final = 32
"""Conversations that are read together."""
_LOOKED_AT: Final = 4 * WINDOW
"""Newest messages of a conversation, of which the last turns are taken."""
_ROWS: Final = 500
_SHORTEST_PAUSE: Final = 0.005

Turns = tuple[tuple[Role, str], ...]


class Talk(NamedTuple):
    """A conversation up to the visitor's last turn, its newest turns only."""

    id: str
    visitor: str
    last_seq: int
    turns: Turns

    @property
    def said(self) -> list[str]:
        """What the visitor said."""
        return [text for role, text in self.turns if role == "user"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A group of a map as it stands now. Shares of its conversations, 0 to 1."""

    number: int
    words: list[str]
    size: int
    x: float
    y: float
    thumbs_down: float
    waiting: float
    low_confidence: float


@dataclass(frozen=True, slots=True)
class Point:
    """A conversation on a map."""

    conversation: str
    x: float
    y: float
    cluster: int


@dataclass(frozen=True, slots=True)
class Map:
    id: str
    model: str
    created_at: datetime
    clusters: list[Cluster]
    points: list[Point]


class Rest:
    """Called between pieces of work, sleeps as long as the last one took."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._since = clock()

    def __call__(self) -> None:
        worked = self._clock() - self._since
        if worked >= _SHORTEST_PAUSE:
            self._sleep(worked)
            self._since = self._clock()


class Topics:
    """Makes maps, one at a time. rest: called by the thread that makes them, between pieces of work."""

    def __init__(
        self, db: Engine, shelf: Shelf, *, most: int = MOST, rest: Callable[[], Callable[[], None]] = Rest
    ) -> None:
        self._db = db
        self._shelf = shelf
        self._most = most
        self._rest = rest
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="topics")
        self._lock = Lock()
        self._building: Future[str | None] | None = None
        self._states: dict[tuple[str, str, int], np.ndarray] = {}
        self._stopping = False

    @property
    def building(self) -> bool:
        """Whether a map is being made."""
        building = self._building
        return building is not None and not building.done()

    def begin(self, model: str, operator: str) -> bool:
        """Begin to make a map with the model of this fingerprint; False if one is being made already."""
        with self._lock:
            if self.building:
                return False
            self._building = self._thread.submit(self._build, model, operator)
            return True

    def wait(self, seconds: float | None = None) -> str | None:
        """Until the map that is being made is there; its id, None if it could not be made."""
        return None if self._building is None else self._building.result(seconds)

    def stop(self) -> None:
        """Give up what is being made."""
        self._stopping = True

    def close(self) -> None:
        """Stop, and wait for the thread."""
        self.stop()
        self._thread.shutdown()

    def newest(self) -> Map | None:
        """The newest map, with the conversations that are still there."""
        with reading(self._db) as connection:
            found = connection.execute(
                select(TopicMap).order_by(TopicMap.created_at.desc(), TopicMap.id).limit(1)
            ).first()
            if found is None:
                return None
            points = connection.execute(
                select(TopicPoint.conversation_id, TopicPoint.x, TopicPoint.y, TopicPoint.cluster)
                .where(TopicPoint.map_id == found.id)
                .order_by(TopicPoint.conversation_id)
            ).all()
            shares = _shares(connection, found.id)
        clusters = [
            Cluster(each["number"], each["words"], x=each["x"], y=each["y"], **shares[each["number"]])
            for each in found.clusters
            if each["number"] in shares
        ]
        return Map(found.id, found.model, found.created_at, clusters, [Point(*row) for row in points])

    # --- on the thread ------------------------------------------------------------------------------------

    def _build(self, model: str, operator: str) -> str | None:
        torch.set_num_threads(1)  # of this thread: replies under way have the rest
        try:
            return self._make(model, operator)
        except InterruptedError:
            return None
        except Exception as error:  # noqa: BLE001 - whoever asked has gone; the old map stays
            logs.event(log, logging.ERROR, "topics_failed", error=logs.place(error))
            return None

    def _make(self, model: str, operator: str) -> str | None:
        pause = self._rest()

        def rest() -> None:
            pause()
            if self._stopping:
                raise InterruptedError

        with reading(self._db) as connection:
            mask = masker(connection)
        talks = list(self._talks(rest))
        if not talks:
            return None
        vectors = self._vectors(model, talks, rest)
        if not vectors.shape[1]:
            logs.event(log, logging.WARNING, "topics_without_encoder", model=model)
            return None
        with torch.inference_mode():
            projected = project(torch.from_numpy(vectors), breathe=rest)
        groups = projected.groups.tolist()
        said = ((group, talk.visitor, talk.said) for group, talk in zip(groups, talks, strict=True))
        words = telling_words(said, mask, rest)
        return self._keep(model, operator, talks, projected, words)

    def _talks(self, rest: Callable[[], None]) -> Iterator[Talk]:
        newest = (
            select(Conversation.id, Conversation.visitor_id, Conversation.last_seq)
            .where(Conversation.last_seq > 0)
            .order_by(Conversation.updated_at.desc(), Conversation.id.desc())
            .limit(self._most)
        )
        with reading(self._db) as connection:
            heads = connection.execute(newest).all()
        for part in _parts(heads, AT_ONCE):
            said: dict[str, list[tuple[Role, str]]] = defaultdict(list)
            query = (
                select(Message.conversation_id, Message.role, Message.text)
                .join(Conversation, Conversation.id == Message.conversation_id)
                .where(Conversation.id.in_([head.id for head in part]), ~Message.superseded)
                .where(Message.seq > Conversation.last_seq - _LOOKED_AT)
                .order_by(Message.conversation_id, Message.seq)
            )
            with reading(self._db) as connection:
                for conversation, role, text in connection.execute(query):
                    said[conversation].append((cast("Role", role), text))
            for head in part:
                turns = said[head.id]
                while turns and turns[-1][0] != "user":
                    turns.pop()
                if turns:
                    yield Talk(head.id, head.visitor_id, head.last_seq, tuple(turns[-WINDOW:]))
            rest()

    def _vectors(self, model: str, talks: Sequence[Talk], rest: Callable[[], None]) -> np.ndarray:
        """Each conversation's state, (N, C); where nothing was said since the last map, the one from then."""
        keys = [(model, talk.id, talk.last_seq) for talk in talks]
        known = {key: self._states[key] for key in keys if key in self._states}
        new = [(key, talk) for key, talk in zip(keys, talks, strict=True) if key not in known]
        bundle = self._shelf.bundle(model)
        if bundle is None:
            raise LookupError(model)
        # Conversations of about one length are read together: none is padded much.
        for part in _parts(sorted(new, key=lambda pair: _size(pair[1])), AT_ONCE):
            states = states_of(bundle, [talk.turns for _, talk in part])
            known |= {key: state for (key, _), state in zip(part, states, strict=True)}
            rest()
        self._states = known
        return np.stack([known[key] for key in keys])

    def _keep(
        self,
        model: str,
        operator: str,
        talks: Sequence[Talk],
        projected: Projection,
        words: Mapping[int, list[str]],
    ) -> str:
        places, groups = projected.places.tolist(), projected.groups.tolist()
        sizes = Counter(groups)
        clusters: list[dict[str, Any]] = [
            {"number": number, "words": words.get(number, []), "size": sizes[number], "x": x, "y": y}
            for number, (x, y) in enumerate(projected.centers.tolist())
        ]
        map_id = new_id()
        with writing(self._db) as connection:
            there: set[str] = set()
            for part in _parts([talk.id for talk in talks], _ROWS):
                there.update(connection.scalars(select(Conversation.id).where(Conversation.id.in_(part))))
            gone = ((group, talk) for group, talk in zip(groups, talks, strict=True) if talk.id not in there)
            _take_off(clusters, gone)
            connection.execute(
                insert(TopicMap).values(
                    id=map_id, model=model, created_at=datetime.now(UTC), clusters=clusters
                )
            )
            rows = [
                {"map_id": map_id, "conversation_id": talk.id, "cluster": group, "x": x, "y": y}
                for talk, group, (x, y) in zip(talks, groups, places, strict=True)
                if talk.id in there
            ]
            for rows_part in _parts(rows, _ROWS):
                connection.execute(insert(TopicPoint), list(rows_part))
            kept = select(TopicMap.id).order_by(TopicMap.created_at.desc(), TopicMap.id).limit(KEPT)
            old = set(connection.scalars(select(TopicMap.id))) - set(connection.scalars(kept))
            connection.execute(delete(TopicMap).where(TopicMap.id.in_(old)))
            audit.note(connection, operator, "topics.make", map_id, conversations=len(rows), model=model)
        return map_id


def _take_off(clusters: list[dict[str, Any]], gone: Iterable[tuple[int, Talk]]) -> None:
    """Take words that somebody said who was erased meanwhile off their topics, as erasing does on a map that
    is there already.
    """
    said: dict[int, set[str]] = defaultdict(set)
    for group, talk in gone:
        said[group] |= words_of(talk.said, Masker(kinds=()))
    for cluster in clusters:
        cluster["words"] = [word for word in cluster["words"] if word not in said[cluster["number"]]]


def states_of(bundle: ModelBundle, conversations: Sequence[Turns]) -> np.ndarray:
    """The mean direction of the encoder's summaries after each of the user's turns: float32 (B, C).

    Every conversation ends in a turn of the user. The turns are read once: up to the user's first, from there
    to the second, and so on.
    """
    model, limit = bundle.model, bundle.config.max_turn_tokens
    if model.encoder is None:
        return np.zeros((len(conversations), 0), dtype=np.float32)
    stretches: list[list[list[list[int]]]] = []
    for turns in conversations:
        stretches.append([[]])
        for role, text in turns:
            stretches[-1][-1].append(clip_turn(bundle.tokenizer.encode_turn(role, text), limit))
            if role == "user":
                stretches[-1].append([])
        stretches[-1].pop()
    context = None
    sums = torch.zeros(len(conversations), bundle.config.summary_size)
    with torch.inference_mode():
        for number in range(max(map(len, stretches))):
            read = [each[number] if number < len(each) else [] for each in stretches]
            context = model.encode_conversations(read, context)
            summaries = F.normalize(model.encoder.summary(context.state).float(), dim=1)
            sums += torch.tensor([[float(bool(turns))] for turns in read]) * summaries
        found: np.ndarray = F.normalize(sums, dim=1).numpy()
    return found


# ---- Inside ------------------------------------------------------------------------------------------------


def _shares(connection: Connection, map_id: str) -> dict[int, dict[str, Any]]:
    """Of each group, how many conversations there are now, and the shares of those that went badly."""
    low = Conversation.confidence < UNSURE
    query = (
        select(
            TopicPoint.cluster,
            func.count(),
            _how_many(Conversation.thumbs_down),
            _how_many(Conversation.waiting_since.is_not(None)),
            _how_many(low),
        )
        .join(Conversation, Conversation.id == TopicPoint.conversation_id)
        .where(TopicPoint.map_id == map_id)
        .group_by(TopicPoint.cluster)
    )
    return {
        cluster: {
            "size": size,
            "thumbs_down": thumbs_down / size,
            "waiting": waiting / size,
            "low_confidence": unsure / size,
        }
        for cluster, size, thumbs_down, waiting, unsure in connection.execute(query)
    }


def _how_many(condition: ColumnElement[bool] | InstrumentedAttribute[bool]) -> ColumnElement[int]:
    return func.sum(case((condition, 1), else_=0))


def _size(talk: Talk) -> int:
    return sum(len(text) for _, text in talk.turns)


def _parts(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(items)
    while part := list(islice(remaining, size)):
        yield part
