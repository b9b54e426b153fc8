"""The shared parts: attention with and without cache, rotary positions, documents."""

from itertools import pairwise

import pytest
import torch

from dsllm.models.layers import Attention, KVCache, document_mask, document_positions, rotary, rotate


@pytest.mark.parametrize("cuts", [(0, 5, 6, 7, 12), (0, 1, 2, 12), (0, 12)], ids=str)
def test_attention_over_pieces_with_a_cache_is_attention_over_the_whole(cuts):
    torch.manual_seed(0)
    attention, x = Attention(16, 2), torch.randn(3, 12, 16)
    rotation = rotary(torch.arange(12), 8, torch.float32)
    cache = KVCache(1, capacity=12)
    pieces = [attention(x[:, a:b], tuple(t[a:b] for t in rotation), cache=cache.layers[0]) for a, b in pairwise(cuts)]
    assert cache.length == 12
    torch.testing.assert_close(torch.cat(pieces, dim=1), attention(x, rotation))


def test_rotary_scores_depend_on_distance_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 8, dtype=torch.float64)

    def score(i, j):
        turned = [rotate(t[None], rotary(torch.tensor([p]), 8, torch.float64)) for t, p in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum().item()

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_rotary_angles_are_the_papers():
    cos, sin = rotary(torch.tensor([0, 3]), 4, torch.float32)
    torch.testing.assert_close(cos, torch.tensor([[0.0, 0.0], [3.0, 0.03]]).cos())
    torch.testing.assert_close(sin, torch.tensor([[0.0, 0.0], [3.0, 0.03]]).sin())


def test_neighbouring_positions_stay_apart_in_bf16():
    cos, _ = rotary(torch.tensor([256, 257]), 64, torch.bfloat16)
    assert (cos[0] != cos[1]).any()


def test_a_document_mask_looks_back_within_the_document():
    mask = document_mask(torch.tensor([[7, 7, 9, 9]]))
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_positions_begin_anew_with_each_document():
    ids = torch.tensor([[7, 7, 7, 9, 9], [1, 2, 2, 1, 1]])
    assert document_positions(ids).tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 0, 1]]
