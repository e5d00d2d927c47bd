"""Sources on a tiny policy whose weights differ visibly between versions."""

import copy
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.batch import columns
from rllib_llm_async.core import snapshots
from rllib_llm_async.core.snapshots import MissingSnapshotError
from rllib_llm_async.old_logprobs import (
    OldLogprobSource,
    SourceComparison,
    SourceSettings,
    SourcesInUse,
    base,
    make_source,
    register_source,
    source_names,
)


class Trainer:
    """log pi = w * position; counts the tokens of every pass."""

    def __init__(self):
        self.weights = {"w": torch.tensor(0.0)}
        self.tokens_passed = 0

    def forward(self, batch, parameters):
        self.tokens_passed += int((batch[columns.SEQUENCE_IDS] >= 0).sum())
        w = (self.weights if parameters is None else parameters)["w"]
        return w * batch[columns.POSITION_IDS].float()

    def advance(self, source, version):
        self.weights = {"w": torch.tensor(float(version))}
        source.on_publish(version, self.weights)


def settings(**changes):
    return SourceSettings(
        **{
            "eps_ti": 1.1,
            "prox_alpha": 0.5,
            "ewma_decay": "auto",
            "ewma_reset_threshold": 0.9,
            "max_staleness": 3,
            **changes,
        }
    )


def make_batch():
    versions = torch.tensor([[-1, 1, 1, 2], [-1, 3, 3, 3], [-1, 2, 3, 3]])
    positions = torch.arange(4).repeat(3, 1)
    return {
        columns.TOKENS: torch.zeros(3, 4, dtype=torch.int64),
        columns.POSITION_IDS: positions,
        columns.VERSIONS: versions,
        columns.LOSS_MASK: versions >= 0,
        columns.SEQUENCE_IDS: torch.arange(3)[:, None].repeat(1, 4),
        columns.BEHAVIOR_LOGP: torch.full((3, 4), -1.0),
    }


def run(name, up_to=3, **changes):
    source, trainer = make_source(name, settings(**changes)), Trainer()
    source.on_publish(0, trainer.weights)
    for version in range(1, up_to + 1):
        trainer.advance(source, version)
    return source, trainer


def test_files_of_snapshots_lie_in_a_folder_that_goes_with_the_process():
    source, trainer = run("snapshot_old", snapshot_memory_bytes=0)
    folder = Path(source._folder.name)
    assert folder.name.startswith("rllib_llm_async_snapshots_pid")
    assert sorted(path.stem for path in folder.iterdir()) == ["0", "1", "2"]
    batch = make_batch()
    old = source.old_logp(batch, trainer.forward, 3)
    in_memory, _ = run("snapshot_old")
    assert torch.equal(old, in_memory.old_logp(batch, trainer.forward, 3))
    del source
    assert not folder.exists()


def test_snapshot_old_walks_through_the_versions_once(monkeypatch):
    """Not from the newest to each of them: 1 + 2 + 3 differences."""
    applied, real = [], snapshots.apply_delta_
    monkeypatch.setattr(
        snapshots, "apply_delta_", lambda *a: (applied.append(1), real(*a))
    )
    source, trainer = make_source("snapshot_old", settings()), Trainer()
    table = torch.zeros(1000)
    for version in range(4):
        table[version] += 1
        trainer.weights = {"w": torch.tensor(float(version)), "table": table}
        source.on_publish(version, trainer.weights)
    batch = make_batch()
    batch[columns.VERSIONS][1] -= 3
    passes = []

    def forward(rows, parameters):
        of_version = trainer.weights if parameters is None else parameters
        passes.append(int(of_version["w"]))
        assert of_version["table"].sum() == 1 + passes[-1]
        return trainer.forward(rows, parameters)

    old = source.old_logp(batch, forward, 3)
    mask = batch[columns.LOSS_MASK]
    expected = batch[columns.VERSIONS] * batch[columns.POSITION_IDS]
    assert torch.equal(old[mask], expected[mask].float())
    assert passes == [2, 1, 0, 3] and len(applied) == 3


def test_snapshot_old_scores_every_token_under_its_own_version():
    source, trainer = run("snapshot_old")
    batch = make_batch()
    old = source.old_logp(batch, trainer.forward, 3)
    mask = batch[columns.LOSS_MASK]
    expected = batch[columns.VERSIONS] * batch[columns.POSITION_IDS]
    assert torch.equal(old[mask], expected[mask].float())
    # Up to the last token of version 1: 3 tokens; of 2: 4 + 2; of 3: 4 + 4.
    assert trainer.tokens_passed == 17


def test_snapshot_old_names_the_version_that_is_gone():
    source, trainer = run("snapshot_old", up_to=5)  # bound 3: versions 0, 1 are evicted
    with pytest.raises(MissingSnapshotError, match="version 1; held: "):
        source.old_logp(make_batch(), trainer.forward, 5)


def restored(state):
    source = make_source("snapshot_old", settings())
    source.set_state(state)
    return source


def test_snapshot_old_marks_what_was_sampled_before_it_was_in_use():
    """Also after one more restart; what it has had and lost is an error still."""
    trainer = Trainer()
    late = make_source("snapshot_old", settings())
    for version in (2, 3):
        trainer.advance(late, version)
    batch = make_batch()
    for source in (late, restored(late.get_state())):
        old = source.old_logp(batch, trainer.forward, 3)
        assert torch.equal(old.isnan(), batch[columns.VERSIONS] == 1)
        source.store.evict_before(3)
        with pytest.raises(MissingSnapshotError, match="version 2; held: "):
            source.old_logp(batch, trainer.forward, 3)


def test_a_state_without_a_snapshot_that_it_should_have_is_an_error():
    source, trainer = run("snapshot_old")
    source.store.evict_before(2)
    with pytest.raises(MissingSnapshotError, match="version 1; held: "):
        restored(source.get_state()).old_logp(make_batch(), trainer.forward, 3)


def test_a_state_of_before_it_told_its_first_version_is_read():
    source, trainer = run("snapshot_old")
    state = source.get_state()
    del state["first_version"]
    assert torch.equal(
        restored(state).old_logp(make_batch(), trainer.forward, 3),
        source.old_logp(make_batch(), trainer.forward, 3),
    )


def test_episodes_that_were_not_scored_have_no_old_logit():
    source, trainer = run("old_logit_model")
    batch = make_batch()
    assert source.old_logp(batch, trainer.forward, 3).isnan().all()
    scored = torch.rand(3, 4)
    batch[columns.SCORED_OLD_LOGP] = scored
    assert source.old_logp(batch, trainer.forward, 3) is scored


def test_snapshot_old_marks_what_is_lost_if_it_may_be_dropped():
    source, trainer = run("snapshot_old", up_to=5, missing_snapshot="drop")
    batch = make_batch()
    old = source.old_logp(batch, trainer.forward, 5)
    versions = batch[columns.VERSIONS]
    assert torch.equal(old.isnan(), versions == 1)  # 0 and 1 are evicted
    kept = versions >= 2
    expected = (versions * batch[columns.POSITION_IDS])[kept].float()
    assert torch.equal(old[kept], expected)


def test_snapshots_beyond_the_memory_limit_are_exact_all_the_same():
    limited, trainer = run("snapshot_old", snapshot_memory_bytes=0)
    unlimited, _ = run("snapshot_old")
    batch = make_batch()
    assert limited.metrics()["snapshot_bytes_on_disk"] > 0
    assert torch.equal(
        limited.old_logp(batch, trainer.forward, 3),
        unlimited.old_logp(batch, trainer.forward, 3),
    )


def test_decay_zero_equals_current_recompute():
    ewma, trainer = run("ewma_prox", ewma_decay=0.0)
    current, _ = run("current_recompute")
    batch = make_batch()
    assert torch.equal(
        ewma.old_logp(batch, trainer.forward, 3),
        current.old_logp(batch, trainer.forward, 3),
    )


def test_rollout_returns_what_the_engine_said():
    source, trainer = run("rollout")
    batch = make_batch()
    assert source.old_logp(batch, trainer.forward, 3) is batch[columns.BEHAVIOR_LOGP]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, "staleness"])
def test_a_loglinear_proxy_puts_two_bounds_on_the_one_total_ratio(alpha):
    source, trainer = run("interp_prox_loglinear", prox_alpha=alpha)
    batch = make_batch()
    current = trainer.forward(batch, None)
    old = source.old_logp(batch, trainer.forward, 3)
    mask, behavior = batch[columns.LOSS_MASK], batch[columns.BEHAVIOR_LOGP]
    lag = (3 - batch[columns.VERSIONS])[mask].double()
    weight = torch.where(lag > 0, 1 / lag, 0.0) if alpha == "staleness" else alpha
    log_r = (current - behavior)[mask].double()
    close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)
    close((old - behavior)[mask].double(), (1 - weight) * log_r)
    close((current - old)[mask].double(), weight * log_r)


def test_a_linear_proxy_mixes_probabilities():
    source, trainer = run("linear_prox", prox_alpha=0.25)
    batch = make_batch()
    mask, behavior = batch[columns.LOSS_MASK], batch[columns.BEHAVIOR_LOGP]
    current = trainer.forward(batch, None) - 10.0
    old = source.at_step(batch, current, 3)
    expected = 0.25 * behavior.double().exp() + 0.75 * current.double().exp()
    torch.testing.assert_close(old[mask].double().exp(), expected[mask])


def test_ppo_ewma_async_takes_its_decay_from_the_window_and_resets_once():
    source, trainer = run("ppo_ewma_async")
    source.observe(mask_share=0.95, staleness_width=2.0)
    trainer.advance(source, 4)
    # beta = 2 / (2 + 2); the centre beta / (1 - beta) = 1 version back
    assert source.metrics() == {
        "ewma_decay": 0.5,
        "ewma_num_resets": 0,
        "ewma_resets_in_a_row": 0,
    }
    average = source.ewma.parameters["w"].item()
    assert source.old_logp(make_batch(), trainer.forward, 4)[0, 1].item() == average
    source.observe(mask_share=0.5, staleness_width=2.0)
    # Due, and no version came: the average is not used any more, and still there.
    assert source.old_logp(make_batch(), trainer.forward, 4)[0, 1].item() == 4.0
    assert source.ewma.parameters["w"].item() == average
    trainer.advance(source, 5)
    assert source.ewma.parameters["w"].item() == 5.0 and source.ewma.total_weight == 1.0
    source.observe(mask_share=0.95, staleness_width=2.0)
    trainer.advance(source, 6)
    # W = 0.5 * 1 + 1, mean = 5 + (6 - 5) / 1.5
    assert source.ewma.parameters["w"].item() == pytest.approx(5 + 2 / 3)
    assert source.metrics()["ewma_num_resets"] == 1


def test_one_fresh_batch_does_not_wipe_the_history():
    source, trainer = run("ppo_ewma_async")
    for width in (2.0, 2.0, 0.0):
        source.observe(mask_share=1.0, staleness_width=width)
    trainer.advance(source, 4)
    assert source.ewma.decay == 0.5 and source.ewma.total_weight > 1
    # Nor does the widest batch for ever: 8 updates later the window is what came since.
    for _ in range(8):
        source.observe(mask_share=1.0, staleness_width=1.0)
    trainer.advance(source, 5)
    assert source.ewma.decay == pytest.approx(1 / 3)


def test_a_reset_at_every_version_is_called_what_it_is():
    source, trainer = run("ppo_ewma_async")
    said = []
    for version in range(4, 8):
        source.observe(mask_share=0.1, staleness_width=2.0)
        trainer.advance(source, version)
        said += [*type(source).result_warnings(settings(), source.metrics())]
    assert len(said) == 2 and "current_recompute in disguise: 3 resets" in said[0]
    source.observe(mask_share=0.95, staleness_width=2.0)
    trainer.advance(source, 8)
    assert not [*type(source).result_warnings(settings(), source.metrics())]


@pytest.mark.parametrize("name", ["ewma_prox", "ppo_ewma_async", "snapshot_old"])
def test_a_state_is_a_copy_in_host_memory_and_as_small_as_what_is_held(name):
    source, trainer = run(name)
    state = source.get_state()
    before = copy.deepcopy(state)
    trainer.advance(source, 4)

    def same(a, b):
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        if isinstance(a, tuple):
            return all(same(x, y) for x, y in zip(a, b, strict=True))
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    assert same(state, before)


# What an episode's scores depend on is forgotten, like the episodes, on a restore.
@pytest.mark.parametrize(
    "name", sorted({*source_names()} - {"old_logit_model", "interrupt_sync"})
)
def test_state_survives_a_round_trip(name):
    source, trainer = run(name)
    batch = make_batch()
    source.old_logp(batch, trainer.forward, 3)
    source.observe(mask_share=0.5, staleness_width=1.0)
    restored = make_source(name, settings())
    restored.set_state(source.get_state())
    assert torch.equal(
        source.old_logp(batch, trainer.forward, 3),
        restored.old_logp(batch, trainer.forward, 3),
    )
    trainer.advance(source, 4)
    restored.on_publish(4, trainer.weights)
    assert source.metrics() == restored.metrics()


def test_interrupt_sync_joins_scores_of_several_interruptions():
    source, trainer = run("interrupt_sync", up_to=0)
    batch = make_batch()
    keys = torch.tensor([11, 12, 13])[:, None].repeat(1, 4)
    batch[columns.EPISODE_KEYS] = keys
    versions, positions = batch[columns.VERSIONS], batch[columns.POSITION_IDS]
    for version in range(4):
        if version:
            trainer.advance(source, version)
        if version == 3:
            break  # what is sampled under 3 is still current
        assert source.outgoing["w"] == version
        scores = {}
        for row in range(3):
            own = versions[row] == version
            if own.any():
                logp = (version * positions[row, own]).float().numpy()
                scores[int(keys[row, 0])] = (positions[row, own].numpy(), logp)
        source.add_scores(version, scores)
    old = source.old_logp(batch, trainer.forward, 3)
    mask = batch[columns.LOSS_MASK]
    assert torch.equal(old[mask], (versions * positions)[mask].float())

    # A score that never came is missing, not replaced.
    batch[columns.EPISODE_KEYS][2] = 99
    old = source.old_logp(batch, trainer.forward, 3)
    assert old[2].isnan().tolist() == [False, True, False, False]
    # Episodes that are not scored any more are forgotten.
    for version in range(4, 9):
        trainer.advance(source, version)
    assert source.nbytes == 4


def run_auto(behavior_error, **changes):
    """Auto after one measurement; how far mu_old lies from pi_old decides."""
    source, trainer = run("auto", **changes)
    source.agree({**source.counts(), "stale_tokens": 1.0})
    batch = {
        key: column.repeat(8, *[1] * (column.dim() - 1))
        for key, column in make_batch().items()
    }
    batch[columns.SEQUENCE_IDS] = torch.arange(24)[:, None].repeat(1, 4)
    exact = (batch[columns.VERSIONS] * batch[columns.POSITION_IDS]).float()
    batch[columns.BEHAVIOR_LOGP] = exact + behavior_error
    source.old_logp(batch, trainer.forward, 3)
    source.agree(source.counts())
    return source, source.old_logp(batch, trainer.forward, 3), exact, batch


def test_auto_takes_the_exact_source_where_the_proxy_masks_other_tokens():
    source, old, exact, batch = run_auto(behavior_error=0.0)
    metrics = source.metrics()
    assert metrics["auto_uses_exact"] == 1 and metrics["auto_num_switches"] == 1
    assert metrics["auto_mask_disagreement"] > 0.3
    assert "the proxy's mask differs on" in metrics["auto_reason"]
    mask = batch[columns.LOSS_MASK]
    assert torch.equal(old[mask], exact[mask])


def test_auto_measures_the_mask_that_the_loss_has():
    """The proxy's log r_d: 2, 4, 3 in one sequence, 0, 0, 0 and 1, 0, 0 in others."""
    for level, differing in (("token", 4), ("sequence", 3)):
        source, *_ = run_auto(
            behavior_error=0.0, eps_ti=math.exp(0.5), mask_level=level
        )
        assert source.metrics()["auto_mask_disagreement"] == pytest.approx(
            differing / 9
        )


def test_a_compared_source_without_its_snapshots_does_not_end_the_run():
    """As after a resume with another `compare_sources`; what is known is compared."""
    main, trainer = run("current_recompute")
    comparison = SourceComparison(main, ["snapshot_old"], settings())
    comparison.shadows["snapshot_old"].on_publish(3, trainer.weights)
    batch = make_batch()
    old_logp = main.old_logp(batch, trainer.forward, 3)
    measured = comparison.measure(batch, trainer.forward, 3, old_logp)
    assert measured["compare/current_recompute/log_ratio_abs_error_mean"] == 0.0
    with pytest.raises(MissingSnapshotError):
        comparison.shadows["snapshot_old"].store.get(2)


def test_auto_keeps_the_proxy_where_both_mask_the_same_and_exact_costs_more():
    # So far off that every token is masked, whoever computes pi_old.
    source, old, exact, batch = run_auto(behavior_error=100.0)
    metrics = source.metrics()
    assert metrics["auto_uses_exact"] == 0 == metrics["auto_mask_disagreement"]
    assert metrics["auto_cost_ratio"] > 1.1
    assert metrics["auto_reason"].startswith("proxy: ")
    mask = batch[columns.LOSS_MASK]
    assert not torch.equal(old[mask], exact[mask])


def agreed(source, **totals):
    source.agree({**source.counts(), **totals})


def test_auto_measures_at_intervals_and_only_where_tokens_are_stale():
    source, trainer = run("auto")
    batch, measured = make_batch(), []
    for update in range(20):
        source.old_logp(batch, trainer.forward, 3)
        measured += [update] * bool(source.counts()["measured_tokens"])
        agreed(source, **({"stale_tokens": 0.0} if update < 2 else {}))
    # Fresh up to 1; seen to be stale at 2, measured at 3 and 8 stale updates later.
    assert measured == [3, 12]


def test_auto_decides_by_the_totals_of_all_learners_and_needs_half_to_come_back():
    source, _ = run("auto")
    measured = {"stale_tokens": 1.0, "measured_tokens": 1000.0}
    costs = {
        "exact_forward_tokens": 3.0,
        "proxy_forward_tokens": 1.0,
        "exact_bytes": 1.0,
        "proxy_bytes": 1.0,
    }
    used = []
    for differing in (9.0, 11.0, 6.0, 4.0):  # of 1000; 1 % brings exact, 0.5 % proxy
        agreed(source, **measured, **costs, differing_tokens=differing)
        used.append(source.uses_exact)
    assert used == [False, True, True, False]
    assert source.metrics()["auto_num_switches"] == 2
    for cheap, is_free in (
        ({"exact_forward_tokens": 1.0}, True),
        ({"exact_forward_tokens": 1.0, "exact_bytes": 2.0}, False),
        ({"exact_forward_tokens": 1.2}, False),
    ):
        agreed(source, **{**measured, **costs, **cheap}, differing_tokens=0.0)
        assert source.uses_exact == is_free, cheap


def test_autos_decision_survives_a_restore():
    source, trainer = run("auto")
    agreed(
        source,
        stale_tokens=1.0,
        measured_tokens=10.0,
        differing_tokens=5.0,
        proxy_forward_tokens=1.0,
    )
    assert source.uses_exact
    restored, _ = run("auto")
    restored.set_state(source.get_state())
    assert restored.uses_exact and restored.metrics() == source.metrics()
    batch = make_batch()
    for _ in range(7):
        for one in (source, restored):
            agreed(one, stale_tokens=1.0)
            one.old_logp(batch, trainer.forward, 3)
        assert source.counts() == restored.counts()


def test_unknown_source_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"did you mean 'snapshot_old'.*rollout"):
        make_source("snapshot", settings())


def test_one_of_ones_own_is_known_to_the_actors_of_a_job(ray_cluster, monkeypatch):
    """Whole, with what its module defines after it."""
    import ray

    monkeypatch.setattr(base, "_SOURCES", {**base._SOURCES})

    @register_source
    class Halved(OldLogprobSource):
        name = "halbiert_für_uns"

        def old_logp(self, batch, forward, version):
            return halved(forward(batch, None))

    def halved(logp):
        return logp / 2

    config = AsyncDecoupledPPOConfig().environment("mini_tau2")
    config.training(old_logprob_source=Halved.name)
    config.validate()

    @ray.remote
    def scored(config, batch):
        config.validate()
        sources = SourcesInUse(
            config.old_logprob_source, [], SourceSettings.from_config(config)
        )
        return sources.main.old_logp(batch, lambda batch, _: batch["logp"], 0)

    logp = torch.tensor([[-1.0, -3.0]])
    assert ray.get(scored.remote(config, {"logp": logp})).tolist() == [[-0.5, -1.5]]


def test_scores_of_turns_without_tokens_are_empty():
    from rllib_llm_async.old_logprobs.old_logit_actor import _split_by_turn

    parts = _split_by_turn(np.array([1.0, 2.0, 3.0]), np.array([2, 0, 0]), 4)
    assert [part.tolist() for part in parts] == [[2.0, 3.0], [], [1.0], []]
