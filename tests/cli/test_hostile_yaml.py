"""Any text as an experiment file: an experiment, or one line; nothing runs or hangs."""

import os
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.experiment_file import parse_assignments
from rllib_llm_async.cli.yaml_text import read_yaml
from tests.fuzz.properties import yaml_is_read_or_refused

pytestmark = pytest.mark.thorough

LAUGHS = "\n".join(
    ["a0: &a0 [x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
)
MERGES = "\n".join(
    ["a0: &a0 {x: 1}"]
    + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12)]
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!python/object/apply:os.mkdir [ran]", "tags such as"),
        ("a: !!python/name:os.system", "tags such as"),
        ("!!python/object/new:os.mkdir [ran]", "tags such as"),
        ('a: !!int ""', "tags such as"),
        ("a: !!timestamp x", "tags such as"),
        ("a: !own 1", "tags such as"),
        ("a\0b", "unacceptable character"),
        ("a: " + "1:" * 300 + "0.0", "a number of sixtieths"),
        ("[" * 5000, "recursion"),
        ("- " * 5000, "recursion"),
        (LAUGHS, "more than 100000 values"),
        (MERGES, "more than 100000 values"),
        ("a: *b", "undefined alias"),
        ("? [a, b]\n: 1", "unhashable|not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("a: 2001-99-99", "month"),
    ],
)
def test_what_is_no_data_is_refused(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        read_yaml(text)
    assert os.listdir(tmp_path) == []
    with pytest.raises(InputError):
        parse_assignments("--set", [f"a={text}"])


def test_aliases_within_reason_are_read():
    assert read_yaml("a: &a [1, 2]\nb: [*a, *a]")["b"] == [[1, 2], [1, 2]]


def test_a_number_that_python_reads_at_any_length_is_still_one():
    assert read_yaml("9" * 400) == int("9" * 400)
    assert sys.get_int_max_str_digits() == 4300


PARTS = [
    *(
        "run: PPOEWMAAsync\n",
        "env: mini_tau2\n",
        "config: {",
        "num_samples: ",
        "stop: ",
    ),
    *("training_iteration: ", "eps_ti: ", "engine: ", "grid_search: ", "scheduler: "),
    *("&a ", "*a", "<<: ", "!!binary ", "!!set ", "? ", "- ", "[", "]", "{", "}", ", "),
    *(": ", "'", '"', "#", "|", "\n", "\n  ", "---", "...", "%YAML 1.1", "~", ".nan"),
    *(".inf", "1e-4", "0x1", "1:30", "2001-01-01", '"\\ud83d"', "true", "\0"),
]
lines = st.lists(st.sampled_from(PARTS) | st.text(max_size=5)).map("".join)


@settings(deadline=None)
@given(
    lines
    | lines.map(
        lambda text: f"a:\n  run: PPOEWMAAsync\n  env: mini_tau2\n  config: {text}"
    )
)
def test_any_text_is_read_or_refused(text):
    yaml_is_read_or_refused(text)
