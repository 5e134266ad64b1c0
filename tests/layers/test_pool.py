from __future__ import annotations

import torch

from sidestep.layers.pool import averaging_by, global_average_pool


def test_pool_agrees_with_hand_arithmetic() -> None:
    features = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, 4.0]]]])
    assert global_average_pool(features).tolist() == [[3.0, 1.0]]


def test_tokens_are_averaged_over_all_of_them() -> None:
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]]], requires_grad=True)
    pooled = global_average_pool(tokens)
    assert pooled.tolist() == [[3.0, 3.0]]
    pooled.sum().backward()
    torch.testing.assert_close(tokens.grad, torch.full((1, 3, 2), 1 / 3))


def test_another_way_to_the_means_holds_for_maps_until_it_is_closed() -> None:
    maps, tokens = torch.ones(2, 3, 4, 4), torch.ones(2, 5, 3)
    with averaging_by(lambda maps: maps.amax((2, 3)) + 1):
        assert torch.equal(global_average_pool(maps), torch.full((2, 3), 2.0))
        assert torch.equal(global_average_pool(tokens), torch.ones(2, 3))
    assert torch.equal(global_average_pool(maps), torch.ones(2, 3))
