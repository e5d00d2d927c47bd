"""`rllib numerics`: what is measured, and how it is told."""

import asyncio

import pytest
from click.testing import CliRunner
from rich.console import Console

from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.cli import main
from rllib_llm_async.cli.example import EXAMPLES_DIR
from rllib_llm_async.cli.experiment_file import open_config
from rllib_llm_async.cli.numerics import conclusions, table
from rllib_llm_async.core.discrepancy import Discrepancy
from rllib_llm_async.env_runners import numerics

YAML = EXAMPLES_DIR / "mini_tau2_ppo_ewma_async.yaml"
FIGURES = Discrepancy(0.0113, 0.00702, 0.0489, 0.131, 4321)


def config(**training):
    return AsyncDecoupledPPOConfig().environment("mini_tau2").training(**training)


def test_one_factor_at_a_time_differs_from_float32():
    factors = numerics.factors_of(config(engine={"max_model_len": 512}))
    reference, *others, whole = factors
    assert (reference.engine, reference.compute_dtype, reference.alone) == (
        *({}, None),
        False,
    )
    for factor in others:
        changes = [bool(factor.engine), bool(factor.compute_dtype), factor.alone]
        assert sum(changes) == 1, factor
    # vLLM's default, and the learner's.
    assert (whole.engine, whole.compute_dtype) == ({"dtype": "bfloat16"}, None)


def test_the_last_factor_is_the_file():
    engine = {"dtype": "float16", "kv_cache_dtype": "fp8_e5m2", "max_num_seqs": 4}
    *others, whole = numerics.factors_of(
        config(engine=engine, compute_dtype="bfloat16")
    )
    assert whole.engine == {"dtype": "float16", "kv_cache_dtype": "fp8_e5m2"}
    assert whole.compute_dtype == "bfloat16"
    assert {"kv_cache_dtype": "fp8_e5m2"} in [factor.engine for factor in others]
    dtypes = {factor.engine.get("dtype") for factor in others}
    assert dtypes == {None, "float16"}


def test_mixtures_are_measured_with_and_without_replay(small_moe_dir):
    dense = numerics.factors_of(config())
    factors = numerics.factors_of(config(model=str(small_moe_dir)))
    assert all(factor.replay for factor in dense)
    apart = [factor for factor in factors if not factor.replay]
    assert len(factors) - len(dense) == len(apart) == 2
    for factor in apart:
        alike = [other for other in factors if other.engine == factor.engine]
        assert len(alike) == 2 and alike[0].compute_dtype == factor.compute_dtype
    assert factors[-1].replay


def test_an_engine_has_the_files_arguments_in_float32_but_for_the_changes():
    of_file = config(
        engine={"dtype": "bfloat16", "max_num_seqs": 4, "kv_cache_dtype": "fp8"},
        trust_remote_code=True,
    )
    assert numerics._engine_arguments(of_file, {}) == {
        "dtype": "float32",
        "max_num_seqs": 4,
        "trust_remote_code": True,
    }
    changed = numerics._engine_arguments(of_file, {"dtype": "float16"})
    assert changed["dtype"] == "float16"


def test_the_dtype_of_the_head_is_that_of_the_file_in_the_last_row_alone():
    overrides = {"head_dtype": "float32"}
    of_file = config(engine={"dtype": "bfloat16", "hf_overrides": overrides})
    reference, *_, whole = (
        numerics._engine_arguments(of_file, factor.engine)
        for factor in numerics.factors_of(of_file)
    )
    assert "hf_overrides" not in reference
    assert whole["hf_overrides"] == overrides


@pytest.fixture
def played(monkeypatch):
    """What engines were asked to play; one of them does not start."""
    asked = []

    async def play(config, engine, ways, num_episodes):
        asked.append((dict(engine), set(ways), num_episodes))
        if "kv_cache_dtype" in engine:
            raise numerics.EngineNotAvailableError("no AVX-512")
        return {way: (tuple(engine), way) for way in ways}

    def score(policy, episodes, max_tokens, *, replay):
        import torch

        return torch.full((10,), 0.5 if policy else 0.25)

    monkeypatch.setattr(numerics, "_play", play)
    monkeypatch.setattr(numerics, "_policy", lambda config, dtype: dtype)
    monkeypatch.setattr(numerics, "_log_r_d", score)
    return asked


def test_each_engine_starts_once_and_one_that_cannot_is_a_row(played):
    of_file = config(compute_dtype="bfloat16", engine={"dtype": "float32"})
    factors, said = numerics.factors_of(of_file), []
    found = numerics.measure(of_file, factors, 7, said.append)
    engines = [engine for engine, _, _ in played]
    assert len(engines) == len({repr(engine) for engine in engines}) < len(factors)
    assert played[0] == (engines[0], {True, False}, 7)
    assert engines[0]["dtype"] == "float32"
    for factor, figures in zip(factors, found, strict=True):
        if "kv_cache_dtype" in factor.engine:
            assert figures == "no AVX-512"
        else:
            assert figures.rms == (0.5 if factor.compute_dtype else 0.25)
    assert said[0] == f"engine 1 of {len(engines)}: float32 everywhere"


def test_the_command_prints_table_and_bound(played):
    done = CliRunner().invoke(main, ["numerics", str(YAML), "--episodes", "3"])
    assert done.exit_code == 0, done.output
    assert "engine 1 of 4" in done.stderr
    assert "not available here: no AVX-512" in " ".join(done.stdout.split())
    # exp(0.25) = 1.2840
    assert "eps_ti = exp(99.9 % quantile of |log r_d|) = 1.29" in done.stdout
    assert "0.0022 in float32, 0.031 in bfloat16" in done.stdout


@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_episodes_are_counted_from_one(value):
    done = CliRunner().invoke(main, ["numerics", str(YAML), "--episodes", value])
    assert done.exit_code == 2 and "--episodes" in done.output


def test_a_file_of_several_needs_a_name():
    several = EXAMPLES_DIR / "tau2_retail_qwen3_4b.yaml"
    done = CliRunner().invoke(main, ["numerics", str(several)])
    assert done.exit_code == 2
    assert "--experiment is needed, one of tau2_retail_qwen3_4b_snap" in done.output


def test_the_table_fits_80_columns(small_moe_dir):
    factors = numerics.factors_of(config(model=str(small_moe_dir)))
    found = [FIGURES] * (len(factors) - 1) + ["its head has 80 rows, " * 6]
    console = Console(width=80)
    with console.capture() as printed:
        console.print(table(factors, found))
    lines = printed.get().splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split()[-5:] for line in lines]
    assert rows.count(["1.1e-02", "7.0e-03", "4.9e-02", "1.3e-01", "4321"]) == (
        len(found) - 1
    )


def test_without_the_files_own_engine_nothing_is_suggested():
    (line,) = conclusions([FIGURES, "no GPU"], 1.05)
    assert line == "the engine of the file does not start here: no GPU"
    assert "= 1.051 keeps" in conclusions([FIGURES], 1.05)[0]


def test_why_an_engine_does_not_start_is_read_off_its_last_words(monkeypatch):
    class Engine:
        async def start(self):
            import os

            os.write(2, b"(EngineCore pid=7) NotImplementedError: no fp8 here.\n")
            raise RuntimeError("Engine core initialization failed. See above.")

    with pytest.raises(numerics.EngineNotAvailableError, match=r"^no fp8 here\.$"):
        asyncio.run(numerics._start(Engine()))


@pytest.mark.slow
def test_the_bundled_agent_on_real_engines(real_engines):
    """Everything in bfloat16 adds something, and the file is in float32."""
    of_file = open_config(YAML, None, [])
    factors = numerics.factors_of(of_file)
    found = numerics.measure(of_file, factors, 8, print)
    rms = {
        factor.name: figures.rms
        for factor, figures in zip(factors, found, strict=True)
        if not isinstance(figures, str)
    }
    assert max(rms["float32 everywhere"], rms["as in the file"]) < 1e-4
    narrow = [size for name, size in rms.items() if "bfloat16" in name]
    assert len(narrow) == 3 and min(narrow) > 1e-4
