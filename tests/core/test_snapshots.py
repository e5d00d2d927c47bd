"""Snapshots: bit for bit whatever changed, small where little did."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from rllib_llm_async.core import SnapshotStore, snapshots
from rllib_llm_async.core.deltas import bits

DTYPES = [torch.float32, torch.bfloat16]


def equal_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


@settings(deadline=None)
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


OPERATIONS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from([0.0, 0.01, 1.0])),
    st.tuples(st.just("evict"), st.integers(0, 4)),
    st.tuples(st.just("restore"), st.sampled_from([None, 0, 2_000])),
    st.tuples(st.just("walk"), st.integers(0, 2**10)),
)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**31),
    operations=st.lists(OPERATIONS, max_size=16),
    max_memory_bytes=st.sampled_from([None, 0, 2_000, 5_000]),
)
def test_versions_are_the_same_bits_after_any_puts_evictions_and_restores(
    seed, operations, max_memory_bytes
):
    """A little memory holds some versions and sends others to disk."""
    generator = torch.Generator().manual_seed(seed)
    store, held, version = SnapshotStore(max_memory_bytes), {}, 0
    weights = {
        "sparse": torch.randn(400, generator=generator).bfloat16(),
        "dense": torch.randn(30, generator=generator),
    }
    for operation, argument in operations:
        if operation == "put":
            changed = torch.rand(400, generator=generator) < argument
            weights["sparse"][changed] *= -1
            weights["dense"] += argument
            store.put(version, weights)
            held[version] = {name: w.clone() for name, w in weights.items()}
            version += 1
        elif operation == "evict":
            store.evict_before(version - argument)
            held = {v: kept for v, kept in held.items() if v >= version - argument}
        elif operation == "restore":
            restored = SnapshotStore(argument)
            restored.load_state_dict(store.state_dict())
            store = restored
        chosen = [v for v in held if operation != "walk" or argument >> (v % 10) & 1]
        walked = []
        for walked_version, tensors in store.walk(chosen):
            walked.append(walked_version)
            for name, expected in held[walked_version].items():
                assert equal_bits(tensors[name], expected), (walked_version, name)
        assert walked == sorted(chosen, reverse=True)
        assert store.versions == sorted(held)


class BytesTouched(TorchDispatchMode):
    """Adds up what operations read and write."""

    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if not operation.is_view:
            touched = [*args, result]
            if operation.name() == "aten::index_put_":
                _, (index,), values = args
                touched = [index, values, values]
            elif operation.name() == "aten::index.Tensor":
                touched = [*args[1], result, result]
            self.nbytes += sum(t.nbytes for t in touched if isinstance(t, torch.Tensor))
        return result


def test_an_update_with_four_versions_costs_hardly_more_than_with_one(monkeypatch):
    """In weight work: storing the version that leaves, and those that score.

    Adam at learning rate 1e-6 on weights of a usual size, as above.
    """
    generator = torch.Generator().manual_seed(0)
    master = 0.02 * torch.randn(1_000_000, generator=generator)
    store, applied = SnapshotStore(), []
    real = snapshots.apply_delta_
    monkeypatch.setattr(
        snapshots, "apply_delta_", lambda *a: (applied.append(1), real(*a))
    )

    def step():
        master.add_(1e-6 * torch.randn(len(master), generator=generator).sign())
        return {"w": master.bfloat16()}

    def weight_work(lags):
        weights = step()
        newest = store.versions[-1]
        with BytesTouched() as touched:
            for _ in store.walk([newest - lag for lag in lags]):
                pass
            store.put(newest + 1, weights)
        return touched.nbytes

    store.put(0, step())
    for version in range(1, 6):
        store.put(version, step())
    one = weight_work([1])
    assert len(applied) == 1
    four = weight_work([4, 3, 2, 1])
    assert len(applied) == 1 + 4
    assert one < four < 1.3 * one
    # The oldest alone is behind as many differences as all four.
    weight_work([4])
    assert len(applied) == 1 + 4 + 4


def test_whole_tensors_that_nobody_asked_for_are_passed_over():
    store = SnapshotStore()
    for version in range(4):
        store.put(version, {"w": torch.full((100,), float(version))})
    with BytesTouched() as touched:
        ((_, tensors),) = store.walk([1], "meta")
    assert touched.nbytes == 2 * 400 and tensors["w"].device.type == "meta"


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_a_version_on_disk_is_read_without_any_other(share, monkeypatch, tmp_path):
    store, weight = SnapshotStore(0, tmp_path), torch.zeros(10_000)
    for version in range(6):
        weight[: int(share * len(weight))] += 1
        store.put(version, {"w": weight})
    files, real = [], torch.load
    monkeypatch.setattr(
        torch, "load", lambda path, **kw: (files.append(path.stem), real(path, **kw))[1]
    )
    for version in (5, 4, 2, 0):
        files.clear()
        assert store.get(version)["w"][0] == version + 1
        assert files == ([] if version == 5 else [str(version)])
    files.clear()
    assert [v for v, _ in store.walk([0, 5, 3])] == [5, 3, 0] and files == ["3", "0"]
    store.evict_before(6)
    assert not any(tmp_path.iterdir())


def test_a_disk_that_is_full_takes_no_version_away(monkeypatch, tmp_path):
    state = SnapshotStore()
    for version in range(4):
        state.put(version, {"w": torch.arange(10_000) == version})
    store, real = SnapshotStore(0, tmp_path), torch.save

    def save(tensors, path):
        if path.stem == "1":
            raise OSError("no space left on device")
        real(tensors, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="no space left"):
        store.load_state_dict(state.state_dict())
    assert [store.get(v)["w"].nonzero().item() for v in range(4)] == [0, 1, 2, 3]


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
