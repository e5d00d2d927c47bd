"""Which transport a placement gets, and what is refused where it is named in vain."""

import pytest

#: A learner and two engines with GPUs of their own.
GPUS = {"num_gpus_per_learner": 1, "num_learners": 1} | {
    "num_gpus_per_env_runner": 1,
    "num_env_runners": 2,
}
#: A learner and an engine on one GPU.
ONE_GPU = {"num_gpus_per_learner": 0.4, "num_gpus_per_env_runner": 0.6}
LORA = {"lora": {"r": 4, "target_modules": ["q_proj"]}}
FSDP2 = {"learner_sharding": "fsdp2", "num_learners": 2}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "shared_file"),
        (GPUS, "shared_file"),
        (GPUS, "nccl"),
        ({**GPUS, "num_learners": 2}, "nccl"),
        ({**GPUS, "num_gpus_per_env_runner": 2}, "nccl"),
        (ONE_GPU, "ipc"),
        ({**GPUS, **FSDP2}, "shared_file"),
        ({**GPUS, **LORA, "lora_sync": "merged"}, "nccl"),
    ],
)
def test_what_is_named_is_taken_and_auto_is_the_shared_file(
    make_config, settings, named
):
    for transport, chosen in ((named, named), ("auto", "shared_file")):
        config = make_config(**settings, weight_transport=transport)
        config.validate()
        assert config.chosen_transport == chosen


@pytest.mark.parametrize(
    ("transport", "settings", "words"),
    [
        ("nccl", {}, "nccl goes from GPU to GPU, and num_gpus_per_learner is 0"),
        ("ipc", {}, "ipc goes from GPU to GPU, and num_gpus_per_learner is 0"),
        (
            "nccl",
            {**GPUS, "num_gpus_per_env_runner": 0},
            "nccl goes from GPU to GPU, and num_gpus_per_env_runner is 0",
        ),
        (
            "nccl",
            ONE_GPU,
            r"a whole GPU on each side, and num_gpus_per_learner is 0\.4",
        ),
        ("ipc", GPUS, r"share one GPU, and num_gpus_per_learner \+ .* is 3"),
        ("ipc", {**ONE_GPU, "num_learners": 2}, "one learner, and num_learners is 2"),
        (
            "nccl",
            {**GPUS, "engine": {"data_parallel_size": 2}},
            r"engine\.data_parallel_size is 2",
        ),
        (
            "nccl",
            {**GPUS, "num_gpus_per_env_runner": 2, "num_engines_per_env_runner": 2},
            "one engine at a time, and num_engines_per_env_runner is 2",
        ),
        ("nccl", {**GPUS, **FSDP2}, "learner_sharding fsdp2 is for models that do not"),
        ("nccl", {**GPUS, **LORA}, r"adapters travel as files \(nccl goes with"),
        ("ipc", {**ONE_GPU, **LORA}, r"adapters travel as files \(ipc goes with"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(
    make_config, transport, settings, words
):
    config = make_config(**settings, weight_transport=transport)
    line = rf"^weight_transport: got '{transport}', must be auto or shared_file: .*"
    with pytest.raises(ValueError, match=line + words) as error:
        config.validate()
    assert "\n" not in str(error.value)


def test_of_sharded_rdt_it_says_why_it_is_not_there(make_config):
    words = (
        r"must be one of auto, shared_file, nccl, ipc \(vLLM's sharded_rdt would stop"
    )
    with pytest.raises(ValueError, match=words):
        make_config(weight_transport="sharded_rdt").validate()
