"""What `python -m server models …` and `python -m server verify …` print."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from chatbot import model_directory
from chatbot.cli import in_words
from chatbot.model_directory import ModelDirectoryError
from server import database, models, settings
from server.console import audit
from server.models import Change, Entry
from server.store_errors import StoreError
from server.verify import Finding, Verifier


def list_models(arguments: Namespace) -> int:
    def work(directory: Path) -> None:
        found = models.entries(directory)
        if arguments.json:
            print(json.dumps([asdict(entry) for entry in found], ensure_ascii=False))
        else:
            print("\n".join(map(_line, found)) or "no model")
        if found and not any(entry.in_use for entry in found):
            _say_why_none_is_in_use(directory)

    return _with_models(arguments, work)


def _say_why_none_is_in_use(directory: Path) -> None:
    try:
        model_directory.find_model(directory)
    except ModelDirectoryError as error:
        print(f"no model is in use: {error.reason}", file=sys.stderr)


def promote(arguments: Namespace) -> int:
    def work(directory: Path) -> None:
        told = settings.load(arguments)
        change = models.promote(directory, arguments.model, rows=told.rows)
        _note(told, "model.promote", change)
        _report(arguments, change)

    return _with_models(arguments, work)


def rollback(arguments: Namespace) -> int:
    def work(directory: Path) -> None:
        told = settings.load(arguments)
        change = models.rollback(directory, rows=told.rows)
        _note(told, "model.rollback", change)
        _report(arguments, change)

    return _with_models(arguments, work)


def _note(told: settings.Settings, action: str, change: Change) -> None:
    """Put it into the audit log. It has been done, and the directory has a log of its own: a database that is
    not there is only told of.
    """
    db = database.connect(told.database_url)
    try:
        database.require_newest(db)
        with database.writing(db) as connection:
            audit.note(connection, None, action, change.fingerprint, name=change.model, before=change.before)
    except StoreError as error:
        print(f"this is not in the audit log: {error}", file=sys.stderr)
    finally:
        db.dispose()


def verify(arguments: Namespace) -> int:
    told = settings.load(arguments)
    db = database.connect(told.database_url)
    try:
        database.require_newest(db)
        verifier = Verifier(db, _directory(told), arguments.tolerance)
        findings = verifier.verify(arguments.conversation)
    finally:
        db.dispose()
    counts = Counter(finding.verdict for finding in findings)
    if arguments.json:
        replies = [asdict(finding) for finding in findings]
        print(json.dumps({"conversation": arguments.conversation, "replies": replies, "counts": counts}))
    else:
        _print_findings(findings)
        print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no replies")
    return 1 if counts["mismatch"] else 0


def _print_findings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        by = f" off by {finding.difference:.2g}" if finding.difference is not None else ""
        why = f" ({finding.reason})" if finding.reason else ""
        print(f"{finding.seq:>5}  {finding.model or '-':<19}  {finding.verdict}{why}{by}")


def _directory(told: settings.Settings) -> Path:
    return told.models or model_directory.SHIPPED


def _with_models(arguments: Namespace, work: Callable[[Path], None]) -> int:
    try:
        work(_directory(settings.load(arguments)))
    except (ModelDirectoryError, OSError) as error:
        print(in_words(error), file=sys.stderr)
        return 1
    return 0


def _report(arguments: Namespace, change: Change) -> None:
    if arguments.json:
        print(json.dumps(asdict(change)))
    else:
        before = f", in place of {change.before}" if change.before not in (None, change.model) else ""
        print(f"{change.model} ({change.fingerprint}) is in use{before}")


def _line(entry: Entry) -> str:
    mark = "*" if entry.in_use else " "
    since = f"  since {entry.promoted_at}" if entry.promoted_at and entry.in_use else ""
    what = entry.card if entry.problem is None else f"cannot be used: {entry.problem}"
    size = f"{entry.bytes / 1e6:.1f} MB"
    return f"{mark} {entry.fingerprint or '-':<19}  {entry.name:<20}  {size:>9}{since}  {what}"
