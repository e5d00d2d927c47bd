"""Snapshots: bit for bit whatever changed, small where little did."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_llm_async.core import SnapshotStore
from rllib_llm_async.core.deltas import bits

DTYPES = [torch.float32, torch.bfloat16]


def equal_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(DTYPES),
    shares=st.lists(st.sampled_from([0.0, 0.001, 0.3, 1.0]), min_size=1, max_size=6),
    size=st.sampled_from([1, 7, 65536, 65537, 200_001]),
    max_memory_bytes=st.sampled_from([None, 0, 300_000]),
)
def test_every_version_comes_back_bit_for_bit(
    seed, dtype, shares, size, max_memory_bytes
):
    generator = torch.Generator().manual_seed(seed)
    store = SnapshotStore(max_memory_bytes)
    weights = {
        "a": torch.randn(size, dtype=dtype),
        "b": torch.randn(3, 2, dtype=dtype).T,  # not contiguous
    }
    weights["a"][0] = float("nan")
    history = []
    for version, share in enumerate(shares):
        for tensor in weights.values():
            chosen = torch.rand(tensor.shape, generator=generator) < share
            tensor[chosen] = torch.randn(
                int(chosen.sum()), generator=generator, dtype=dtype
            )
        weights["a"][-1] *= -0.0 if version % 2 else 0.0
        store.put(version, weights)
        history.append({name: tensor.clone() for name, tensor in weights.items()})
    for version in reversed(range(len(shares))):
        for name, tensor in store.get(version).items():
            assert equal_bits(tensor, history[version][name]), (version, name)
    if max_memory_bytes == 0 and len(shares) > 1:
        assert store.nbytes_on_disk > 0


def test_reading_a_version_leaves_the_others_as_they_were():
    store, weight = SnapshotStore(), torch.zeros(100_000)
    for version in range(3):
        weight[version] = 1.0
        store.put(version, {"w": weight})
    assert [store.get(v)["w"].sum().item() for v in (0, 2, 1, 2, 0)] == [1, 3, 2, 3, 1]


def test_a_window_of_bf16_versions_takes_little_more_than_one_copy():
    """Adam at learning rate 1e-6 on weights of a usual size, float32 master copy."""
    generator = torch.Generator().manual_seed(0)
    master = 0.02 * torch.randn(1_000_000, generator=generator)
    store = SnapshotStore()
    for version in range(5):
        store.put(version, {"w": master.bfloat16()})
        master += 1e-6 * torch.randn(len(master), generator=generator).sign()
    one_copy = 2 * len(master)
    assert 1.01 * one_copy < store.nbytes < 1.5 * one_copy


def test_what_is_gone_is_named():
    store = SnapshotStore()
    for version in range(3, 6):
        store.put(version, {"w": torch.full((4,), float(version))})
    store.evict_before(4)
    assert store.versions == [4, 5]
    with pytest.raises(KeyError, match=r"no snapshot of version 3; held: \[4, 5\]"):
        store.get(3)
    with pytest.raises(ValueError, match="version 5 is not newer than 5"):
        store.put(5, {"w": torch.zeros(4)})


@pytest.mark.parametrize("max_memory_bytes", [None, 0])
def test_a_state_is_as_small_as_what_is_held_and_restores_every_bit(max_memory_bytes):
    generator = torch.Generator().manual_seed(0)
    store, versions = SnapshotStore(max_memory_bytes), []
    weight = torch.randn(1 << 16, generator=generator).bfloat16()
    for version in range(5):
        weight = weight.clone()
        weight[torch.randint(0, len(weight), (500,), generator=generator)] += 0.5
        versions.append(weight)
        store.put(version, {"w": weight}.items())
    state = store.state_dict()
    nbytes = sum(
        sum(t.nbytes for t in (value if isinstance(value, tuple) else (value,)))
        for plain in state.values()
        for value in plain.values()
    )
    assert weight.nbytes < nbytes < 1.2 * weight.nbytes
    restored = SnapshotStore(max_memory_bytes)
    restored.put(7, {"w": torch.zeros(3)})  # what is held goes
    restored.load_state_dict(state)
    store.put(5, {"w": weight + 1})  # what follows does not touch the state
    assert restored.versions == [0, 1, 2, 3, 4]
    assert all(equal_bits(restored.get(v)["w"], versions[v]) for v in range(5))
    restored.put(5, {"w": weight + 1})
    assert equal_bits(restored.get(2)["w"], versions[2])


def test_other_names_are_refused_and_another_dtype_or_shape_is_kept_apart():
    """A run may go on in another compute dtype."""
    store = SnapshotStore()
    store.put(0, {"w": torch.ones(90), "b": torch.zeros(90)})
    for odd in ({"w": torch.ones(90)}, {"w": 0, "b": 0, "c": torch.ones(1)}):
        with pytest.raises(ValueError, match="names differ from version 0's"):
            store.put(1, odd)
    store.put(1, {"w": torch.ones(90).bfloat16(), "b": torch.zeros(3)})
    store.put(2, {"w": torch.ones(90).bfloat16(), "b": torch.zeros(3)})
    assert store.get(0)["w"].dtype == torch.float32 and store.get(0)["b"].shape == (90,)
    assert store.get(1)["w"].dtype == torch.bfloat16 and len(store.get(1)["b"]) == 3
