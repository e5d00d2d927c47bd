"""With what runs ran, and what they are called beside each other."""

import json
from pathlib import Path

import pytest

from rllib_llm_async.report import find_runs, group_runs, render_page
from rllib_llm_async.report.load import Run
from rllib_llm_async.report.run_settings import settings_table, versions_lines

VERSIONS = {"rllib_llm_async": "0.1.0 (12ab)", "ray": "2.60.0", "torch": "2.13.0"}


def make_run(directory, *, start=None, seed=0, trial_id=None, **settings):
    """As Tune writes it; ``start`` as the run notes down that it begins."""
    directory.mkdir(parents=True)
    # What RLlib has of every config beside settings of ours.
    config = {"callbacks": "<class 'C'>", "framework": "torch", "_fake_gpus": False}
    config |= {"env": "mini", "eps_ti": 1.1, "lr": 1e-4, "seed": seed, **settings}
    config.setdefault("old_logprob_source", "snapshot_old")
    row = {"training_iteration": 1, "trial_id": trial_id, "config": config}
    (directory / "result.json").write_text(json.dumps(row))
    given = settings if start is None else config
    (directory / "params.json").write_text(json.dumps({**given, "seed": seed}))
    if start is not None:
        starts = [{"env": "mini", "settings": settings, "versions": v} for v in start]
        text = "".join(json.dumps(line) + "\n" for line in starts)
        (directory / "run.jsonl").write_text(text)


def labels(tmp_path):
    return [group.label for group in group_runs(find_runs([tmp_path]))]


def test_a_run_tells_what_it_was_given_whoever_started_it(tmp_path):
    make_run(tmp_path / "a" / "python", start=[VERSIONS], eps_ti=1.2)
    make_run(tmp_path / "b" / "command", lr=3e-4)
    groups = group_runs(find_runs([tmp_path]))
    table = settings_table(groups)
    assert table == {
        "env": ["mini", "mini"],
        "eps_ti": ["1.2", "1.1"],
        "lr": ["0.0001", "0.0003"],
        "seed": ["0", "0"],
    }
    assert [g.label for g in groups] == [
        "eps_ti 1.2, lr 0.0001",
        "eps_ti 1.1, lr 0.0003",
    ]
    page = render_page(groups)
    assert "<code>0.0003</code>" in page and "ray 2.60.0, torch 2.13.0" in page


def test_a_python_run_that_told_nothing_is_known_by_settings_alone(tmp_path):
    make_run(tmp_path / "a" / "command", eps_ti=1.2)
    make_run(tmp_path / "b" / "python", eps_ti=1.3)
    params = tmp_path / "b" / "python" / "params.json"
    config = json.loads((params.parent / "result.json").read_text())["config"]
    params.write_text(json.dumps(config))
    assert labels(tmp_path) == ["eps_ti 1.2", "eps_ti 1.3"]
    assert "_fake_gpus" not in settings_table(group_runs(find_runs([tmp_path])))


def test_runs_that_differ_in_much_are_called_by_their_experiment(tmp_path):
    for n, name in enumerate(("retail", "sweep")):
        given = {
            "eps_ti": 1.1 + n,
            "lr": n,
            "grad_clip": n,
            "gamma": n,
            "num_epochs": n,
        }
        make_run(tmp_path / name / "trial", **given)
    assert labels(tmp_path) == ["retail", "sweep"]


def test_a_long_value_is_cut(tmp_path):
    for n in (1, 2):
        make_run(tmp_path / str(n) / "trial", lr=[[0, n], [8000, 6e-4], [27000, 1e-4]])
    assert all(len(label) <= 30 and label.endswith("…") for label in labels(tmp_path))


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (("a/x/t", "a/y/t"), ["x", "y"]),  # two experiments
        (("a/x/t", "b/x/t"), ["x (a)", "x (b)"]),  # one, stored twice
        (("a/x/t", "a/x/u"), ["x (id t)", "x (id u)"]),  # two trials
        (("ray_results/p1", "ray_results/p2"), ["p1", "p2"]),  # no Tune
    ],
)
def test_equal_settings_are_told_apart_by_the_shortest_name(tmp_path, places, expected):
    for place in places:
        make_run(tmp_path / place, trial_id=f"id {Path(place).name}")
    assert labels(tmp_path) == expected


def test_versions_are_named_once_and_a_change_of_them_is_told(tmp_path):
    make_run(tmp_path / "a" / "t", start=[VERSIONS], eps_ti=1.2)
    make_run(tmp_path / "b" / "t", start=[VERSIONS], eps_ti=1.3)
    (line,) = versions_lines(group_runs(find_runs([tmp_path])))
    assert line == "rllib_llm_async 0.1.0 (12ab), ray 2.60.0, torch 2.13.0"
    resumed = [VERSIONS, VERSIONS, {**VERSIONS, "ray": "2.61.0"}]
    make_run(tmp_path / "c" / "t", start=resumed, eps_ti=1.4)
    same, changed = versions_lines(group_runs(find_runs([tmp_path])))
    assert same.startswith("eps_ti 1.2, eps_ti 1.3: rllib_llm_async")
    assert changed.startswith("eps_ti 1.4: ") and "ray 2.60.0, then 2.61.0" in changed


def test_what_somebody_else_wrote_into_run_jsonl_is_text_or_nothing(tmp_path):
    make_run(tmp_path / "a" / "t")
    hostile = [1, {"versions": [1]}, {"settings": 3, "versions": {"ray": ["<b>"]}}]
    text = "".join(json.dumps(line) + "\n" for line in hostile)
    (tmp_path / "a" / "t" / "run.jsonl").write_text(text + "{")
    page = render_page(group_runs(find_runs([tmp_path])))
    assert "<b>&#39;" not in page and "&lt;b&gt;" in page


def test_a_run_without_versions_says_so():
    run = Run(Path("results/mine/trial"), [{"training_iteration": 1}], {}, {})
    assert versions_lines(group_runs([run])) == ["Versions were not noted down."]
