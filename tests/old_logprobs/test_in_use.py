"""Sources in use: what each hears, counts and keeps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rllib_llm_async.batch import columns
from rllib_llm_async.old_logprobs import SourceComparison, SourceSettings
from rllib_llm_async.old_logprobs import comparison as module
from rllib_llm_async.old_logprobs.in_use import SourcesInUse
from tests.old_logprobs.test_sources import Trainer, make_batch, run, settings


def test_scores_are_kept_for_as_long_as_their_tokens_may_be_trained_on():
    """Of an episode that ended under version 1, and of one that went on under 2."""
    source, trainer = run("interrupt_sync", up_to=1)
    score = np.array([1]), np.array([-0.5], np.float32)
    source.add_scores(1, {11: score, 12: score})
    trainer.advance(source, 2)
    source.add_scores(2, {12: (np.array([2]), np.array([-0.25], np.float32))})
    for version in (3, 4):  # bound 3: an update at 4 takes tokens of version 1
        trainer.advance(source, version)
    found = source._look_up(np.array([11, 12, 12]), np.array([1, 1, 2]))
    assert found.tolist() == [-0.5, -0.5, -0.25]
    for version in (5, 6):
        trainer.advance(source, version)
    found = source._look_up(np.array([11, 12, 12]), np.array([1, 1, 2]))
    assert np.isnan(found).tolist() == [True, False, False]
    trainer.advance(source, 7)
    assert source.nbytes == 4


def test_autos_proxy_hears_of_the_mask_that_it_made():
    """Whatever the next update is to have: that has been decided by then."""
    source, trainer = run("auto")
    heard = []
    source.proxy.observe = lambda **kwargs: heard.append(kwargs)
    for used, decided in ((False, True), (True, False)):
        source.uses_exact = used
        source.old_logp(make_batch(), trainer.forward, 3)
        source.uses_exact = decided
        source.observe(mask_share=0.5, staleness_width=2.0)
        assert type(source).was_exact(source.metrics()) == used
    assert heard == [
        {"mask_share": 0.5, "staleness_width": 2.0},
        {"mask_share": 1.0, "staleness_width": 2.0},
    ]


def measured(**changes):
    """`auto` as it measures, on rows of which every eighth counts, with padding."""
    source, trainer = run("auto", **changes)
    source._updates_to_check = 0
    batch = {key: column.repeat(8, 1) for key, column in make_batch().items()}
    batch[columns.SEQUENCE_IDS] = torch.arange(24)[:, None].repeat(1, 4)
    padding = {columns.SEQUENCE_IDS: -1, columns.VERSIONS: -1}
    batch = {
        key: torch.cat([c, torch.full_like(c[:, :1], padding.get(key, 0))], dim=1)
        for key, c in batch.items()
    }
    source.old_logp(batch, trainer.forward, 3)
    return source


def test_what_auto_counts_is_what_either_source_costs_on_its_sample():
    counts = measured().counts()
    # Three of 24 rows, each of the three kinds: 9 agent tokens among 12. The versions
    # take 3 + (4 + 3) + (4 + 4) tokens, less what comes after the last of each.
    assert counts["measured_tokens"] == 9 and counts["stale_tokens"] == 8 * 4
    assert counts["exact_forward_tokens"] == 17
    assert counts["proxy_forward_tokens"] == 12
    assert (counts["exact_bytes"], counts["proxy_bytes"]) == (4 * 4, 4)


def test_auto_does_not_measure_where_the_exact_reading_is_lost():
    source, trainer = run("auto", up_to=5, missing_snapshot="drop")
    source._updates_to_check = 0
    batch = make_batch()
    source.old_logp(batch, trainer.forward, 5)
    # The sample is the first row: versions 1, 1 and 2, of which 1 is evicted.
    assert source.counts()["measured_tokens"] == 1


def test_a_compared_source_is_measured_by_the_mask_that_the_loss_has():
    cases = ("token", 1.5, 1 / 3), ("sequence", 1.5, 1.0), ("token", 9, 1.0)
    for level, eps_ti, kept in cases:
        main, trainer = run("snapshot_old", eps_ti=eps_ti, mask_level=level)
        own = settings(eps_ti=eps_ti, mask_level=level)
        comparison = SourceComparison(main, ["current_recompute"], own)
        batch = {key: column[:1] for key, column in make_batch().items()}
        current = trainer.forward(batch, None)
        # log r_d of the current weights: 0.6, -0.6 and 0, and 0 over the sequence.
        batch[columns.BEHAVIOR_LOGP] = current - torch.tensor([[0.0, 0.6, -0.6, 0.0]])
        figures = comparison.measure(
            batch, trainer.forward, 3, main.old_logp(batch, trainer.forward, 3)
        )
        share = figures["compare/current_recompute/mask_share"]
        assert share == pytest.approx(kept)


def test_the_price_of_a_compared_source_holds_the_pass_that_it_shares(monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(module, "time", clock)
    main, trainer = run("rollout")
    compared = ["current_recompute", "snapshot_old"]
    comparison = SourceComparison(main, compared, settings())
    for shadow in comparison.shadows.values():
        for version in range(1, 4):
            trainer.advance(shadow, version)

    def forward(rows, parameters):
        clock.now += 2.0
        return trainer.forward(rows, parameters)

    batch = make_batch()
    figures = comparison.measure(batch, forward, 3, main.old_logp(batch, forward, 3))
    assert figures["compare_one_pass_seconds"] == 2.0
    assert figures["compare/current_recompute/seconds"] == 2.0  # though it made none
    assert figures["compare/snapshot_old/seconds"] == 3 * 2.0
    assert figures["compare_seconds"] == 4 * 2.0


def test_shadows_keep_their_state():
    def build():
        return SourcesInUse("rollout", ["snapshot_old", "ewma_prox"], settings())

    trainer, sources = Trainer(), build()
    for version in range(3):
        trainer.advance(sources, version)
    restored = build()
    restored.on_publish(2, trainer.weights)
    restored.set_state(sources.get_state())
    held, others = (
        s.comparison.shadows["snapshot_old"].store.versions for s in (sources, restored)
    )
    assert held == others == [0, 1, 2]


def in_use(main, *compared):
    """After versions 0 to 3, and after going on from a state at version 3."""
    trainer, sources = Trainer(), SourcesInUse(main, compared, settings())
    for source in sources:  # so that an average is one
        source.observe(mask_share=1.0, staleness_width=2.0)
    for version in range(4):
        trainer.advance(sources, version)

    def go_on(main, *compared):
        others = SourcesInUse(main, compared, settings())
        others.on_publish(3, trainer.weights)
        others.set_state(sources.get_state())
        return others

    return sources, go_on


def test_a_source_keeps_its_state_where_its_role_changes():
    sources, go_on = in_use("ewma_prox", "snapshot_old", "auto")
    held = sources.comparison.shadows["snapshot_old"].store.versions
    turned = go_on("snapshot_old", "ewma_prox")
    assert turned.main.store.versions == held == [0, 1, 2, 3]
    average = turned.comparison.shadows["ewma_prox"].ewma.parameters["w"]
    assert torch.equal(average, sources.main.ewma.parameters["w"])
    auto = go_on("auto").main
    assert auto.exact.store.versions == held and auto.proxy.ewma.total_weight > 1


def test_autos_two_sources_and_these_on_their_own_go_on_from_each_other():
    sources, go_on = in_use("auto")
    assert go_on("snapshot_old").main.store.versions == [0, 1, 2, 3]
    average = (
        go_on("rollout", "ppo_ewma_async", "snapshot_old")
        .comparison.shadows["ppo_ewma_async"]
        .ewma
    )
    assert torch.equal(average.parameters["w"], sources.main.proxy.ewma.parameters["w"])
    sources, go_on = in_use("ppo_ewma_async")
    auto = go_on("auto").main
    average = auto.proxy.ewma.parameters["w"]
    assert torch.equal(average, sources.main.ewma.parameters["w"])
    assert auto.exact.store.versions == [3]


def test_a_source_that_was_not_in_use_starts_from_the_weights_of_now():
    _, go_on = in_use("rollout")
    assert go_on("snapshot_old").main.store.versions == [3]


def test_sources_read_the_mask_s_own_level():
    names = SourceSettings.__dataclass_fields__
    config = SimpleNamespace(**dict.fromkeys(names))
    for mask_level, level in ((None, "turn"), ("sequence", "sequence")):
        config.mask_level, config.ratio_level = mask_level, "turn"
        assert SourceSettings.from_config(config).mask_level == level


def test_a_reset_that_is_due_stays_due_until_a_version_comes():
    """An update without a signal publishes none; the next one's mask is another's."""
    source, trainer = run("ppo_ewma_async")
    source.observe(mask_share=0.1, staleness_width=2.0)
    source.observe(mask_share=1.0, staleness_width=2.0)
    trainer.advance(source, 4)
    assert source.metrics()["ewma_num_resets"] == 1
    assert source.ewma.parameters["w"].item() == 4.0


def test_a_restored_window_forgets_as_the_one_before_would():
    source, trainer = run("ppo_ewma_async")
    source.observe(mask_share=1.0, staleness_width=4.0)
    restored, _ = run("ppo_ewma_async")
    restored.set_state(source.get_state())
    for _ in range(8):
        restored.observe(mask_share=1.0, staleness_width=0.0)
    trainer.advance(restored, 4)
    assert restored.ewma.decay == 0.0


def test_a_decay_that_is_not_given_lies_one_version_back():
    source, _ = run("ewma_prox")
    assert source.ewma.decay == 0.5


def test_each_source_hears_what_its_own_mask_kept():
    sources = SourcesInUse("snapshot_old", ["ppo_ewma_async", "ewma_prox"], settings())
    heard = {}
    for source in sources:
        source.observe = lambda name=source.name, **kwargs: heard.update({name: kwargs})
    compared = {
        "compare/ppo_ewma_async/mask_share": 0.25,
        "compare/ewma_prox/mask_share": 0.5,
    }
    cpu = torch.device("cpu")
    sources.see_update(1.0, compared, staleness_width=3.0, device=cpu)
    shares = {name: kwargs["mask_share"] for name, kwargs in heard.items()}
    assert shares == {"snapshot_old": 1.0, "ppo_ewma_async": 0.25, "ewma_prox": 0.5}
    assert {kwargs["staleness_width"] for kwargs in heard.values()} == {3.0}
