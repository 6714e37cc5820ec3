"""States survive a file to the bit, and nothing else is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pullback.lab import checkpoint

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_TREES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(_TREES)
def test_json_trees_come_back_equal(tmp_path_factory: pytest.TempPathFactory, tree: object) -> None:
    path = tmp_path_factory.mktemp("state") / "x.safetensors"
    checkpoint.write(path, tree)
    assert repr(checkpoint.read(path)) == repr(tree)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex128])
def test_tensors_come_back_equal(dtype: torch.dtype, tmp_path: Path) -> None:
    base = torch.arange(12).reshape(3, 4).to(dtype)
    state = {"a": base, "view of it": base[:, 1], "transposed": base.T, "scalar": base[0, 0], "empty": base[:0]}
    checkpoint.write(tmp_path / "x.safetensors", state)
    for name, tensor in checkpoint.read(tmp_path / "x.safetensors").items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, state[name])


def test_keys_that_look_alike_are_kept_apart(tmp_path: Path) -> None:
    state = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, 1: torch.ones(1) * 2, "1": torch.ones(1) * 3}
    checkpoint.write(tmp_path / "x.safetensors", state)
    back = checkpoint.read(tmp_path / "x.safetensors")
    assert [back["a/b"].item(), back["a"]["b"].item(), back[1].item(), back["1"].item()] == [0, 1, 2, 3]


def test_restoring_changes_tensors_in_place() -> None:
    weight = torch.zeros(2, requires_grad=True)
    history: list[float] = [1.0]
    target = {"weight": weight, "history": history, "step": 0, "gone": 1}
    checkpoint.restore(target, {"weight": torch.ones(2), "history": [1.0, 2.0], "step": 7})
    assert target == {"weight": weight, "history": history, "step": 7}
    assert weight.tolist() == [1.0, 1.0]
    assert history == [1.0, 2.0]


def test_what_cannot_be_saved_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"save\['model'\]\['f'\] must have state_dict"):
        checkpoint.check_savable("save['model']", {"f": print})
    with pytest.raises(TypeError, match="/a/0 is a object"):
        checkpoint.write(tmp_path / "x.safetensors", {"a": [object()]})
    (tmp_path / "broken").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="broken is no checkpoint"):
        checkpoint.read(tmp_path / "broken")
