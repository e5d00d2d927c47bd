"""Results that add up: runs that are made once, tables that say what the rows say."""

from functools import partial

import pytest

from experiments.figures import curves, ends, figures_of, lines, thresholds
from experiments.plan import (
    EXPERIMENTS,
    FILES,
    HARD,
    SMALL_MIXTURE,
    Run,
)
from experiments.redraw import (
    DOCS,
    cost_table,
    differences_table,
    drawn,
    replace_drawn,
    strata_table,
)
from experiments.run import adopt_twins
from experiments.statistics import bootstrap
from experiments.store import Store, rows_by
from experiments.train import compared, config_of, entropies, lags


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_run_has_a_valid_config_and_a_name_of_its_own(
    name, small_moe_dir, monkeypatch
):
    # Which learns for minutes before it is the one of the experiments.
    monkeypatch.setattr("experiments.train.small_mixture", lambda: small_moe_dir)
    runs = EXPERIMENTS[name].runs
    assert len({run.name for run in runs}) == len(runs)
    arms = {run.arm: run for run in runs}
    for run in arms.values():
        config = config_of(run)
        for key, value in run.settings.items():
            if value == SMALL_MIXTURE:
                assert config.model_path == str(small_moe_dir)
                continue
            first, _, rest = key.partition(".")
            held = getattr(config, first)
            assert (held[rest] if rest else held) == value, (run.arm, key)
        assert config.seed == run.seed


def test_a_run_has_the_task_of_its_domain():
    for domain in FILES:
        config = config_of(Run("arm", domain, 3, HARD))
        assert config.env_config["domains"] == [domain] and config.seed == 3


def found(success, **more):
    return {
        "run": {
            "avg@4": success,
            "pass@4": success,
            "samples_per_hour": 1.0,
            **more,
        },
        "updates": [
            {"update": number, "success": success * number, "staleness": 2.0}
            for number in range(1, 7)
        ],
        "lags": [{"lag": "1", "share": 1.0, "log_r_d": 0.01, "log_r_s": 0.1}],
        "entropies": [{"entropy": "1e-2", "share": 1.0, "log_r_d": 0.01}],
    }


def names(run):
    return {"name": run.name, "arm": run.arm, "domain": run.domain, "seed": run.seed}


@pytest.fixture
def store(tmp_path):
    store = Store("sources", tmp_path)
    for seed in range(3):
        for arm, gain in (("snapshot_old", 0.2), ("rollout", 0.0)):
            run = Run(arm, "retail", seed, {})
            store.add(names(run), found(0.5 + 0.1 * seed + gain))
    return store


def test_a_run_that_is_repeated_takes_its_own_place(store):
    run = Run("rollout", "retail", 1, {})
    assert run.name in store.names() and len(store.names()) == 6
    store.add(names(run), found(0.125, error_rollout=0.25))
    assert len(store.names()) == 6 and len(store.read("updates")) == 36
    (row,) = [row for row in store.read("run") if row["name"] == run.name]
    assert row["avg@4"] == "0.125" and row["error_rollout"] == "0.25"


def test_a_run_of_which_only_updates_were_written_is_missing(store):
    run = Run("ewma_prox", "retail", 0, {})

    class StoppedError(Exception):
        pass

    def lags_that_stop():
        raise StoppedError
        yield

    with pytest.raises(StoppedError):
        store.add(names(run), {**found(0.5), "lags": lags_that_stop()})
    assert run.name not in store.names()
    store.add(names(run), found(0.5))
    assert sum(row["name"] == run.name for row in store.read("updates")) == 6


def test_one_run_serves_all_experiments_that_hold_it(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.run.Store", partial(Store, directory=tmp_path))
    steps, sources = Store("steps", tmp_path), Store("sources", tmp_path)
    for arm, success in (("rollout, lr 0.005", 0.25), ("rollout, lr 0.01", 0.75)):
        run = Run(arm, "airline", 1, {})
        steps.add(names(run) | {"command": "of steps", "date": "then"}, found(success))
    adopt_twins("sources", EXPERIMENTS["sources"].runs)
    assert sources.names() == {"rollout/airline/1"}
    (row,) = sources.read("run")
    assert row["avg@4"] == "0.25" and row["command"] == "of steps"
    assert row["arm"] == "rollout" and row["seed"] == "1" and row["date"] == "then"
    for table in ("updates", "lags", "entropies"):
        ((name, rows),) = rows_by(sources.read(table), "name").items()
        there = rows_by(steps.read(table), "name")["rollout, lr 0.005/airline/1"]
        assert name == "rollout/airline/1" and len(rows) == len(there)
        assert [{**row, "name": ""} for row in rows] == [
            {**row, "name": ""} for row in there
        ]
    # What is there already is not taken again.
    steps.add(names(Run("rollout, lr 0.005", "airline", 1, {})), found(0.5))
    adopt_twins("sources", EXPERIMENTS["sources"].runs)
    assert sources.read("run")[0]["avg@4"] == "0.25"


def test_pairs_differ_by_what_the_arm_brings_and_not_by_their_seeds(store):
    table = differences_table(store.read("run"), "rollout")
    assert "| snapshot_old | 3 | 0.200 (0.200 to 0.200) | under 5 pairs |" in table
    text = drawn("sources", store)
    # Updates 2 to 6: four times what update 1 has.
    assert f"| {4 * 0.6:.3g} |" in text and f"| {4 * 0.8:.3g} |" in text
    planned = len(EXPERIMENTS["sources"].runs)
    assert "| snapshot_old | 3 | 0.800 (" in text and f"6 of {planned} runs" in text


def test_figures_show_every_run_and_the_mean_of_each_arm(store):
    run = Run("rollout", "airline", 0, {})
    store.add(names(run), found(0.3))
    runs, updates = store.read("run"), store.read("updates")
    points = {(t.y[0], t.xaxis, len(t.x)): list(t.x) for t in ends(runs, updates).data}
    assert points[("rollout", "x", 3)] == [0.5, 0.6, 0.7]
    assert points[("snapshot_old", "x", 1)] == pytest.approx([0.8])
    assert ("snapshot_old", "x2", 1) not in points
    lines = {(t.name, t.xaxis): list(t.y) for t in curves(runs, updates).data}
    assert lines[("rollout", "x")] == pytest.approx(
        [0.6 * number for number in range(1, 7)]
    )
    assert lines[("rollout", "x2")] == pytest.approx(
        [0.3 * number for number in range(1, 7)]
    )
    text = drawn("sources", store)
    for kind in ("ends", "curves"):
        assert f"(figures/evidence_sources_{kind}.svg)" in text
    assert "lines" not in figures_of("sources")


def test_a_cross_is_where_a_run_of_an_arm_reset_its_ewma():
    resets = {"0": "01122", "1": "00001", "2": ["", "", "", "", ""]}
    runs = [
        {"arm": "decay 0.9", "domain": "airline", "name": f"decay 0.9/airline/{seed}"}
        for seed in resets
    ]
    updates = [
        {"name": run["name"], "success": "0.5", "ewma_resets": count}
        for run, counts in zip(runs, resets.values(), strict=True)
        for count in counts
    ]
    line, crosses = curves(runs, updates).data
    assert len(line.x) == 5
    assert list(crosses.x) == [2, 4, 5] and list(crosses.y) == [0.5] * 3
    assert crosses.marker.symbol == "x"
    (line,) = curves(runs[2:], updates[10:]).data


@pytest.mark.parametrize("num_arms, grows", [(3, False), (40, True)])
def test_the_names_of_all_arms_fit_beside_the_curves(num_arms, grows):
    runs = [
        {"arm": f"arm {n}", "domain": domain, "name": f"arm {n}/{domain}/0"}
        for n in range(num_arms)
        for domain in ("airline", "retail")
    ]
    updates = [{"name": run["name"], "success": "0.5"} for run in runs]
    layout = curves(runs, updates).layout
    assert layout.height >= 20 * num_arms and (layout.height > 420) == grows
    assert layout.legend.tracegroupgap == 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_page_shows_what_the_rows_say(name):
    page = (DOCS / "evidence.md").read_text("utf-8")
    of_experiment = page.split(f"<!-- {name}: drawn -->")[1]
    of_experiment = of_experiment.split(f"<!-- end of {name} -->")[0].strip()
    there = Store(name).names()
    assert of_experiment == (drawn(name, Store(name)) if there else "Not measured yet.")
    assert there <= {run.name for run in EXPERIMENTS[name].runs}


def test_sources_are_paired_at_the_same_value_of_the_setting():
    def run(arm, success):
        return {"arm": arm, "domain": "airline", "seed": "0", "avg@4": str(success)}

    runs = [
        run("rollout, lr 0.005", 0.5),
        run("snapshot_old, lr 0.005", 0.75),
        run("rollout, lr 0.01", 0.25),
        run("snapshot_old, lr 0.01", 1.0),
    ]
    drawn_table = differences_table(runs, "snapshot_old, lr 0.01")
    assert "rollout, lr 0.01 | 1 | -0.750" in drawn_table
    assert "lr 0.005" not in drawn_table


@pytest.mark.parametrize("name", ["steps", "asynchrony"])
def test_arms_that_a_number_tells_apart_are_lines_over_it(name):
    assert "lines" in figures_of(name)
    arms = {run.arm for run in EXPERIMENTS[name].runs}
    first, *_ = [arm for arm in sorted(arms) if arm.startswith("rollout")]
    second = first.replace("rollout", "snapshot_old")
    runs = [
        {"arm": arm, "avg@4": success, "samples_per_hour": "9"}
        for arm, success in ((first, "0.5"), (first, "0.75"), (second, "1"))
    ]
    drawn_lines = {t.name: t for t in lines(runs, []).data if t.name and t.xaxis == "x"}
    assert [*drawn_lines["rollout"].y] == [0.625]
    assert [*drawn_lines["snapshot_old"].y] == [1.0]
    assert drawn_lines["rollout"].x[0] == first.split()[-1]


def test_each_threshold_is_drawn_with_the_other_one_fixed():
    def run(eps_ti, eps_stale, success, source="snapshot_old"):
        arm = f"{source}: eps_ti {eps_ti}, eps_stale {eps_stale}"
        return {"arm": arm, "avg@4": str(success)}

    runs = [
        run(100, 1.2, 0.9),
        run(1.02, 1.2, 0.5),
        run(1.02, 1.2, 0.7),
        run(1.05, 1.2, 0.8),
        run(1.05, 1.5, 0.4),
        run(1.05, 1.2, 0.3, "ppo_ewma_async"),
        {"arm": "snapshot_old: turn level", "avg@4": "0.1"},
    ]
    assert {*figures_of("thresholds")} == {"lines", "ends", "curves"}
    drawn_lines = {
        (t.name, t.xaxis): (list(t.x), list(t.y))
        for t in thresholds(runs, []).data
        if t.name
    }
    assert drawn_lines == {
        ("snapshot_old", "x"): (
            ["1.02", "1.05", "100"],
            pytest.approx([0.6, 0.8, 0.9]),
        ),
        ("ppo_ewma_async", "x"): (["1.05"], [0.3]),
        ("snapshot_old", "x2"): (["1.2", "1.5"], [0.8, 0.4]),
        ("ppo_ewma_async", "x2"): (["1.2"], [0.3]),
    }


def test_the_cost_of_a_source_leaves_out_the_first_update():
    updates = [
        {
            "name": "snapshot_old/retail/0",
            "update": str(number),
            "old_logprob_seconds": seconds,
            "snapshot_bytes": 2**20 * 3,
        }
        for number, seconds in ((1, 9.0), (2, 0.5), (3, 1.5))
    ]
    text = cost_table([names(Run("snapshot_old", "retail", 0, {}))], updates)
    assert "| snapshot_old | 1 | 3 |" in text


def test_an_interval_holds_the_mean_of_most_samples():
    import numpy as np

    rng = np.random.default_rng(0)
    inside = 0
    for sample in rng.normal(3.0, 1.0, (200, 20)):
        interval = bootstrap(sample.tolist())
        inside += interval.low <= 3.0 <= interval.high
    assert 0.87 * 200 <= inside <= 0.99 * 200
    assert str(bootstrap([1.0] * 5 + [2.0] * 5)).startswith("1.500 [1.")
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_few_pairs_are_no_verdict():
    few = bootstrap([0.1, 0.2, 0.3, 0.4])
    assert few.excludes_zero is None and str(few) == "0.250 (0.100 to 0.400)"
    assert bootstrap([0.1, 0.2, 0.3, 0.4, 0.5]).excludes_zero is True
    assert bootstrap([-0.2, 0.1, 0.2, -0.1, 0.1]).excludes_zero is False
    assert str(bootstrap([0.5])) == "0.500"


@pytest.mark.parametrize(
    "rows_of, column, stratum, shown",
    [
        (lags, "lag", "lag_3_4", "3 to 4"),
        (lags, "lag", "lag_9_plus", "9 or more"),
        (entropies, "entropy", "entropy_1e-1", "1e-1"),
    ],
)
def test_figures_of_a_stratum_are_means_over_its_tokens(
    rows_of, column, stratum, shown
):
    def update(share, value, kept=1.0, clipped=0.0):
        figures = {
            "token_share": share,
            "discrepancy_log_ratio_abs_mean": value,
            "staleness_log_ratio_abs_mean": 10 * value,
            "discrepancy_log_ratio_square_mean": value**2,
            "staleness_log_ratio_square_mean": 100 * value**2,
            "train_infer_mask": kept,
            "ppo_clip_fraction": clipped,
        }
        return {f"{stratum}/{key}": figure for key, figure in figures.items()}

    (row,) = rows_of([update(0.75, 1.0), update(0.25, 5.0, 0.5, 0.35), {}])
    assert row["share"] == pytest.approx(1 / 3) and row["log_r_d"] == pytest.approx(2.0)
    assert row["log_r_s"] == pytest.approx(20.0)
    assert row["log_r_d_square"] == pytest.approx(0.75 * 1 + 0.25 * 25)
    # The clip is a share of what is kept: 0.125 of 0.875.
    assert row["clipped"] == pytest.approx(0.35 * 0.125 / 0.875)
    table = strata_table([{**row, "name": "hard/airline/0"}], column)
    assert f"| hard | {shown} | 0.333 | 2 | 2.65 | 20 | 26.5 | 0.875 | 0.05 |" in table


def test_errors_of_compared_sources_leave_out_what_is_no_number():
    key = "compare/rollout/log_ratio_abs_error_mean"
    updates = [
        {key: float("nan")},
        {key: 1.0},
        {key: 2.0, "compare/rollout/seconds": 1},
    ]
    assert compared(updates) == {"error_rollout": 1.5}
    assert compared(updates[:1]) == {}


def test_the_page_has_a_place_for_each_experiment():
    page = (DOCS / "evidence.md").read_text("utf-8")
    new = replace_drawn(page, dict.fromkeys(EXPERIMENTS, "NEW"))
    assert new.count("NEW") == len(EXPERIMENTS)
    assert new.startswith(page[: page.index("<!--")])
    with pytest.raises(ValueError, match="nothing: drawn"):
        replace_drawn(page, {"nothing": ""})
