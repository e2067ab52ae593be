"""What a reply's tokens are predicted from, and which of them are: variations on teacher forcing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from chatbot.attention import at_least_float32
from chatbot.model import DialogueBatch, Seq2Seq
from chatbot.packing import Packing

CHUNK = 1024
"""Tokens whose logits exist at a time."""


def one_position(replies: Packing) -> Tensor:
    """1 at one token of each reply, drawn uniformly, and 0 elsewhere: (Q,) float32, packed, on the CPU."""
    chosen = (torch.rand(len(replies.lengths)) * replies.lengths.cpu()).long()
    return (replies.column.cpu() == chosen[replies.row.cpu()]).float()


def with_own_inputs(model: Seq2Seq, batch: DialogueBatch, share: float) -> DialogueBatch:
    """Scheduled sampling (Bengio et al. 2015) in two passes over whole replies (Mihaylova and Martins 2019).

    The first pass draws from the model what it would have said at each place, given the true words before it;
    in the second, which the gradient is of, a ``share`` of the inputs after the first are these.
    """
    with torch.no_grad():
        said = draw(model, batch)
    replies = batch.replies
    sizes = replies.batch_sizes.to(said.device)
    first = sizes.cumsum(0) - sizes
    before = first[(replies.column - 1).clamp(min=0)] + replies.unsorted[replies.row]
    swapped = (torch.rand(said.shape, device=said.device) < share) & (replies.column > 0)
    return batch._replace(inputs=torch.where(swapped, said[before], batch.inputs))


def draw(model: Seq2Seq, batch: DialogueBatch) -> Tensor:
    """A token (Q,) from the model's distribution at each place of the replies, the softmax's where it
    copies.
    """
    readouts, _ = model(batch)
    return torch.cat(
        [
            at_least_float32(F.softmax(model.logits(part).float(), 1)).multinomial(1)[:, 0]
            for part in torch.split(readouts, CHUNK)
        ]
    )
