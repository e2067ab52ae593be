"""The packed layout is the one that torch's kernels run on."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence

from chatbot.packing import pack


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_packing_agrees_with_torch(lengths: list[int]) -> None:
    sizes = torch.tensor(lengths)
    padded = torch.arange(len(lengths) * 9).view(len(lengths), 9)
    reference = pack_padded_sequence(padded, sizes, batch_first=True, enforce_sorted=False)
    packing = pack(sizes)
    assert torch.equal(packing.batch_sizes, reference.batch_sizes)
    assert torch.equal(padded[packing.row, packing.column].sort()[0], reference.data.sort()[0])
    assert torch.equal(sizes[packing.sorted], sizes.sort(descending=True)[0])
    assert torch.equal(packing.sorted[packing.unsorted], torch.arange(len(lengths)))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_every_token_is_there_once_step_by_step(lengths: list[int]) -> None:
    packing = pack(torch.tensor(lengths))
    found = sorted(zip(packing.row.tolist(), packing.column.tolist(), strict=True))
    assert found == [(row, column) for row, length in enumerate(lengths) for column in range(length)]
    assert packing.column.tolist() == sorted(packing.column.tolist())


def test_nothing_packs_to_nothing() -> None:
    packing = pack(torch.zeros(0, dtype=torch.int64))
    assert len(packing.row) == len(packing.batch_sizes) == 0
