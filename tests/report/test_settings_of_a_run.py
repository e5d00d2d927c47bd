"""The settings of a run that went on with others."""

import json

from rllib_llm_async.report.load import find_runs


def test_settings_are_those_with_which_a_run_went_on(tmp_path):
    folder = tmp_path / "experiment" / "trial"
    folder.mkdir(parents=True)
    rows = [{"training_iteration": n, "x": x} for n, x in ((1, 1), (2, 2), (2, 3))]
    (folder / "result.json").write_text("\n".join(map(json.dumps, rows)))
    starts = [{"env": "mini", "settings": {"lr": lr}} for lr in (0.1, 0.2)]
    (folder / "run.jsonl").write_text("\n".join(map(json.dumps, starts)))
    (run,) = find_runs([tmp_path])
    assert run.settings == {"env": "mini", "lr": 0.2}
    # An iteration that was repeated after a resume stands once, as it was then.
    assert run.series("x") == ([1, 2], [1.0, 3.0])
