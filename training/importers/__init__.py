"""The forms of conversations that ``python -m training import`` reads, a module each."""

from __future__ import annotations

from typing import Final

from training.importers.native import JsonLines
from training.importers.self_dialogue import SelfDialogue
from training.importers.sgd import Sgd
from training.importers.source import Importer, SourceError
from training.importers.star import Star
from training.importers.table import Csv, Tsv
from training.importers.taskmaster import Taskmaster
from training.importers.ubuntu_irc import UbuntuIrc

FORMATS: Final[dict[str, type[Importer]]] = {
    importer.name: importer
    for importer in (JsonLines, Csv, Tsv, Star, Taskmaster, Sgd, SelfDialogue, UbuntuIrc)
}

__all__ = ["FORMATS", "Importer", "SourceError"]
