"""Log lines: one JSON object each, with an event and its fields, and nothing that somebody wrote.

No text, token, key, address or name of a visitor goes into a log. An exception is logged by its type and
place, because its message may quote what it failed on; so may all that a library says after its first line.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path


class LineFormatter(logging.Formatter):
    """One line per record, whatever it holds."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        ours = record.name.partition(".")[0] == "server"
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "event": message if ours else message.partition("\n")[0],
        }
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error"] = place(error)
        return json.dumps(line | getattr(record, "fields", {}), default=str)


def place(error: BaseException) -> str:
    """What an exception is and where it was raised: `ValueError at batcher.py:120 < engine.py:80`."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-3:])]
    return f"{type(error).__name__} at {' < '.join(places) or 'an unknown place'}"


def event(logger: logging.Logger, level: int, name: str, **fields: object) -> None:
    """Log `name` with `fields`."""
    logger.log(level, name, extra={"fields": fields})


def configure(level: str) -> None:
    """Log to standard error. Libraries speak up from warnings on; below, some would log addresses."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("server").setLevel(level.upper())
    logging.captureWarnings(True)
