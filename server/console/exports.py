"""Conversations as files: transcripts, transcripts as retraining reads them, and a table of messages.

    filters ──► pages of conversations, by id ──► their messages, some thousand at a time ──► pieces of a file

No more than such a page is ever in memory, and no transaction is open between two of them. A conversation
that is erased meanwhile is left out; one that begins meanwhile may be there or not. The same database gives
the same file.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final, Literal, cast

from sqlalchemy import ColumnElement, Engine, Row, Select, exists, or_, select

from chatbot.transcripts import Transcript, Turn, render_transcript
from server.console.masking import Masker
from server.database import reading
from server.tables import Conversation, Feedback, Generation, Message, Verdict, Visitor

Format = Literal["jsonl", "csv", "reviewed"]
Condition = ColumnElement[bool]

AUDITED: Final = "conversations.export"
"""What the audit log calls an export."""
PAGE: Final = 500
"""Conversations that are looked up at once."""
MESSAGES: Final = 2000
"""Messages that are read at once, about: a conversation is never split."""

COLUMNS: Final = (
    "conversation",
    "visitor",
    "seq",
    "at",
    "role",
    "author",
    "superseded",
    "text",
    "rating",
    "comment",
    "verdict",
    "labels",
    "corrected",
)
"""Of the table."""


@dataclass
class Export:
    """The conversations for which all of `where` holds, as a file in UTF-8.

    masking: masks what was said, and visitors are known by `pseudonym`; None shows everything as it is.
    conversations, messages: those in the file so far.
    """

    db: Engine
    format: Format
    where: Sequence[Condition] = ()
    masking: Masker | None = None
    conversations: int = field(default=0, init=False)
    messages: int = field(default=0, init=False)

    def pieces(self) -> Iterator[bytes]:
        """The file, in pieces. Any thread may ask for the next one, and waits for the database.

        Raises StoreUnavailable.
        """
        if self.format == "csv":
            yield _csv_lines([COLUMNS])
        for batch in self._batches():
            yield self._piece(batch)

    def transcripts(self) -> Iterator[Transcript]:
        """The lines of the file, for the formats whose lines are transcripts. Raises StoreUnavailable."""
        for batch in self._batches():
            yield from filter(None, map(self._transcript, batch))

    def _piece(self, batch: Iterable[_Talk]) -> bytes:
        if self.format == "csv":
            return _csv_lines(cells for talk in batch for cells in self._table(talk))
        found = filter(None, map(self._transcript, batch))
        return "".join(f"{render_transcript(transcript)}\n" for transcript in found).encode()

    def _mask(self, text: str) -> str:
        return text if self.masking is None else self.masking.mask(text)

    # --- transcripts ------------------------------------------------------------------------------

    def _transcript(self, talk: _Talk) -> Transcript | None:
        """None for a conversation in which nothing can be learned or read."""
        make = self._reviewed_turn if self.format == "reviewed" else self._turn
        turns = [turn for turn in (make(talk.head, row) for row in talk.read_order()) if turn is not None]
        if not turns:
            return None
        self.conversations += 1
        self.messages += len(turns)
        hide = self.format == "reviewed" or self.masking is not None
        visitor = talk.pseudonym if hide else talk.head.visitor_id
        return Transcript(id=talk.head.id, turns=tuple(turns), meta={"visitor": visitor})

    def _turn(self, _head: Row[Any], row: Row[Any]) -> Turn | None:
        extra: dict[str, Any] = {} if row.comment is None else {"comment": self._mask(row.comment)}
        return self._said(row, row.text, extra)

    def _reviewed_turn(self, head: Row[Any], row: Row[Any]) -> Turn | None:
        """With what reviewers said of it; see docs/retraining.md.

        Words with which the bot abstains are the team's: they are never learned as a reply. What was
        corrected there is what the model had wanted to say.
        """
        if not row.text.strip():
            return None
        text, extra = row.text, {}
        if row.role == "agent":
            if row.verdict is not None:
                extra["verdict"] = row.verdict
                extra["labels"] = row.labels
            if row.corrected is not None:
                extra["corrected"] = self._mask(row.corrected)
            if row.finish_reason == "abstained" and row.corrected is None:
                extra["weight"] = 0.0
            elif row.finish_reason == "abstained" and (row.withheld or "").strip():
                text = row.withheld
            extra["reviewed"] = head.reviewed_at is not None or row.verdict is not None
        return self._said(row, text, extra)

    def _said(self, row: Row[Any], text: str, extra: dict[str, Any]) -> Turn:
        given: dict[str, Any] = {"role": row.role, "text": self._mask(text), "at": row.created_at}
        if (author := _author(row)) is not None:
            given["author"] = author
        if row.rating is not None:
            given["rating"] = row.rating
        return Turn.model_validate({**given, **extra})

    # --- the table --------------------------------------------------------------------------------

    def _table(self, talk: _Talk) -> Iterator[Sequence[str]]:
        """Every message, superseded ones too, in the order in which they came."""
        self.conversations += 1
        visitor = talk.head.visitor_id if self.masking is None else talk.pseudonym
        for row in talk.rows:
            self.messages += 1
            cells = (
                talk.head.id,
                visitor,
                str(row.seq),
                row.created_at.isoformat(),
                row.role,
                _author(row) or "",
                "yes" if row.superseded else "",
                self._mask(row.text),
                row.rating or "",
                self._mask(row.comment or ""),
                row.verdict or "",
                ", ".join(row.labels or ()),
                self._mask(row.corrected or ""),
            )
            yield tuple(map(neutral, cells))

    # --- reading ----------------------------------------------------------------------------------

    def _batches(self) -> Iterator[list[_Talk]]:
        for heads in self._pages():
            batch: list[Row[Any]] = []
            size = 0
            for head in heads:
                if batch and size + head.last_seq > MESSAGES:
                    yield self._talks(batch)
                    batch, size = [], 0
                batch.append(head)
                size += head.last_seq
            yield self._talks(batch)

    def _pages(self) -> Iterator[Sequence[Row[Any]]]:
        after = ""
        while True:
            query = _heads().where(*self.where, Conversation.id > after).order_by(Conversation.id).limit(PAGE)
            if self.format == "reviewed":
                query = query.where(worth_learning())
            with reading(self.db) as connection:
                heads = connection.execute(query).all()
            if not heads:
                return
            yield heads
            after = heads[-1].id

    def _talks(self, heads: Sequence[Row[Any]]) -> list[_Talk]:
        query = _rows().where(Message.conversation_id.in_([head.id for head in heads]))
        with reading(self.db) as connection:
            rows = connection.execute(query.order_by(Message.conversation_id, Message.seq)).all()
        said = {
            key: list(group) for key, group in groupby(rows, key=lambda row: cast("str", row.conversation_id))
        }
        return [_Talk(head, said[head.id]) for head in heads if head.id in said]


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation and its messages, in the order in which they came."""

    head: Row[Any]
    rows: list[Row[Any]]

    @property
    def pseudonym(self) -> str:
        return pseudonym(self.head.visitor_id, self.head.token_hash)

    def read_order(self) -> list[Row[Any]]:
        """As the model reads it: no superseded replies, and each reply behind the turn that it answers."""
        current = [row for row in self.rows if not row.superseded]
        seq_of = {row.id: row.seq for row in current if row.role == "user"}
        return sorted(current, key=lambda row: (seq_of.get(row.answers or "", row.seq), row.seq))


def reviewed_transcripts(
    db: Engine, where: Sequence[Condition] = (), masking: Masker | None = None
) -> Iterator[Transcript]:
    """What retraining learns from: the conversations that `worth_learning` names. Raises StoreUnavailable.

    masking: None, or one that masks names only, leaves the rest to retraining, which knows what is public.
    """
    return Export(db, "reviewed", where, masking).transcripts()


def worth_learning() -> Condition:
    """Conversations that were reviewed, have a verdict, or in which a person answered."""
    judged = exists().where(Message.conversation_id == Conversation.id, Verdict.message_id == Message.id)
    by_person = exists().where(Message.conversation_id == Conversation.id, Message.operator_id.is_not(None))
    return or_(Conversation.reviewed_at.is_not(None), judged, by_person)


def pseudonym(visitor_id: str, token_hash: str) -> str:
    """The same for all conversations of a visitor, and for nobody who has no database to be traced to them.

    The key is the hash of the visitor's own token: no other secret needs to be kept, and it goes with them.
    """
    return hmac.new(token_hash.encode(), visitor_id.encode(), hashlib.sha256).hexdigest()[:32]


def _author(row: Row[Any]) -> str | None:
    if row.operator_id is not None:
        return f"operator:{row.operator_id}"
    return None if row.model is None else f"model:{row.model}"


def _heads() -> Select[*tuple[Any, ...]]:
    return (
        select(
            Conversation.id,
            Conversation.visitor_id,
            Conversation.last_seq,
            Conversation.reviewed_at,
            Visitor.token_hash,
        )
        .join(Visitor, Visitor.id == Conversation.visitor_id)
        .where(Conversation.last_seq > 0)
    )


def _rows() -> Select[*tuple[Any, ...]]:
    return (
        select(
            Message.id,
            Message.conversation_id,
            Message.seq,
            Message.role,
            Message.text,
            Message.created_at,
            Message.answers,
            Message.superseded,
            Message.operator_id,
            Generation.model,
            Generation.finish_reason,
            Generation.withheld,
            Feedback.rating,
            Feedback.comment,
            Verdict.verdict,
            Verdict.labels,
            Verdict.corrected,
        )
        .outerjoin(Generation, Generation.message_id == Message.id)
        .outerjoin(Feedback, Feedback.message_id == Message.id)
        .outerjoin(Verdict, Verdict.message_id == Message.id)
    )


# --- cells ------------------------------------------------------------------------------------------------

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def neutral(cell: str) -> str:
    """The cell with an apostrophe before it, if a spreadsheet would take it for a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _csv_lines(rows: Iterable[Sequence[str]]) -> bytes:
    """RFC 4180: commas, CR LF, and quotation marks where a cell needs them."""
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\r\n").writerows(rows)
    return written.getvalue().encode()
