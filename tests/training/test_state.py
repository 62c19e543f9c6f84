"""What goes into a state comes out of it, and nothing else is taken."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from training.resources import hash_state
from training.rowlog import RowLog
from training.state import find_row_logs, pack_state, path_text, unpack_state, walk_leaves


def no_row_logs(key: str) -> RowLog:
    raise AssertionError(key)


def round_trip(state: object) -> Any:
    buffer = io.BytesIO()
    torch.save(pack_state(state), buffer)
    packed = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    return unpack_state(packed, no_row_logs)


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.binary(max_size=10)
    | st.integers(min_value=2**900, max_value=2**3000)
    | st.integers(min_value=-(2**3000), max_value=-(2**900))
)
ARRAYS = npst.arrays(
    npst.boolean_dtypes()
    | npst.integer_dtypes(endianness="=")
    | npst.unsigned_integer_dtypes(endianness="=")
    | npst.floating_dtypes(endianness="?", sizes=(16, 32, 64))
    | npst.complex_number_dtypes(endianness="="),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
KEYS = (st.text(max_size=5) | st.integers(-3, 3)).filter(lambda key: key != "gridpilot.kind")
STATES = st.recursive(
    PLAIN | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=3) | st.just(())
    ),
    max_leaves=8,
)


@given(STATES)
@settings(max_examples=150, deadline=None)
def test_any_state_comes_back_with_the_same_types_and_bits(state: object) -> None:
    assert hash_state(round_trip(state)) == hash_state(state)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_come_back_with_their_dtype(dtype: torch.dtype) -> None:
    state = {"a": torch.tensor([[0, 1], [1, 0]]).to(dtype), "scalar": torch.tensor(1).to(dtype)}
    restored = round_trip(state)
    assert restored["a"].dtype is dtype
    assert hash_state(restored) == hash_state(state)


def test_numpy_scalars_stay_numpy_scalars() -> None:
    restored = round_trip({"x": np.float32(0.1), "n": np.uint64(2**64 - 1)})
    assert type(restored["x"]) is np.float32
    assert restored["n"] == np.uint64(2**64 - 1)


def test_restored_arrays_can_be_written_to() -> None:
    frozen = np.arange(3)
    frozen.flags.writeable = False
    restored = round_trip(frozen)
    restored[0] = 7
    assert frozen[0] == 0


def test_an_optimizer_and_a_network_can_load_what_comes_back() -> None:
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(3)).sum().backward()
    optimizer.step()
    restored = round_trip({"network": network.state_dict(), "optimizer": optimizer.state_dict()})
    fresh = torch.nn.Linear(3, 2)
    fresh_optimizer = torch.optim.Adam(fresh.parameters())
    fresh.load_state_dict(restored["network"])
    fresh_optimizer.load_state_dict(restored["optimizer"])
    assert hash_state(fresh.state_dict()) == hash_state(network.state_dict())
    assert hash_state(fresh_optimizer.state_dict()) == hash_state(optimizer.state_dict())


def test_a_small_view_does_not_bring_its_large_storage() -> None:
    buffer = io.BytesIO()
    torch.save(pack_state({"view": torch.zeros(1_000_000)[:2]}), buffer)
    assert len(buffer.getvalue()) < 10_000


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": {"b": object()}}, "a/b"),
        ({"a": [1, {1, 2}]}, "a/1"),
        ({"a": np.array([object()])}, "dtype object"),
        ({"a": {1.5: 2}}, "1.5 can't be a key"),
        ({"a": {True: 2}}, "True can't be a key"),
        ({"gridpilot.kind": 1}, "can't be a key"),
        ({"a": np.array(["x"])}, "dtype <U1"),
    ],
)
def test_a_leaf_that_cannot_be_saved_is_named(state: object, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        pack_state(state)


def test_row_logs_are_found_by_their_paths() -> None:
    log = RowLog(np.zeros((4, 2), np.float32), 3)
    assert find_row_logs({"trainer": {"buffer": [1, log]}}) == {"trainer/buffer/1": log}


def test_row_logs_with_paths_written_alike_are_refused() -> None:
    log = RowLog(np.zeros((4, 2), np.float32), 3)
    with pytest.raises(ValueError, match="a/b"):
        find_row_logs({"a/b": log, "a": {"b": log}})


def test_leaves_are_walked_in_the_order_of_keys() -> None:
    paths = [path_text(path) for path, _ in walk_leaves(OrderedDict(b=1, a=[2, ()], c={}))]
    assert paths == ["a/0", "a/1", "b", "c"]
