"""Weights come back as they were saved; whatever else a pickle says is refused."""

import pickle
import pickletools
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from ray import cloudpickle

from rllib_llm_async.cli.array_pickle import read_arrays
from tests.fuzz.properties import weights_are_read_or_refused

arrays = np_st.arrays(
    np_st.floating_dtypes(endianness="<") | np_st.integer_dtypes(endianness="<"),
    np_st.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
same_folder = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "module_state.pkl"


@same_folder
@given(st.dictionaries(st.text(), arrays), st.sampled_from([dict, OrderedDict]))
def test_arrays_come_back(file, saved, mapping):
    turned = {name: array.T for name, array in saved.items()}
    for given_arrays in (saved, turned):
        file.write_bytes(cloudpickle.dumps(mapping(given_arrays)))
        read = read_arrays(file)
        assert list(read) == list(given_arrays)
        for name, array in given_arrays.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array)


class Runs:
    """Whose unpickling is a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_refused_by_name_and_not_run(file, tmp_path, protocol):
    ran = tmp_path / "ran"
    for hidden in (
        {"a": Runs(exec, f"open({str(ran)!r}, 'w')")},
        [Runs(exec, f"open({str(ran)!r}, 'w')")],
        {Runs(exec, f"open({str(ran)!r}, 'w')"): np.ones(2)},
    ):
        file.write_bytes(pickle.dumps(hidden, protocol))
        with pytest.raises(ValueError, match=r"exec, not loaded") as error:
            read_arrays(file)
        assert str(file) in str(error.value)
    assert not ran.exists()
    pickle.loads(file.read_bytes())
    assert ran.exists()  # so would RLlib's reader


@pytest.mark.parametrize(
    "program",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"(S'id'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
        # A path through a module that is allowed, and an attribute set on a function.
        b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
        b"\x80\x02cnumpy._core.numeric\n_frombuffer\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.",
        b"\x80\x02P0\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02Nr\xff\xff\xff\xff.",
        b"\x80\xff.",
        b"",
        b".",
        b"(" * 100_000 + b".",
        b"]" * 100_000 + b"a" * 99_999 + b".",
    ],
)
def test_other_programs_are_refused(file, program):
    file.write_bytes(program)
    with pytest.raises(ValueError, match="damaged, or not weights") as error:
        read_arrays(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    "value", [None, 1, [np.ones(1)], {"a": 1.0}, {1: np.ones(1)}, {"a": [np.ones(1)]}]
)
def test_other_values_are_refused(file, value):
    file.write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match="not weights"):
        read_arrays(file)


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.array(["text"]),
        np.array([(1, 2.0)], dtype="i4,f4"),
        np.ones(2, dtype=">f4"),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(file, array):
    file.write_bytes(pickle.dumps({"a": array}))
    with pytest.raises(ValueError, match="not weights"):
        read_arrays(file)


def test_a_file_cut_anywhere_is_refused_by_name(file):
    whole = cloudpickle.dumps({"a": np.arange(6.0), "b": np.ones((2, 2), np.float32)})
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"module_state\.pkl: damaged"):
            read_arrays(file)


@same_folder
@given(
    st.binary()
    | st.lists(st.sampled_from(pickletools.opcodes)).map(
        lambda ops: b"".join(op.code.encode("latin-1") + b"\x01\n" for op in ops)
    )
)
def test_any_bytes_are_read_or_refused(file, data):
    file.write_bytes(data)
    weights_are_read_or_refused(file)


@same_folder
@given(st.data())
def test_any_damage_is_read_or_refused(file, data):
    whole = bytearray(cloudpickle.dumps({"a": np.arange(4.0), "b": np.eye(2).T[:1]}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(
            st.integers(0, 255)
        )
    file.write_bytes(whole)
    weights_are_read_or_refused(file)


@pytest.mark.parametrize("opcode", [pickle.BINBYTES8, pickle.BYTEARRAY8, pickle.FRAME])
def test_no_more_memory_is_taken_than_the_file_has(file, opcode):
    file.write_bytes(b"\x80\x05" + opcode + (1 << 30).to_bytes(8, "little"))
    tracemalloc.start()
    with pytest.raises(ValueError, match="cut off"):
        read_arrays(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_a_missing_file_is_named(file):
    with pytest.raises(ValueError, match=r"module_state\.pkl: No such file"):
        read_arrays(file)
