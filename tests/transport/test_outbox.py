"""A learner's versions in shared memory: how many, and which one is visible."""

import pytest
import torch
from safetensors.torch import load_file

from rllib_llm_async.transport.outbox import MAX_DIFFERENCES, READ_FROM_AFAR, Outbox
from rllib_llm_async.transport.shipment import SupersededError
from rllib_llm_async.transport.weight_file import held
from tests.transport.conftest import expect_equal


def test_one_file_is_written_over_while_all_engines_are_here(learner):
    for serial in range(1, 6):
        learner.step()
        shipment = learner.publish(serial)
        assert shipment.differences == ()
        with held(shipment.path) as path:
            expect_equal(path, learner.truth[serial])
        assert len(learner.files()) == 1


def test_what_is_no_matrix_arrives_unrounded(shared_memory):
    """Routing biases: of 128 experts some are chosen otherwise by rounded ones."""
    weights = {
        "gate.weight": torch.randn(8, 16),
        "gate.e_score_correction_bias": 4 + 0.01 * torch.randn(8),
        "moe_statics.e_score_correction_bias": 4 + 0.01 * torch.randn(1, 8),
        "scalar": torch.randn(()),
    }
    outbox = Outbox(torch.bfloat16, "learner")
    for serial in (1, 2):
        weights = {name: tensor + 1e-3 for name, tensor in weights.items()}
        outbox.stage(weights.items)
        shipment = outbox.show(serial)
        with held(shipment.path) as path:
            loaded = load_file(path)
        for name, tensor in weights.items():
            expected = tensor.bfloat16() if name == "gate.weight" else tensor
            assert torch.equal(loaded[name], expected), name
    outbox.close()


def test_a_version_that_is_being_read_stays_as_it_is(learner):
    first = learner.publish(1)
    with held(first.path) as path:
        learner.step()
        second = learner.publish(2)
        expect_equal(path, learner.truth[1])
        with held(second.path) as newer:
            expect_equal(newer, learner.truth[2])
    learner.publish(3)
    assert len(learner.files()) == 1
    for path in (first.path, second.path):
        with pytest.raises(SupersededError), held(path):
            pass


def test_a_version_that_was_not_shown_gives_way_to_the_next(learner):
    learner.publish(1)
    learner.step()
    learner.stage()  # version 2
    learner.step()
    shipment = learner.publish(3)
    assert len(learner.files()) == 1
    with held(shipment.path) as path:
        expect_equal(path, learner.truth[3])


def test_what_is_given_up_on_its_way_is_not_visible(learner):
    learner.publish(1)
    learner.step()
    learner.stage()

    def give_up():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.outbox.show(2, give_up)
    names = {path.name for path in learner.files()}
    assert len(names) == 1 and names.pop().startswith("unfinished_")
    shipment = learner.publish(3)
    with held(shipment.path) as path:
        expect_equal(path, learner.truth[3])


def test_differences_from_all_recent_versions_once_another_node_reads(learner):
    first = learner.publish(1)
    (learner.outbox._directory / READ_FROM_AFAR).touch()
    for serial in range(2, 8):
        learner.step()
        shipment = learner.publish(serial)
        assert len(learner.files()) == 2
    steps = [(d.since, d.serial) for d in shipment.differences]
    assert steps == [(n, n + 1) for n in range(steps[0][0], 7)]
    assert sum(d.nbytes for d in shipment.differences) <= first.nbytes * MAX_DIFFERENCES
    assert shipment.since(6) == shipment.differences[-1:]
    assert shipment.since(7) is shipment.since(100) is None
    learner.step(size=1.0)
    assert learner.publish(8).differences == ()
    learner.step()
    (only,) = learner.publish(9).differences
    assert (only.since, only.serial) == (8, 9)


def test_close_leaves_nothing(learner, shared_memory):
    learner.publish(1)
    learner.outbox.close()
    assert list(shared_memory.iterdir()) == []
