"""The model card (Mitchell et al. 2019) that every sealed model carries as its README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNSTATED = (
    "Not stated. Before you share this model, write down what it was trained on and under which licence."
)


def model_card(metrics: Mapping[str, Any], text: str = "") -> str:
    """Markdown: the owner's ``text`` on data, licence and limits, then what the run itself knows."""
    shape = metrics["config"]["model"]
    table = _table(metrics["dev"]) if metrics["dev"] else "No dev part was given."
    return f"""{text.strip() or "# A Turnwise model" + chr(10) + chr(10) + UNSTATED}

## The run

- GRU encoder-decoder over conversations: {metrics["parameters"]:,} parameters
- embedding {shape["embedding_size"]}, hidden {shape["hidden_size"]}, memory {shape["memory_tokens"]} tokens
- {metrics["steps"]:,} updates in {metrics["seconds"]:,.0f} s, best after {metrics["best_step"]:,}
- seed {metrics["config"]["seed"]}, trained on {", ".join(metrics["train"])}

{table}
"""


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
