"""The model card (Mitchell et al. 2019) that every sealed model carries as its README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chatbot.confidence import Calibration, calibration_of
from chatbot.config import ModelConfig

CONFIDENCE = "\n## Confidence\n"
UNSTATED = (
    "Not stated. Before you share this model, write down what it was trained on and under which licence."
)


def model_card(metrics: Mapping[str, Any], text: str = "") -> str:
    """Markdown: the owner's ``text`` on data, licence and limits, then what the run itself knows, if it left
    word.
    """
    text = text.strip() or f"# A Turnwise model\n\n{UNSTATED}"
    if "config" not in metrics:
        return f"{text}\n"
    shape = metrics["config"]["model"]
    table = _table(metrics["dev"]) if metrics["dev"] else "No dev part was given."
    begun = f", begun with {metrics['base']}" if "base" in metrics else ""
    card = f"""{text}

## The run

- {_kind(shape)}: {metrics["parameters"]:,} parameters
- embedding {shape["embedding_size"]}, hidden {shape["hidden_size"]}, memory {shape["memory_tokens"]} tokens
- {metrics["steps"]:,} updates in {metrics["seconds"]:,.0f} s, best after {metrics["best_step"]:,}
- seed {metrics["config"]["seed"]}, trained on {", ".join(metrics["train"])}{begun}

{table}
"""
    calibration = calibration_of(metrics)
    return card if calibration is None else with_confidence(card, calibration)


def with_confidence(card: str, calibration: Calibration) -> str:
    """The card with a section on how far the model's confidence can be believed; an earlier one goes."""
    half = min(calibration.curve, key=lambda point: abs(point.coverage - 0.5))
    before, _, after = card.partition(CONFIDENCE)
    _, heading, rest = after.partition("\n## ")
    words = (
        f"Of {calibration.judged:,} replies {calibration.share:.0%} were acceptable: of a chrF of "
        f"{calibration.acceptable:g} or more with a person's. Of the half that the model was surest of, "
        f"{1 - half.risk:.0%} were. Its confidence is off by {calibration.error:.3f} on average."
    )
    return f"{before.rstrip()}\n{CONFIDENCE}\n{words}\n{heading}{rest}"


def without_section(card: str, heading: str) -> str:
    """The card without the section of this ``heading``, if it has one; it ends in a newline."""
    before, _, after = card.partition(heading)
    _, next_one, rest = after.partition("\n## ")
    return f"{before.rstrip()}\n{next_one}{rest}"


def _kind(shape: Mapping[str, Any]) -> str:
    """What kind of model it is, in the words of its configuration."""
    copying = " and copying" if shape.get("copying") else ""
    cell, encoder = (
        shape.get(field, ModelConfig.model_fields[field].default) for field in ("cell", "encoder")
    )
    attention = shape.get("attention", ModelConfig.model_fields["attention"].default)
    return f"{cell} encoder-decoder over conversations (encoder {encoder}, attention {attention}{copying})"


COLUMNS = {
    "perplexity_word": "word perplexity",
    "perplexity_token": "token perplexity",
    "bleu": "BLEU",
    "chrf": "chrF",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "most_frequent_reply_share": "share of the most frequent reply",
    "replies": "replies",
    "generated": "answered",
}


def _table(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    head = f"| dev part | {' | '.join(COLUMNS.values())} |\n|---|{'---|' * len(COLUMNS)}"
    rows = [
        f"| {name} | {' | '.join(_cell(figures[column]) for column in COLUMNS)} |"
        for name, figures in evaluations.items()
    ]
    return "\n".join([head, *rows])


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"
