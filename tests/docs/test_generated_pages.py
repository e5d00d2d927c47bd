"""Pages about settings, names and results say what the code says."""

import importlib.util
import re
from pathlib import Path

import pytest

from rllib_llm_async import result_keys
from rllib_llm_async.settings.check import SETTINGS
from rllib_llm_async.settings.names import ELSEWHERE

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_they_are_current(generate):
    """If not: python docs/generate.py"""
    assert (DOCS / "settings.md").read_text() == generate.settings_page()
    page = (DOCS / "coming_from.md").read_text()
    assert page == generate.with_names(page)


def test_every_setting_has_a_line_with_a_meaning():
    rows = re.findall(
        r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \| (.*)\|$",
        (DOCS / "settings.md").read_text(),
        re.MULTILINE,
    )
    assert {name for name, *_ in rows} == SETTINGS
    for name, default, valid, meaning, _ in rows:
        assert default and valid.strip() and meaning.strip(), name


def test_every_name_elsewhere_has_a_line():
    page = (DOCS / "coming_from.md").read_text()
    for library, names in ELSEWHERE.items():
        _, _, part = page.partition(f"### {library}\n")
        part = part.split("\n### ")[0]
        assert all(f"| `{name}` |" in part for name in names), library


#: What results.md names as patterns.
PARTS = {
    "NUM_EPISODES_DROPPED",
    "EPISODES",
    "TOKENS",
    "STARTED",
    "TRAINED",
    "MASKED",
    "DROPPED",
    "IN_FLIGHT",
}


@pytest.mark.parametrize(
    ("name", "key"),
    [(n, k) for n, k in vars(result_keys).items() if n.isupper() and n not in PARTS],
)
def test_every_result_key_is_explained(name, key):
    page = re.sub("```.*?```", "", (DOCS / "results.md").read_text(), flags=re.DOTALL)
    code = set(re.findall(r"`([^`]+)`", page))
    words = {word for text in code for word in text.split("/")}
    assert key in code | words or key.split("/")[-1] in words, f"docs/results.md: {key}"
