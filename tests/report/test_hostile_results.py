"""Files of results and what models said in them are data: no page runs any of it."""

import json

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rllib_llm_async.cli import main
from rllib_llm_async.monitoring.dialogues import render_html, render_text
from tests.fuzz.properties import page_is_inert, results_are_shown

MARKUP = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' onload='alert(1)",
    "<a href=javascript:alert(1)>x</a>",
    "--><iframe src=x>",
    "{{ 7 * 7 }}{% raw %}",
    "</style><svg onload=alert(1)>",
    "\ud83d",
    "\0",
]
hostile = st.sampled_from(MARKUP) | st.text(max_size=6)
messages = st.fixed_dictionaries(
    {"role": hostile, "content": st.none() | hostile},
    optional={
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {
                    "function": st.fixed_dictionaries(
                        {"name": hostile, "arguments": hostile}
                    )
                }
            ),
            max_size=2,
        ),
        "tokens": st.lists(hostile, min_size=2, max_size=2),
        "versions": st.just([0, 1]),
        "logp": st.just([-0.1, -3.0]),
    },
)
dialogues = st.fixed_dictionaries(
    {
        "task": hostile,
        "domain": hostile,
        "success": st.booleans(),
        "reward": st.floats(0, 1),
        "reward_breakdown": st.dictionaries(hostile, hostile, max_size=2),
        "reason": hostile,
        "policy_version": st.integers(0, 9),
        "messages": st.lists(messages, max_size=3),
        "training_iteration": st.just(1),
    }
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | hostile
    | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(hostile, inner, max_size=3)
    ),
    max_leaves=6,
)
rows = st.fixed_dictionaries(
    {"training_iteration": st.just(1)},
    optional={
        "config": json_values,
        "semantics_warnings": st.lists(hostile, max_size=2),
        "env_runners": st.dictionaries(
            st.sampled_from(["success_rate", "success_rate/airline", "timeline"]),
            json_values,
        ),
        "learners": st.fixed_dictionaries(
            {
                "default_policy": st.dictionaries(
                    st.sampled_from(
                        ["train_infer_mask", "ratio_density", "staleness_mean"]
                    ),
                    json_values,
                )
            }
        ),
    },
)
few = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def trial(tmp_path, monkeypatch):
    # 5 MB of a package's that are the same on every page.
    monkeypatch.setattr("rllib_llm_async.report.page.get_plotlyjs", lambda: "")
    directory = tmp_path / MARKUP[0].replace("/", "") / "trial"
    directory.mkdir(parents=True)
    return directory


@few
@given(st.lists(dialogues, max_size=2))
def test_a_page_of_dialogues_is_inert(said):
    page = render_html(said, MARKUP[1])
    page_is_inert(page)
    assert "<script" not in page and "default-src 'none'" in page
    for dialogue in said:
        render_text(dialogue)


@few
@given(
    rows,
    st.lists(dialogues | st.dictionaries(hostile, json_values), max_size=2),
    hostile,
)
def test_a_report_is_inert_whatever_results_say(trial, row, said, setting):
    (trial / "result.json").write_text(json.dumps(row) + "\n")
    (trial / "params.json").write_text(json.dumps({"model": setting}))
    (trial / "dialogues.jsonl").write_text("\n".join(map(json.dumps, said)))
    results_are_shown(trial.parent)


def test_labels_of_two_runs_are_text_in_figures_too(trial):
    for number, label in enumerate(MARKUP[:2]):
        directory = trial.parent / f"trial_{number}"
        directory.mkdir()
        row = {"training_iteration": 1, "env_runners": {"success_rate": 0.5}}
        (directory / "result.json").write_text(json.dumps(row))
        (directory / "params.json").write_text(json.dumps({"model": label}))
    results_are_shown(trial.parent)


@pytest.mark.parametrize(
    "line", ["[" * 100_000, "9" * 5000, "{", "\xff", "null", "[1]"]
)
def test_damaged_lines_are_left_out(trial, line):
    row = json.dumps({"training_iteration": 1})
    (trial / "result.json").write_text(f"{line}\n{row}\n{line}\n", encoding="latin-1")
    (trial / "dialogues.jsonl").write_text(line, encoding="latin-1")
    (trial / "params.json").write_text(line, encoding="latin-1")
    out = trial / "report.html"
    done = CliRunner().invoke(main, ["report", str(trial), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.stat().st_size


def test_half_a_surrogate_pair_does_not_stop_a_report(trial):
    message = {"role": "assistant", "content": "\ud83d"}
    (trial / "result.json").write_text('{"training_iteration": 1}')
    (trial / "dialogues.jsonl").write_text(
        json.dumps({"messages": [message], "training_iteration": 1})
    )
    out = trial / "report.html"
    done = CliRunner().invoke(main, ["report", str(trial), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert 'class="message assistant"' in out.read_text()


def test_results_of_another_shape_are_one_line(trial):
    row = {"training_iteration": 1, "config": [1], "env_runners": {"success_rate": 1}}
    (trial / "result.json").write_text(json.dumps(row))
    done = CliRunner().invoke(main, ["report", str(trial), "--out", str(trial / "r")])
    assert done.exit_code == 2 and "damaged, or of another version" in done.output
