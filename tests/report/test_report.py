"""`rllib report` on the files that Tune writes."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from rllib_llm_async.cli import main
from rllib_llm_async.core import NUM_RATIO_BINS
from rllib_llm_async.report import find_runs, group_runs, render_page
from rllib_llm_async.report.groups import SUCCESS, collapsed, largest_fall


def write_trial(directory, seed, history, **settings):
    directory.mkdir(parents=True)
    config = {"seed": seed, "old_logprob_source": "ppo_ewma_async", **settings}
    density = np.zeros((NUM_RATIO_BINS, NUM_RATIO_BINS), int)
    density[12, 13] = 40
    rows = [
        {
            "training_iteration": iteration + 1,
            "time_total_s": 10.0 * iteration,
            "config": config,
            "env_runners": {"success_rate": success},
            "learners": {
                "default_policy": {
                    "train_infer_mask": 0.95,
                    "ppo_clip_fraction": 0.01,
                    "staleness_mean": 1.0,
                    "staleness_tokens": [10, 30],
                    "ratio_density": density.flatten().tolist(),
                    "ewma_num_resets": float(iteration > 1),
                    "old_logprob_seconds": 0.5,
                }
            },
            "timeline": [["learner 0", "training", 100.0, 101.0]],
        }
        for iteration, success in enumerate(history)
    ]
    text = "\n".join(map(json.dumps, rows))
    (directory / "result.json").write_text(text + '\n{"training_iteration": 99, "env')
    (directory / "params.json").write_text(json.dumps(config))


@pytest.fixture
def experiment(tmp_path):
    root = tmp_path / "experiment"
    for seed, history in enumerate([[0.4, 0.6, 0.8], [0.2, 0.6, 0.3]]):
        write_trial(root / f"trial_{seed}", seed, history)
    write_trial(root / "trial_2", 0, [0.5, 0.5, 0.5], eps_ti=1.3)
    dialogue = {
        "training_iteration": 3,
        "task": "airline/7",
        "domain": "airline",
        "success": False,
        "reward": 0.0,
        "policy_version": 2,
        "messages": [{"role": "user", "content": "<script>alert(1)</script>"}],
    }
    (root / "trial_0" / "dialogues.jsonl").write_text(json.dumps(dialogue) + "\n")
    return root


def test_seeds_are_one_group_with_a_band_and_a_cut_off_line_is_left_out(experiment):
    runs = find_runs([str(experiment)])
    assert [len(run.rows) for run in runs] == [3, 3, 3]
    seeds, other = group_runs(runs)
    assert len(seeds.runs) == 2 and len(other.runs) == 1
    iterations, means, half_widths = seeds.band(SUCCESS)
    assert iterations.tolist() == [1, 2, 3]
    np.testing.assert_allclose(means, [0.3, 0.6, 0.55])
    # Student's t at 97.5 % with one degree of freedom is 12.706; s / sqrt(2) of
    # (0.4, 0.2) is 0.1.
    np.testing.assert_allclose(half_widths[0], 12.706 * 0.1, rtol=1e-3)
    assert np.isnan(other.band(SUCCESS)[2]).all()


def test_a_collapse_is_a_fall_from_the_peak_before_it(experiment):
    rising, falling, flat = find_runs([experiment])
    assert largest_fall(falling) == pytest.approx(0.3)
    assert (collapsed(rising), collapsed(falling), collapsed(flat)) == (0, 1, 0)
    # A mean over less than the window is no peak.
    falling.config["metrics_num_episodes_for_smoothing"] = 256
    for row, episodes in zip(falling.rows, [128, 200, 256], strict=True):
        row["env_runners/num_episodes_lifetime"] = episodes
    assert largest_fall(falling) == 0


def test_the_page_needs_nothing_else_and_escapes_what_people_said(experiment):
    page = render_page(group_runs(find_runs([experiment])))
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r'(src|href)="?http', outside)
    assert "&lt;script&gt;alert(1)" in page
    assert "airline/7" in page and "collapsed" in page
    # Every section has a figure, or says what would produce its data.
    headings = page.count("<section>")
    figures = page.count('class="plotly-graph-div"')
    assert figures >= 5 and headings >= figures


def test_the_command_names_what_it_cannot_read(experiment, tmp_path):
    out = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["report", str(experiment), "--out", str(out)])
    assert done.exit_code == 0 and "3 runs" in done.output
    assert out.stat().st_size > 1_000_000  # plotly.js is inside
    empty = tmp_path / "empty"
    empty.mkdir()
    done = CliRunner().invoke(main, ["report", str(empty)])
    assert done.exit_code == 2 and "no result.json in it" in done.output


def test_a_run_from_python_and_one_of_the_command_have_short_labels(tmp_path):
    """Tune writes down all settings of the one, of the other those in its YAML."""
    config = {
        "old_logprob_source": "snapshot_old",
        "env": "mini_tau2",
        "model_name_or_path": "small_agent",
        "model": {"fcnet_hiddens": [256]},
        "lr": 1e-5,
        "eps_ti": 1.05,
        "clip_actions": False,
        "env_config": {"domains": ["airline"]},
    }
    of_command = {"model": "small_agent", "lr": 1e-5, "env": "mini_tau2"}
    for name, given, lr in (("python", config, 1e-4), ("command", of_command, 1e-5)):
        folder = tmp_path / name / "trial"
        write_trial(folder, 0, [0.5], **{**config, "lr": lr})
        (folder / "params.json").write_text(json.dumps({**given, "lr": lr}))
    labels = [group.label for group in group_runs(find_runs([tmp_path]))]
    assert labels == ["lr 1e-05", "lr 0.0001"]
