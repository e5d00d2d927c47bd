"""`rllib train file`: what it leaves and learns; `rllib evaluate`; an interruption."""

import json
import re
import signal
import subprocess
import time
from statistics import fmean

import pytest

from rllib_llm_async.algorithms.async_decoupled_ppo.checkpoints import (
    check_whole,
    read_metrics,
)
from tests.end_to_end.commands import (
    RLLIB,
    SMALL,
    TUNED,
    Command,
    environment,
    processes_of,
)
from tests.end_to_end.watched_run import NUM_ITERATIONS
from tests.monitoring.tensorboard_file import read_scalars
from tests.monitoring.wandb_file import read_run

#: 256 tasks, twice each.
NUM_HELD_OUT = 512
#: Result keys that people rely on, for a run with `ppo_ewma_async` and a comparison.
CONTRACT = {
    "learners/default_policy": """
        train_infer_mask ppo_clip_fraction active_fraction
        discrepancy_log_ratio_abs_mean discrepancy_kl staleness_mean staleness_max
        effective_sample_size policy_version ewma_decay ewma_num_resets
        old_logprob_seconds old_logprob_extra_forward_tokens train_tokens_per_s
        padding_fraction compare/snapshot_old/log_ratio_abs_error_mean
        compare/snapshot_old/mask_disagreement compare/snapshot_old/r_d_r_s_correlation
    """,
    "env_runners": """
        episode_return_mean success_rate success_rate/airline generated_tokens_per_s
        num_generated_tokens_lifetime weight_sync_seconds generation_paused_fraction
        num_versions_per_episode num_episodes_dropped_stale num_env_failures
        num_malformed_tool_calls weight_probe_error num_weight_mismatches
        rubric_score checks/airline/policy
    """,
}


def test_what_a_run_leaves(finished_run):
    assert "held-out success" in finished_run.said
    said = rf"evaluation, (\d+ of {NUM_HELD_OUT} episodes, )?for \d+ s"
    assert re.search(said, finished_run.said)

    results, rows = finished_run.results, finished_run.rows
    promised = {f"{g}/{key}" for g, keys in CONTRACT.items() for key in keys.split()}
    (wandb_file,) = (results / "mini_tau2_ppo_ewma_async").rglob("*.wandb")
    run, history, _ = read_run(wandb_file)
    assert run.project == "test" and run.run_group == "mini_tau2_ppo_ewma_async"
    assert [row["_step"] for row in history] == [*range(1, NUM_ITERATIONS + 1)]
    assert all(promised <= row.keys() for row in history)
    (events,) = results.rglob("events.out.tfevents.*")
    assert promised <= read_scalars(events).keys()

    assert len(rows) == NUM_ITERATIONS
    learner = rows[-1]["learners"]["default_policy"]
    assert learner["policy_version"] == NUM_ITERATIONS - 1
    assert "ewma_decay" in learner and "lag_0/train_infer_mask" in learner
    assert rows[-1]["env_runners"]["generated_tokens_per_s"] > 0
    held_out = rows[-1]["evaluation"]["env_runners"]
    assert held_out["num_episodes"] == NUM_HELD_OUT
    assert held_out["num_env_failures"] == 0
    assert held_out["pass^2/airline"] <= held_out["pass@2/airline"]
    (samples,) = results.rglob("dialogues.jsonl")
    samples = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [s["training_iteration"] for s in samples] == [0] * 4 + [NUM_ITERATIONS] * 4
    assert [s["task"] for s in samples[:4]] == [s["task"] for s in samples[4:]]
    assert [s["policy_version"] for s in samples] == [0] * 4 + [NUM_ITERATIONS] * 4


def test_a_short_run_improves_on_held_out_tasks(finished_run):
    rows = finished_run.rows
    held_out = [rows[0]["evaluation_at_start"], rows[-1]["evaluation"]]
    before, after = (found["env_runners"]["success_rate"] for found in held_out)
    learners = [row["learners"]["default_policy"] for row in rows]
    staleness = fmean(learner["staleness_mean"] for learner in learners)
    print(f"held-out success {before:.3f} -> {after:.3f}, staleness {staleness:.2f}")
    # The same 256 tasks before and after, twice each: the standard error of the
    # difference is about 0.03.
    assert 0.3 < before < 0.7
    assert after > before + 0.12
    # Truly asynchronous, from the second update on.
    assert staleness > 0.25
    runners = rows[-1]["env_runners"]
    assert runners["num_multi_version_episodes_lifetime"] > 0


@pytest.mark.slow
def test_evaluate(finished_run, tmp_path):
    evaluate = subprocess.run(
        [
            *(RLLIB, "evaluate", finished_run.checkpoint),
            *("--num-trials", "2", "--num-tasks", "4"),
            *("--transcripts", tmp_path / "dialogues"),
        ],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert evaluate.returncode == 0, evaluate.stdout + evaluate.stderr
    domains = json.loads(evaluate.stdout.splitlines()[-1])
    assert domains["airline"]["num_episodes"] == 8
    airline = domains["airline"]
    assert airline["pass^2"] <= airline["avg@2"] <= airline["pass@2"]
    played = (tmp_path / "dialogues" / "dialogues.jsonl").read_text().splitlines()
    successes = [json.loads(line)["success"] for line in played]
    assert len(successes) == 8 and sum(successes) == pytest.approx(8 * airline["avg@2"])
    page = (tmp_path / "dialogues" / "index.html").read_text()
    assert page.count("<details>") == 8


@pytest.mark.slow
def test_a_stopped_run_saves_and_goes_on_with_other_settings(tmp_path):
    results = tmp_path / "results"
    command = [RLLIB, "train", "file", TUNED, "--storage-path", results]
    command += ["--wandb", "test", "--set", "evaluation_interval=null", *SMALL]
    with Command(tmp_path, *command[1:], "--stop", "training_iteration=30") as train:
        train.wait_for_iteration(2)
        stopped = time.monotonic()
        train.process.send_signal(signal.SIGTERM)  # as a scheduler does it
        code = train.wait()
        print(f"ended {time.monotonic() - stopped:.1f} s after the signal")
    output = train.output
    assert code == 143
    assert "SIGTERM: saving a checkpoint" in output
    assert "go on with: rllib train file" in output and "--resume" in output
    assert processes_of(tmp_path) == []
    (trial,) = (path.parent for path in results.rglob("result.json"))
    (checkpoint,) = trial.glob("checkpoint_*")
    check_whole(checkpoint)
    saved = read_metrics(checkpoint)["training_iteration"]
    assert saved >= 2

    end = saved + 2
    resume = subprocess.run(
        [
            *(*command, "--resume", "--stop", f"training_iteration={end}"),
            *("--set", "lr=1e-7", "--set", "eps_ti=1.5"),
        ],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
    )
    print(resume.stdout, resume.stderr)
    assert resume.returncode == 0
    assert f"resuming at iteration {saved} from {checkpoint}" in resume.stdout
    rows = [json.loads(x) for x in (trial / "result.json").read_text().splitlines()]
    assert [row["training_iteration"] for row in rows] == list(range(1, end + 1))
    assert [row["config"]["eps_ti"] for row in rows[saved - 1 :]] == [1.2, 1.5, 1.5]
    last = rows[-1]["learners"]["default_policy"]
    assert last["default_optimizer_learning_rate"] == pytest.approx(1e-7)
    # W&B was told all of it, as one run.
    runs = [read_run(path) for path in sorted(results.rglob("*.wandb"))]
    assert len(runs) == 2 and len({run.run_id for run, _, _ in runs}) == 1
    steps = [{row["_step"] for row in history} for _, history, _ in runs]
    assert {1, 2} <= steps[0] and steps[0] | steps[1] == set(range(1, end + 1))
