"""Whether a retraining would take its settings: asked of training itself, before a job is queued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from server.console.job_data import setting
from server.console.job_process import ROOT
from server.console.jobs import JobRefused
from server.settings import PREFIX

TIMEOUT: Final = 60.0
"""Seconds; a quiet machine needs half of one."""


class Wrong(NamedTuple):
    """A setting that is unknown or out of its range, and why."""

    field: str
    message: str


def wrong(settings: Mapping[str, Any]) -> list[Wrong]:
    """What `python -m training settings` says against the settings; nothing when they are good. Takes about
    as long as it takes to start Python.

    Raises `JobRefused` when they cannot be checked.
    """
    if not settings:
        return []
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={setting(value)}")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    try:
        checked = subprocess.run(
            [sys.executable, "-m", "training", "settings", "--json", *given],
            cwd=ROOT,
            env=kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
        told = json.loads(checked.stdout)
        return [Wrong(each["field"], each["message"]) for each in told.get("wrong", ())]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError, AttributeError):
        raise JobRefused("the settings could not be checked: python -m training settings failed") from None
