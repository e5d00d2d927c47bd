"""A checkpoint of anybody's: read as data, refused in one line, or trusted by word."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rllib_llm_async.cli import main
from rllib_llm_async.cli.checkpoint import open_checkpoint
from rllib_llm_async.cli.errors import InputError
from tests.fuzz.properties import metadata_is_read_or_refused

SAID = {
    "run": "PPOEWMAAsync",
    "env": "mini_tau2",
    "settings": {"eps_ti": 1.3},
    "not_saved": [],
    "policy_version": 7,
}
LEARNER = "learner_group/learner"


@pytest.fixture
def write(tmp_path):
    def write(changes, path=tmp_path):
        (path / LEARNER).mkdir(parents=True, exist_ok=True)
        said = changes if isinstance(changes, bytes) else json.dumps(SAID | changes)
        file = path / LEARNER / "metadata.json"
        file.write_bytes(said if isinstance(said, bytes) else said.encode())
        return path

    return write


def test_what_it_says(write):
    checkpoint = open_checkpoint(write({}))
    assert checkpoint.policy_version == 7
    config = checkpoint.config()
    assert config.eps_ti == 1.3 and config.env == "mini_tau2"
    assert checkpoint.config("mini_vita").env == "mini_vita"


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_source_of_somebody_elses_is_not_needed(write, tmp_path, command):
    theirs = {"old_logprob_source": "theirs", "compare_sources": ["theirs_too"]}
    out = ["--out", str(tmp_path / "out")] if command == "export" else []
    done = CliRunner().invoke(main, [command, str(write({"settings": theirs})), *out])
    assert "module_state.pkl: No such file" in done.output  # which is read after them


@pytest.mark.parametrize("command", ["evaluate", "export"])
@pytest.mark.parametrize(
    "changes, words",
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"\xff", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b"[]", "run is missing"),
        ({"run": None}, "run is missing"),
        ({"settings": []}, "settings is missing"),
        ({"policy_version": "1"}, "policy_version is missing"),
        ({"not_saved": ["env_config"]}, "Python objects"),
        ({"run": "os.system"}, "unknown"),
        ({"env": "mini_tau3"}, "did you mean 'mini_tau2'"),
        ({"settings": {"eps_ti": -1}}, "eps_ti"),
        ({"settings": {"eps_tii": 1}}, "did you mean 'eps_ti'"),
        ({}, "module_state.pkl: No such file"),
    ],
)
def test_what_cannot_be_is_one_line(write, tmp_path, command, changes, words):
    out = ["--out", str(tmp_path / "out")] if command == "export" else []
    done = CliRunner().invoke(main, [command, str(write(changes)), *out])
    assert done.exit_code == 2, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("Error")]
    assert len(lines) == 1 and words in lines[0] and str(tmp_path) in lines[0]


@pytest.mark.parametrize(
    "settings_, key",
    [
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"callbacks": "os.system"}, "callbacks"),
        ({"engine": {"worker_cls": "os.system"}}, "engine.worker_cls"),
        ({"engine": {"logits_processors": ["a:B"]}}, "engine.logits_processors"),
        ({"engine": {"kv_transfer_config": {"a": 1}}}, "engine.kv_transfer_config"),
        ({"engine": {"dtype": ["a"]}}, "engine.dtype"),
        (
            {"env_config": {"user": {"base_url": "http://a", "api_key_env": "AWS"}}},
            "env_config.user.base_url",
        ),
        ({"env_config": {"judge": {"base_url": "http://a"}}}, "env_config.judge.bas"),
        (
            {"env_config": {"user": {"engine": {"tool_parser_plugin": "a.py"}}}},
            "env_config.user.engine.tool_parser_plugin",
        ),
    ],
)
def test_code_and_keys_need_trust(write, settings_, key):
    path = write({"settings": settings_})
    with pytest.raises(InputError, match=key) as error:
        open_checkpoint(path)
    assert "--trust-checkpoint" in error.value.message
    assert open_checkpoint(path, trust=True).settings == settings_


def test_an_environment_that_is_imported_needs_trust(write):
    path = write({"env": "json:loads"})
    with pytest.raises(InputError, match=r"its env names code.*--trust-checkpoint"):
        open_checkpoint(path)
    assert open_checkpoint(path, trust=True).env == "json:loads"


def test_plain_settings_need_none(write):
    user = {"base_url": "http://localhost/v1", "api_key_env": None, "model": "m"}
    engine = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True}
    settings_ = {"engine": engine, "env_config": {"user": user, "domains": ["retail"]}}
    assert open_checkpoint(write({"settings": settings_})).settings == settings_


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(st.fixed_dictionaries({}, optional={key: json_values for key in SAID}))
def test_any_json_is_read_or_refused(write, changes):
    metadata_is_read_or_refused(write(changes))


def test_weights_of_another_model_are_refused_by_name(tmp_path, write):
    import pickle

    from rllib_llm_async.models.small_agent import small_agent_dir

    path = write({"settings": {"model": str(small_agent_dir())}})
    file = path / LEARNER / "rl_module" / "default_policy" / "module_state.pkl"
    file.parent.mkdir(parents=True)
    file.write_bytes(pickle.dumps({"policy.lm.x": np.ones(3, np.float32)}))
    done = CliRunner().invoke(main, ["export", str(path), "--out", str(tmp_path / "o")])
    assert done.exit_code == 2 and "of another model" in done.output
