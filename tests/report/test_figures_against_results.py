"""Every figure of the page, recomputed from the lines of result.json it is made of."""

import json
import random
import re
from collections import defaultdict

import numpy as np
import pytest

from rllib_llm_async.core import NUM_RATIO_BINS
from rllib_llm_async.report import find_runs, group_runs
from rllib_llm_async.report.cost import comparison_section, cost_section
from rllib_llm_async.report.curves import curves_section
from rllib_llm_async.report.density import density_section
from rllib_llm_async.report.ledger import ledger_section
from rllib_llm_async.report.mask import mask_and_clip_section
from rllib_llm_async.report.page import _summary
from rllib_llm_async.report.staleness import staleness_section
from rllib_llm_async.report.success import success_section
from rllib_llm_async.report.timeline import timeline_section

LEARNER = ("learners", "default_policy")


def spans(rng, start):
    """One iteration: two engines, two learners, a driver that waits for both.

    Learner 1 begins to compute old logits while the driver still waits for episodes.
    """
    wait, update = rng.uniform(0.1, 0.5), rng.uniform(20, 40)
    begin, end = start + wait, start + wait + update
    return [
        ["driver", "waiting for episodes", start, begin],
        ["driver", "waiting for the update", begin, end],
        ["learner 0", "old logits", begin + 1, begin + 9],
        ["learner 0", "training", begin + 9, end - 2],
        ["learner 0", "publishing", end - 2, end - 1],
        ["learner 1", "old logits", begin - 0.05, begin + 7],
        ["learner 1", "training", begin + 9, end - 3],
        ["engine 0", "generating", start, end],
        ["engine 1", "generating", start + 5, end],
        ["engine 1", "weight transfer", start, start + rng.uniform(1, 2)],
    ], end


@pytest.fixture
def rows(tmp_path):
    """What was written, as it is read again: a run that stood still for an hour."""
    rng, clock, rows = random.Random(0), 1e6, []
    for number in range(1, 5):
        timeline, clock = spans(rng, clock + 3600 * (number == 3))
        density = np.zeros((NUM_RATIO_BINS, NUM_RATIO_BINS), int)
        for _ in range(50):
            density[rng.randrange(NUM_RATIO_BINS), rng.randrange(NUM_RATIO_BINS)] += 7
        learner = {
            "train_infer_mask": rng.uniform(0.8, 1),
            "ppo_clip_fraction": rng.uniform(0, 0.1),
            "entropy": rng.random(),
            "train_tokens_per_s": rng.uniform(1e3, 1e4),
            "staleness_mean": rng.uniform(0, 3),
            "staleness_tokens": [rng.randrange(1, 99) for _ in range(3)],
            "ratio_density": density.flatten().tolist(),
            "ewma_num_resets": float(number // 2),
            "snapshot_bytes": float(rng.randrange(1 << 20, 1 << 24)),
            "compare": {
                name: {
                    "log_ratio_abs_error_mean": rng.uniform(0, 0.1),
                    "seconds": rng.uniform(1, 9),
                }
                for name in ("snapshot_old", "rollout")
            },
        }
        del learner["compare"]["snapshot_old"]["seconds"]  # the one trained with
        rows.append(
            {
                "training_iteration": number,
                "time_total_s": 11.5 * number,
                "config": {"old_logprob_source": "snapshot_old", "seed": 0},
                "env_runners": {
                    "success_rate": rng.random(),
                    **{
                        key: rng.random()
                        for key in (
                            "staleness_from_generation",
                            "staleness_from_queue",
                            "held_by_bound_fraction",
                            "held_by_pacing_fraction",
                        )
                    },
                },
                "evaluation": {"env_runners": {"success_rate": rng.random()}},
                "learners": {"default_policy": learner},
                "timeline": timeline,
                # As RLlib's slow moving averages would have it, far off.
                "timers": {"sample": 9.0, "learner_update_timer": 19.4},
                "ledger": {
                    "identity_error": 0,
                    "episodes": {
                        "started": 40 * number,
                        "trained": 30 * number,
                        "masked": 2 * number,
                        "dropped_stale": 3 * number,
                        "in_flight": 5 * number,
                    },
                },
            }
        )
    folder = tmp_path / "experiment" / "trial"
    folder.mkdir(parents=True)
    path = folder / "result.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    (folder / "params.json").write_text(json.dumps(rows[0]["config"]))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def groups(rows, tmp_path):
    groups = group_runs(find_runs([tmp_path / "experiment"]))
    for group in groups:
        group.color = "#0072B2"
    return groups


def column(rows, *path):
    values = []
    for row in rows:
        for key in path:
            row = row[key]
        values.append(row)
    return values


def numbers(text):
    return [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\.?\d*", text)]


def seconds(rows, lanes, phase):
    """Per update, the mean over the lanes; of learners what lies within an update."""
    total = 0.0
    for row in rows:
        (update,) = [s for s in row["timeline"] if s[1] == "waiting for the update"]
        for lane, name, start, end in row["timeline"]:
            if lane in lanes and name == phase:
                if lane.startswith("learner"):
                    start, end = max(start, update[2]), min(end, update[3])
                total += end - start
    return total / len(rows) / len(lanes)


def test_cost_is_what_the_time_line_says(rows, groups):
    section = cost_section(groups)
    drawn = {bar.name: bar.x[0] for bar in section.figure.data}
    learners = ["learner 0", "learner 1"]
    expected = {
        "old logits": seconds(rows, learners, "old logits"),
        "training": seconds(rows, learners, "training"),
        "publishing": seconds(rows, learners, "publishing"),
        "waiting for episodes": seconds(rows, ["driver"], "waiting for episodes"),
    }
    update = seconds(rows, ["driver"], "waiting for the update")
    expected["rest of the update"] = update - sum(
        expected[part] for part in ("old logits", "training", "publishing")
    )
    assert drawn == pytest.approx(expected)
    assert expected["old logits"] == pytest.approx((8 + 7) / 2)
    mib = rows[-1]["learners"]["default_policy"]["snapshot_bytes"] / 2**20
    assert numbers(section.finding) == pytest.approx(
        [7.5, update, 100 * 7.5 / update, mib], abs=0.5
    )
    assert f"{7.5:.2f} s of the {update:.2f} s" in section.finding


def test_prices_and_errors_of_sources(rows, groups):
    points = {
        trace.text[0]: (trace.x[0], trace.y[0])
        for trace in comparison_section(groups).figure.data
    }
    of = (*LEARNER, "compare")
    errors = {
        name: np.mean(column(rows, *of, name, "log_ratio_abs_error_mean"))
        for name in ("snapshot_old", "rollout")
    }
    assert points["snapshot_old"] == pytest.approx((errors["snapshot_old"], 7.5))
    assert points["rollout"] == pytest.approx(
        (errors["rollout"], np.mean(column(rows, *of, "rollout", "seconds")))
    )


def test_the_time_line_and_its_shares(rows, groups):
    section = timeline_section(groups)
    drawn, written = defaultdict(float), defaultdict(float)
    for bar in section.figure.data:
        for lane, length in zip(bar.y, bar.x, strict=True):
            drawn[lane, bar.name] += length
    for row in rows:
        for lane, phase, start, end in row["timeline"]:
            written[lane, phase] += end - start
    assert drawn == pytest.approx(written)
    # The hour in which the run stood still counts for nobody.
    total = sum(
        max(s[3] for s in row["timeline"]) - min(s[2] for s in row["timeline"])
        for row in rows
    )
    shares = [
        100 * sum(written[f"{kind} {n}", phase] for n in (0, 1)) / 2 / total
        for kind, phase in (
            ("engine", "generating"),
            ("engine", "weight transfer"),
            ("learner", "training"),
            ("learner", "old logits"),
        )
    ]
    assert numbers(section.finding) == pytest.approx(shares, abs=0.06)


def test_training_curves(rows, groups):
    figure = curves_section(groups).figure
    drawn = [list(trace.y) for trace in figure.data]
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles == ["entropy, nats per token", "trained tokens per second"]
    assert drawn[0] == pytest.approx(column(rows, *LEARNER, "entropy"))
    assert drawn[1] == pytest.approx(column(rows, *LEARNER, "train_tokens_per_s"))


def test_success(rows, groups):
    section = success_section(groups)
    line, marks = section.figure.data
    training = column(rows, "env_runners", "success_rate")
    held_out = column(rows, "evaluation", "env_runners", "success_rate")
    assert list(line.x) == [1, 2, 3, 4] and list(line.y) == pytest.approx(training)
    assert list(marks.y) == pytest.approx(held_out)
    fall = max(a - b for i, a in enumerate(training) for b in training[i:])
    assert numbers(section.finding) == pytest.approx(
        [training[0], held_out[-1], fall], abs=6e-4
    )


def test_mask_and_clip(rows, groups):
    section = mask_and_clip_section(groups)
    kept, clipped = section.figure.data
    mask = column(rows, *LEARNER, "train_infer_mask")
    clip = column(rows, *LEARNER, "ppo_clip_fraction")
    assert list(kept.y) == pytest.approx(mask)
    assert list(clipped.y) == pytest.approx(clip)
    assert numbers(section.finding) == pytest.approx(
        [100 * np.mean(mask), 100 * min(mask), 100 * np.mean(clip)], abs=0.06
    )
    resets = {shape.x0 for shape in section.figure.layout.shapes}
    assert resets == {2, 4}  # ewma_num_resets: 0, 1, 1, 2


def test_density(rows, groups):
    section = density_section(groups)
    counts = np.sum(column(rows, *LEARNER, "ratio_density"), axis=0)
    counts = counts.reshape(NUM_RATIO_BINS, NUM_RATIO_BINS)
    np.testing.assert_array_equal(section.figure.data[0].customdata, counts.T)


def test_staleness(rows, groups):
    section = staleness_section(groups)
    drawn = np.nan_to_num(np.array(section.figure.data[0].z, dtype=float))
    tokens = np.array(column(rows, *LEARNER, "staleness_tokens"), dtype=float)
    np.testing.assert_allclose(drawn, (tokens / tokens.sum(1, keepdims=True)).T)
    mean = np.mean(column(rows, *LEARNER, "staleness_mean"))
    generation, queue, bound, pacing = (
        np.mean(column(rows, "env_runners", key))
        for key in (
            "staleness_from_generation",
            "staleness_from_queue",
            "held_by_bound_fraction",
            "held_by_pacing_fraction",
        )
    )
    assert numbers(section.finding) == pytest.approx(
        [mean, generation, queue, 100 * (bound + pacing), 100 * bound, 100 * pacing],
        abs=0.6,
    )


def test_the_ledger(rows, groups):
    section = ledger_section(groups)
    drawn = {t.name: list(t.y) for t in section.figure.data if t.xaxis == "x"}
    assert drawn["trained"] == [30] * 4 and drawn["masked"] == [2] * 4
    assert drawn["dropped stale"] == [3] * 4
    assert drawn["in flight"] == column(rows, "ledger", "episodes", "in_flight")
    assert numbers(section.finding)[:3] == pytest.approx([160, 75.0, 7.5])


def test_the_summary(rows, groups):
    row = _summary(groups[0])
    training = column(rows, "env_runners", "success_rate")
    last = rows[-1]
    assert row["updates"] == 4 and row["resets"] == 2
    assert row["seconds"] == f"{last['time_total_s']:.0f}"
    assert row["success"] == f"{last['evaluation']['env_runners']['success_rate']:.3f}"
    fall = max(a - b for i, a in enumerate(training) for b in training[i:])
    assert row["fall"] == f"{fall:.3f}" and row["collapsed"] == (fall > 0.2)
    mask = np.mean(column(rows, *LEARNER, "train_infer_mask"))
    assert row["mask"] == f"{100 * mask:.1f} %"
    assert row["staleness"] == f"{column(rows, *LEARNER, 'staleness_mean')[-1]:.2f}"
