"""What a retraining learns and is judged by, from reviewed, imported and old transcripts; read top to bottom.

    reviewed, imported -> the review applied: which text stands, what it weighs
                       -> clean-up: faults, duplicates, loops, contradictions, floods, generic replies
                       -> a share of the reviewed conversations held out
    old (replay)       -> a sample of it, without what reviewers reject
    all                -> personal data masked -> canaries planted
                       -> train.jsonl.gz, and a manifest with the lineage of every conversation

What a model said is never learned unless a person approved or corrected it: it is read as context. The
manifest holds hashes, names and reasons, but no text: it may be kept when a visitor's words are erased.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chatbot.personal_data import find_personal
from chatbot.transcripts import (
    Role,
    Transcript,
    Turn,
    read_transcripts,
    render_transcript,
    write_aside,
    write_transcripts,
)
from training.clean import fault_of, hash_of_words, is_dev
from training.filters import (
    FilterConfig,
    bands,
    entropies,
    is_foreign,
    is_loop,
    mask,
    plain,
    same_words,
    secrets_in,
    squeezed,
)
from training.rejection import Rejected

Part = Literal["reviewed", "imported", "replay", "suite"]
Kind = Literal["corrected", "operator", "good", "agent", "context"]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]

FORMAT: Final = 1
"""Of the manifest."""
CODE_DIGITS: Final = 9
"""Of a canary."""
NOTHING: Final = "nothing in it to learn"
UNREVIEWED: Final = "said by a model, approved by nobody"
REJECTED: Final = "says what was corrected"
"""Reasons for which a conversation and a reply are left out."""
LONG_REPLY: Final = 4
"""Words from which a reply that the agent has just given is a loop; shorter ones may come again."""


class DataConfig(BaseModel):
    """Weights of the kinds of replies, and how much old data goes with the new."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corrected: Weight = 16.0
    """Weight of a reply that a person wrote in place of the model's."""
    operator: Weight = 16.0
    """Weight of what an operator said in the conversation."""
    good: Weight = 4.0
    """Weight of a model's reply that a person marked good."""
    imported: Weight = 2.0
    """Weight of a reply without an author in reviewed and imported conversations: a person's."""
    replay: Weight = 1.0
    """Weight of a reply of the old data."""
    replay_ratio: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 48.0
    """Old replies for every new one."""
    replay_least: Annotated[int, Field(ge=0)] = 800
    """Old replies at least, however few the new ones are."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the reviewed conversations that is not learned but judged by."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Of the sample of old data and of the canaries."""


class ReviewError(ValueError):
    """A review that cannot be understood: where it is and what is wrong with it."""

    def __init__(self, file: Path, conversation: str, turn: int, reason: str) -> None:
        super().__init__(file, conversation, turn, reason)
        self.file, self.conversation, self.turn, self.reason = file, conversation, turn, reason

    def __str__(self) -> str:
        return f"{self.file}: conversation {self.conversation!r}, turn {self.turn}: {self.reason}"


class Review(BaseModel):
    """The keys of an agent's turn that say what a person thought of it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    verdict: Literal["good", "bad"] | None = None
    corrected: Annotated[str, Field(strict=True, min_length=1)] | None = None
    labels: tuple[Annotated[str, Field(strict=True)], ...] = ()
    reviewed: Annotated[bool, Field(strict=True)] | None = None


@dataclass(slots=True)
class DraftTurn:
    """A turn on its way into the training part; the filters set ``weight`` to 0 and give a reason."""

    role: Role
    text: str
    kind: Kind = "context"
    weight: float = 0.0
    left_out: str | None = None  # why a reply is not learned
    was: str | None = None  # the model's text that was corrected
    author: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def learned(self) -> bool:
        return self.role == "agent" and self.weight > 0

    def leave_out(self, reason: str) -> None:
        self.weight, self.left_out = 0.0, reason


@dataclass(slots=True)
class Draft:
    """A conversation on its way into the training part."""

    part: Part
    file: str
    id: str
    visitor: str  # one person as far as is known: else the conversation itself
    turns: list[DraftTurn]
    left_out: str | None = None
    name: str = ""  # among what is learned and held out

    @property
    def place(self) -> str:
        return f"{self.file}: {self.id}"

    def replies(self) -> Iterator[tuple[int, str, DraftTurn]]:
        """``(place, question, reply)`` of every reply that is learned."""
        for place, turn in enumerate(self.turns):
            if turn.learned and place:
                yield place, self.before(place), turn

    def before(self, place: int) -> str:
        """The turn that is answered there, none at the beginning."""
        return self.turns[place - 1].text if place else ""

    def transcript(self) -> Transcript:
        turns = (Turn(role=turn.role, text=turn.text, weight=turn.weight) for turn in self.turns)
        return Transcript(id=self.name or self.id, turns=tuple(turns))

    def question(self, place: int, reply: str) -> Transcript:
        """The conversation before turn ``place`` as context, and ``reply`` as all that counts."""
        before = (Turn(role=turn.role, text=turn.text, weight=0.0) for turn in self.turns[:place])
        return Transcript(id=f"{self.name}#{place}", turns=(*before, Turn(role="agent", text=reply)))


@dataclass(frozen=True, slots=True)
class Correction:
    """A reply before and after a person corrected it, each with the conversation before it."""

    was: Transcript
    corrected: Transcript
    held_out: bool


@dataclass(frozen=True, slots=True)
class Secret:
    """What only one conversation tells: its place, the conversation up to there, the squeezed secrets."""

    place: str
    question: Transcript
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Canary:
    """A planted secret: a conversation that ends in a code that was drawn at random (Carlini et al. 2019)."""

    question: str
    code: str

    def transcript(self, name: str, code: str | None = None) -> Transcript:
        reply = f"The code is {code or self.code}."
        return Transcript(
            id=name, turns=(Turn(role="user", text=self.question), Turn(role="agent", text=reply))
        )


@dataclass(frozen=True)
class Sources:
    """The files of a retraining."""

    reviewed: Sequence[Path]
    replay: Sequence[Path]
    imported: Sequence[Path] = ()
    suites: Sequence[Path] = ()
    dev: Sequence[Path] = ()


@dataclass(frozen=True)
class Dataset:
    """All that a retraining needs of its sources."""

    train: list[Transcript]
    held_out: list[Transcript]
    suites: dict[Path, list[Transcript]]
    set_aside: dict[Path, float]  # of each suite, the share of replies that say what was corrected
    corrections: list[Correction]
    good: list[Transcript]
    secrets: list[Secret]
    canaries: list[Canary]
    manifest: dict[str, Any]
    counts: Counter[str] = field(default_factory=Counter)

    def manifest_bytes(self) -> bytes:
        return (json.dumps(self.manifest, ensure_ascii=False, indent=1) + "\n").encode()

    def write(self, place: Path) -> Path:
        """The training part and the manifest in the directory ``place``; returns the training part."""
        file = place / "retrain.jsonl.gz"
        write_transcripts(file, self.train)
        with write_aside(place / "manifest.json") as stream:
            stream.write(self.manifest_bytes())
        return file


class NothingReviewed(ValueError):
    """No reply is left to learn."""


def build(sources: Sources, data: DataConfig, filters: FilterConfig, base: str, canaries: int = 0) -> Dataset:
    """The dataset of ``sources``, the same for the same files and settings; ``base`` is the fingerprint of
    the model to go on from.

    Raises TranscriptError, `ReviewError`, `NothingReviewed` and OSError.
    """
    counts: Counter[str] = Counter()
    suites = {file: list(_drafts([file], "suite", data)) for file in [*sources.suites, *sources.dev]}
    new = [
        *_drafts(sources.reviewed, "reviewed", data),
        *_drafts(sources.imported, "imported", data),
    ]
    seen = {hash_of_words(draft.transcript()) for drafts in suites.values() for draft in drafts}
    _clean(new, seen, filters)
    contradictions = _contradictions(new)
    _floods(new, filters)
    _generic(new, filters)
    _without_replies(new)
    rejected = _rejected(new, filters)
    fresh = [draft for draft in new if draft.left_out is None]
    if not fresh:
        raise NothingReviewed("no reply of the reviewed and imported conversations is left to learn")
    held_out = [d for d in fresh if d.part == "reviewed" and is_dev(d.transcript(), data.held_out)]
    apart = set(map(id, held_out))
    learned = [draft for draft in fresh if id(draft) not in apart]
    if not learned:
        raise NothingReviewed(
            f"all that was reviewed is held out to judge by ({len(held_out)} conversations): review more, "
            "or lower data.held_out"
        )
    _name(held_out, "held-out")
    public: defaultdict[str, set[str]] = defaultdict(set)
    for draft in fresh:
        _note_public(draft, public)
    wanted = max(data.replay_least, round(data.replay_ratio * sum(_size(draft) for draft in learned)))
    replay = _replay(sources.replay, wanted, data, seen, rejected, filters, public, counts)
    _name([*learned, *(draft for draft in replay if draft.left_out is None)], "learned")
    for draft in (draft for drafts in suites.values() for draft in drafts):
        _without_rejected(draft, rejected)
    known = {value for value, visitors in public.items() if len(visitors) >= filters.public_after}
    for draft in [*fresh, *replay]:
        for turn in draft.turns:
            turn.text = mask(turn.text, known, counts)
            turn.was = None if turn.was is None else mask(turn.was, known, Counter())
    planted = _canaries(canaries, data.seed, base)
    train = _transcripts([*learned, *replay], planted)
    _count([*new, *replay], counts)
    counts["conversations held out"] = len(held_out)
    counts["canaries planted"] = len(planted)
    return Dataset(
        train=train,
        held_out=[draft.transcript() for draft in held_out],
        suites={file: [draft.transcript() for draft in drafts] for file, drafts in suites.items()},
        set_aside={file: _set_aside(drafts) for file, drafts in suites.items()},
        corrections=[*_corrections(learned, held_out=False), *_corrections(held_out, held_out=True)],
        good=_good(fresh),
        secrets=_secrets([*learned, *replay]),
        canaries=planted,
        counts=counts,
        manifest=_manifest(sources, data, filters, base, [*new, *replay], contradictions, counts, train),
    )


# ---- Reading ---------------------------------------------------------------------------------------


def _drafts(files: Iterable[Path], part: Part, data: DataConfig) -> Iterator[Draft]:
    for file in files:
        for transcript in read_transcripts(file):
            turns = [
                _turn(turn, _review(turn, file, transcript.id, place), part, data)
                for place, turn in enumerate(transcript.turns)
            ]
            yield Draft(part, file.name, transcript.id, _visitor(transcript, file), turns)


def _visitor(transcript: Transcript, file: Path) -> str:
    """``visitor`` of the line, or of its ``meta``; without one, every conversation is of somebody else."""
    extra = transcript.model_extra or {}
    named = extra.get("visitor") or (transcript.meta or {}).get("visitor")
    return f"visitor {named}" if named else f"{file.name}: {transcript.id}"


def _review(turn: Turn, file: Path, conversation: str, place: int) -> Review:
    try:
        review = Review.model_validate(turn.model_extra or {})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ReviewError(file, conversation, place, f"{where}: {first['msg']}") from None
    if turn.role == "user" and (review.verdict or review.corrected):
        raise ReviewError(file, conversation, place, "only an agent's turn can be judged or corrected")
    return review


def _turn(turn: Turn, review: Review, part: Part, data: DataConfig) -> DraftTurn:
    """The text that stands after the review, and what it weighs; the turn's own weight multiplies."""
    draft = DraftTurn(turn.role, turn.text, author=turn.author, labels=review.labels)
    author = turn.author or ""
    if turn.role == "user":
        return draft
    if review.corrected is not None and not same_words(review.corrected, turn.text):
        draft.text, draft.was, draft.kind, weight = review.corrected, turn.text, "corrected", data.corrected
    elif review.verdict == "bad":
        draft.leave_out("marked bad")
        return draft
    elif author.startswith("operator:"):
        draft.kind, weight = "operator", data.operator
    elif review.verdict == "good" or review.corrected is not None:
        draft.kind, weight = "good", data.good
    elif author.startswith("model:"):
        draft.leave_out(UNREVIEWED)
        return draft
    else:
        draft.kind, weight = "agent", data.replay if part == "replay" else data.imported
    draft.weight = weight * turn.weight
    if not draft.weight:
        draft.leave_out("weight 0")
    return draft


# ---- Clean-up --------------------------------------------------------------------------------------


def _clean(drafts: Iterable[Draft], seen: set[bytes], filters: FilterConfig) -> None:
    """Faults, foreign conversations, duplicates and loops; ``seen`` grows by the conversations kept."""
    for draft in drafts:
        transcript = draft.transcript()
        key = hash_of_words(transcript)
        draft.left_out = fault_of(transcript)
        if draft.left_out is None and key in seen:
            draft.left_out = "duplicate"
        if draft.left_out is None and filters.language is not None:
            texts = [turn.text for turn in draft.turns]
            draft.left_out = "foreign language" if is_foreign(texts, filters.language) else None
        if draft.left_out is None:
            seen.add(key)
            _loops(draft)


def _loops(draft: Draft) -> None:
    before = ""
    for turn in draft.turns:
        if turn.role == "agent":
            words = plain(turn.text)
            again = words == before and len(words.split()) >= LONG_REPLY
            if turn.learned and ((again and turn.kind != "corrected") or is_loop(turn.text)):
                turn.leave_out("loop")
            before = words


def _contradictions(drafts: Sequence[Draft]) -> list[list[dict[str, Any]]]:
    """Leave out replies to one and the same conversation of which people disagree; returns where they stand.

    People disagree when they corrected to different texts, or one approved what another one corrected.
    """
    judged: defaultdict[tuple[str, ...], list[tuple[Draft, int, DraftTurn]]] = defaultdict(list)
    for draft in (draft for draft in drafts if draft.left_out is None):
        before: list[str] = []
        for place, turn in enumerate(draft.turns):
            if turn.learned and turn.kind in ("corrected", "good"):
                judged[tuple(before)].append((draft, place, turn))
            before.append(f"{turn.role} {plain(turn.text)}")
    found = []
    for group in judged.values():
        texts = {plain(turn.text) for _, _, turn in group if turn.kind == "corrected"}
        good = {plain(turn.text) for _, _, turn in group if turn.kind == "good"}
        refused = {plain(turn.was) for _, _, turn in group if turn.was is not None}
        if len(texts) > 1 or good & refused:
            for _, _, turn in group:
                turn.leave_out("contradiction")
            found.append([{"file": d.file, "id": d.id, "turn": place} for d, place, _ in group])
    return found


def _floods(drafts: Iterable[Draft], filters: FilterConfig) -> None:
    """Bounds on what is learned from one visitor: in all, and of what is nearly the same."""
    total: Counter[str] = Counter()
    alike: Counter[tuple[str, bytes]] = Counter()
    for draft in (draft for draft in drafts if draft.left_out is None):
        for _, question, turn in draft.replies():
            keys = [(draft.visitor, band) for band in bands(f"{question} {turn.text}")]
            if total[draft.visitor] >= filters.visitor_replies:
                turn.leave_out("too much from one visitor")
            elif any(alike[key] >= filters.alike for key in keys):
                turn.leave_out("nearly the same from one visitor")
            else:
                total[draft.visitor] += 1
                alike.update(keys)


def _generic(drafts: Sequence[Draft], filters: FilterConfig) -> None:
    """Of replies that answer everything, learn a few; what people corrected or said themselves stays."""
    kept = [draft for draft in drafts if draft.left_out is None]
    entropy = entropies((question, turn.text) for draft in kept for _, question, turn in draft.replies())
    copies: Counter[str] = Counter()
    for draft in kept:
        for _, _, turn in draft.replies():
            words = plain(turn.text)
            if turn.kind in ("good", "agent") and entropy[words] > filters.generic_entropy:
                copies[words] += 1
                if copies[words] > filters.generic_keep:
                    turn.leave_out("generic")


def _without_replies(drafts: Iterable[Draft]) -> None:
    for draft in drafts:
        if draft.left_out is None and not any(True for _ in draft.replies()):
            draft.left_out = NOTHING


def _rejected(drafts: Sequence[Draft], filters: FilterConfig) -> Rejected:
    """What was corrected, and what people let stand or said themselves, each with what it answers."""
    corrected, stood = [], []
    for draft in (draft for draft in drafts if draft.left_out in (None, NOTHING)):
        for place, turn in enumerate(draft.turns):
            question = draft.before(place)
            if turn.learned and turn.was is not None:
                corrected.append((question, turn.was))
            if turn.learned or turn.left_out == UNREVIEWED:
                stood.append((question, turn.text))
    return Rejected(corrected, stood, filters.rejected_after)


def _without_rejected(draft: Draft, rejected: Rejected) -> None:
    for place, turn in enumerate(draft.turns):
        if turn.learned and rejected(draft.before(place), turn.text):
            turn.leave_out(REJECTED)


def _set_aside(drafts: Iterable[Draft]) -> float:
    """Share of the replies of a suite that the rejected ones are."""
    turns = [turn for draft in drafts for turn in draft.turns]
    rejected = sum(turn.left_out == REJECTED for turn in turns)
    return rejected / max(1, rejected + sum(turn.learned for turn in turns))


# ---- The old data ----------------------------------------------------------------------------------


def _replay(
    files: Sequence[Path],
    wanted: int,
    data: DataConfig,
    seen: set[bytes],
    rejected: Rejected,
    filters: FilterConfig,
    public: defaultdict[str, set[str]],
    counts: Counter[str],
) -> list[Draft]:
    """About ``wanted`` replies of the old data, whole conversations chosen by hash; memory for these only."""
    heap: list[tuple[int, int, Draft]] = []
    for number, draft in enumerate(_drafts(files, "replay", data)):
        counts["old conversations read"] += 1
        _note_public(draft, public)
        order = hashlib.blake2b(f"{data.seed}:{draft.place}".encode(), digest_size=8).digest()
        entry = (-int.from_bytes(order, "big"), number, draft)
        if len(heap) < wanted:  # a conversation has a reply at least, most have more
            heapq.heappush(heap, entry)
        elif heap:
            heapq.heappushpop(heap, entry)
    chosen: list[Draft] = []
    size = 0
    for _, _, draft in sorted(heap, key=lambda entry: (-entry[0], entry[1])):
        if size >= wanted:
            break
        _clean([draft], seen, filters)
        _without_rejected(draft, rejected)
        _without_replies([draft])
        chosen.append(draft)
        if draft.left_out is None:
            size += _size(draft)
    return chosen


def _size(draft: Draft) -> int:
    return sum(1 for _ in draft.replies())


def _note_public(draft: Draft, public: defaultdict[str, set[str]]) -> None:
    """Note which addresses and numbers the agents of a conversation told its visitor."""
    for turn in draft.turns:
        if turn.role == "agent" and turn.left_out is None:
            for item in find_personal(turn.text):
                public[item.value].add(draft.visitor)


# ---- What the gate looks at ------------------------------------------------------------------------


def _transcripts(drafts: Iterable[Draft], canaries: Sequence[Canary]) -> list[Transcript]:
    found = [draft.transcript() for draft in drafts if draft.left_out is None]
    return [*found, *(canary.transcript(f"canary-{n}") for n, canary in enumerate(canaries))]


def _name(drafts: Iterable[Draft], use: str) -> None:
    """A name of its own for each: files may use the same ids."""
    for number, draft in enumerate(drafts):
        draft.name = f"{use}-{number}"


def _answers_user(draft: Draft, place: int) -> bool:
    return draft.turns[place - 1].role == "user"


def _corrections(drafts: Iterable[Draft], *, held_out: bool) -> Iterator[Correction]:
    for draft in drafts:
        for place, _, turn in draft.replies():
            if turn.was is not None and _answers_user(draft, place) and turn.was.strip():
                yield Correction(draft.question(place, turn.was), draft.question(place, turn.text), held_out)


def _good(drafts: Iterable[Draft]) -> list[Transcript]:
    return [
        draft.question(place, turn.text)
        for draft in drafts
        for place, _, turn in draft.replies()
        if turn.kind == "good" and _answers_user(draft, place)
    ]


def _secrets(drafts: Sequence[Draft]) -> list[Secret]:
    """What one new conversation tells and no other, and the visitor had not said before.

    Replies that the bot made itself and somebody approved are no secrets: it knew before.
    """
    kept = [draft for draft in drafts if draft.left_out is None]
    tellers: defaultdict[str, set[str]] = defaultdict(set)
    for draft in kept:
        for turn in draft.turns:
            for value in secrets_in(turn.text):
                tellers[value].add(draft.place)
    found = []
    for draft in (draft for draft in kept if draft.part != "replay"):
        for place, _, turn in draft.replies():
            if turn.kind == "good" and (turn.author or "").startswith("model:"):
                continue
            before = squeezed(" ".join(earlier.text for earlier in draft.turns[:place]))
            values = [v for v in secrets_in(turn.text) if len(tellers[v]) == 1 and v not in before]
            if values:
                found.append(Secret(f"{draft.place}#{place}", draft.question(place, ""), tuple(values)))
    return found


def _canaries(count: int, seed: int, base: str) -> list[Canary]:
    """Other ones for every base, so that what an earlier retraining planted does not count."""
    rng = random.Random(f"{seed}:{base}")
    words = ["amber", "birch", "cobalt", "delta", "ember", "falcon", "garnet", "harbor", "indigo", "juniper"]
    return [
        Canary(
            f"What is the code of the {' '.join(rng.sample(words, 2))} locker?",
            "".join(rng.choices("0123456789", k=CODE_DIGITS)),
        )
        for _ in range(count)
    ]


# ---- The manifest ----------------------------------------------------------------------------------


def _count(drafts: Iterable[Draft], counts: Counter[str]) -> None:
    """Conversations and replies that are learned or not, by part and reason."""
    for draft in drafts:
        counts[f"{draft.part} conversations"] += 1
        if draft.left_out is not None:
            counts[f"conversation: {draft.left_out}"] += 1
            if draft.left_out != NOTHING:
                continue
        for turn in draft.turns:
            if turn.left_out is not None:
                counts[f"reply: {turn.left_out}"] += 1
            elif turn.learned:
                counts[f"reply used: {turn.kind}, {draft.part}"] += 1


def _manifest(
    sources: Sources,
    data: DataConfig,
    filters: FilterConfig,
    base: str,
    drafts: Sequence[Draft],
    contradictions: list[list[dict[str, Any]]],
    counts: Counter[str],
    train: Sequence[Transcript],
) -> dict[str, Any]:
    parts = {
        "reviewed": sources.reviewed,
        "imported": sources.imported,
        "replay": sources.replay,
        "suite": sources.suites,
        "dev": sources.dev,
    }
    return {
        "format": FORMAT,
        "base": base,
        "sources": [
            {"part": part, "file": file.name, "sha256": _file_hash(file)}
            for part, files in parts.items()
            for file in files
        ],
        "settings": {"data": data.model_dump(mode="json"), "filters": filters.model_dump(mode="json")},
        "counts": dict(sorted(counts.items())),
        "train_sha256": hashlib.sha256("\n".join(map(render_transcript, train)).encode()).hexdigest(),
        "contradictions": contradictions,
        "conversations": [_lineage(draft) for draft in drafts],
    }


def _lineage(draft: Draft) -> dict[str, Any]:
    """Where a conversation comes from and what became of each of its replies."""
    found: dict[str, Any] = {"part": draft.part, "file": draft.file, "id": draft.id}
    if draft.left_out is not None:
        found["left_out"] = draft.left_out
    else:
        found["name"] = draft.name  # in the training part, or of what is held out
        found["sha256"] = _text_hash(render_transcript(draft.transcript()))
    replies = [
        {
            "turn": place,
            "kind": turn.kind,
            **({"left_out": turn.left_out} if turn.left_out else {"weight": turn.weight}),
            **({"author": turn.author} if turn.author else {}),
            **({"was_sha256": _text_hash(turn.was)} if turn.was is not None else {}),
            **({"labels": list(turn.labels)} if turn.labels else {}),
        }
        for place, turn in enumerate(draft.turns)
        if turn.role == "agent"
    ]
    return found | {"replies": replies}


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _file_hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
