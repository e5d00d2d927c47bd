"""Real engines: versions a step of 1e-6 apart arrive, or it is noticed at once."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from rllib_llm_async.engine.vllm_engine import VLLMEngine, WeightMismatchError
from rllib_llm_async.models.small_agent import small_agent_dir
from tests.engine.arrivals import Trainer

pytestmark = pytest.mark.usefixtures("real_engines")

NUM_GOOD_VERSIONS = 20
HEAD = "model.embed_tokens.weight"  # tied
DOWN = "model.layers.1.mlp.down_proj.weight"


class Arrivals:
    """An engine on a loop of its own, and the trainer that feeds it."""

    def __init__(self, directory, dtype):
        self.trainer = Trainer(directory, dtype)
        self.engine = VLLMEngine(
            str(small_agent_dir()),
            {
                "dtype": dtype,
                "max_model_len": 512,
                "max_num_seqs": 16,
                "kv_cache_memory_bytes": 64 << 20,
                "block_size": 32,
            },
            temperature=0.7,
            max_response_tokens=200,
            stop_token_ids=[],
            seed=0,
        )
        self.trainer.policy.temperature = 0.7
        self._runner = asyncio.Runner()
        self.run(self.engine.start())

    def run(self, coroutine):
        return self._runner.run(coroutine)

    def in_worker(self, function):
        self.run(self.engine._llm.collective_rpc(function))

    def install_next(self, **kwargs):
        """Steps, sends, installs."""
        self.trainer.step()
        self.run(self.engine.install(*self.trainer.send(**kwargs)))

    def expect_mismatch(self, message, arguments=None, **kwargs):
        """A version that does not arrive; the next one has to, again."""
        mismatches = self.engine.num_weight_mismatches
        with pytest.raises(WeightMismatchError, match=message):
            if arguments:
                self.run(self.engine.install(*arguments))
            else:
                self.install_next(**kwargs)
        assert self.engine.num_weight_mismatches == mismatches + 2

    def close(self):
        self.engine.shutdown()
        self._runner.close()


# float32 arrives in test_engine.py, too.
@pytest.fixture(
    scope="module",
    params=[
        "bfloat16",
        pytest.param("float32", marks=pytest.mark.slow),
        pytest.param("float16", marks=pytest.mark.slow),
    ],
)
def arrivals(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # Faults are functions that go into the worker by pickle.
        patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
        arrivals = Arrivals(tmp_path_factory.mktemp("versions"), request.param)
        yield arrivals
        arrivals.close()


def test_good_versions_raise_no_alarm(arrivals, caplog):
    engine = arrivals.engine
    arrivals.run(engine.install(*arrivals.trainer.send()))
    for _ in range(NUM_GOOD_VERSIONS):
        arrivals.install_next()
    assert engine.version == arrivals.trainer.version
    assert engine.num_weight_mismatches == 0
    assert len(engine.probe_errors) == NUM_GOOD_VERSIONS + 1
    assert not caplog.records  # all parameters are compared
    floor, ceiling = {
        "float32": (0, 1e-5),
        "bfloat16": (1e-3, 0.1),
        "float16": (1e-4, 0.02),
    }[arrivals.trainer.dtype]
    assert floor < np.max(engine.probe_errors) < ceiling


@pytest.mark.parametrize("left_out", [HEAD, DOWN])
def test_a_tensor_that_was_left_out(arrivals, left_out):
    arrivals.install_next()
    last = arrivals.trainer.version
    arrivals.expect_mismatch(
        f"version {last + 1} did not arrive: 1 of 34 parameters .* "
        rf"still those of version {last} \({left_out}\)",
        leave_out=[left_out],
    )
    arrivals.install_next()


def test_the_file_of_the_version_before(arrivals):
    arrivals.install_next()
    last, old_path, _ = arrivals.trainer.send()
    arrivals.trainer.step()
    version, _, expected = arrivals.trainer.send()
    arrivals.expect_mismatch(
        f"other bits than the trainer's, which are still those of version {last} ",
        (version, old_path, expected),
    )
    arrivals.install_next()


def test_a_transfer_that_does_nothing(arrivals):
    def skip(worker):
        worker.weight_transfer_engine.receive_weights = lambda update_info: None

    def skip_no_more(worker):
        del worker.weight_transfer_engine.receive_weights

    arrivals.install_next()
    last = arrivals.trainer.version
    arrivals.in_worker(skip)
    arrivals.expect_mismatch(f"are still those of version {last} ")
    arrivals.in_worker(skip_no_more)
    arrivals.install_next()


def test_a_head_that_computes_with_a_packed_copy(arrivals):
    def pack(worker):
        import torch

        head = worker.get_model().lm_head
        packed = head.weight.clone()
        head.cpu_linear = lambda x, weight, bias: torch.nn.functional.linear(
            x, packed, bias
        )

    def unpack(worker):
        import torch

        worker.get_model().lm_head.cpu_linear = torch.nn.functional.linear

    arrivals.install_next()
    arrivals.in_worker(pack)
    arrivals.expect_mismatch("compute with something else .*: lm_head")
    arrivals.in_worker(unpack)
    arrivals.install_next()


def test_wrong_probabilities_whatever_the_cause(arrivals):
    arrivals.trainer.step()
    version, path, expected = arrivals.trainer.send()
    shifted = replace(expected, probe_logp=expected.probe_logp - 0.6)
    arrivals.expect_mismatch("differ by 0.[56].* nats", (version, path, shifted))
    arrivals.install_next()
