"""Networks that a graph gates: batches of parameters, of graphs, and refusals when they are built."""

from __future__ import annotations

import pytest
import torch

from pullback import causal


def test_batches_of_networks_and_graphs_equal_each_by_itself() -> None:
    g = torch.Generator().manual_seed(0)
    batched = causal.MaskedMechanisms(4, (5,), batch=(3,), generator=g)
    x, graphs = torch.randn(3, 6, 4, generator=g), torch.rand(2, 3, 4, 4, generator=g)
    values = batched(x, graphs)
    assert values.shape == (2, 3, 6, 4)
    for seed in range(3):
        single = causal.MaskedMechanisms(4, (5,))
        single.load_state_dict({name: value[seed] for name, value in batched.state_dict().items()})
        torch.testing.assert_close(values[:, seed], single(x[seed], graphs[:, seed]))
    torch.testing.assert_close(batched(x[0], graphs[0, 0])[0], values.new_tensor(batched(x, graphs[0, :1])[0].tolist()))


def test_sizes_are_refused_by_name() -> None:
    for words, match in (
        ({"nodes": 0}, "nodes"),
        ({"nodes": 2, "hidden": (0,)}, "hidden"),
        ({"nodes": 2, "output": 0}, "output"),
    ):
        with pytest.raises(ValueError, match=rf"^{match} must be an integer >= 1, got 0"):
            causal.MaskedMechanisms(**words)
