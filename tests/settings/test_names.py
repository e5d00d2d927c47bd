"""A name that is no setting is answered with ours, or with why there is none."""

import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_llm_async.settings import engine, lora
from rllib_llm_async.settings.check import SETTINGS, check_key
from rllib_llm_async.settings.names import ABSENT, ELSEWHERE, rllib_names, unknown
from rllib_llm_async.settings.optimizer import OptimizerSettings

_WITHIN = {
    "engine": engine.engine_arguments(),
    "lora": lora.lora_arguments(),
    "optimizer": OptimizerSettings.model_fields,
    "stop": ["training_iteration"],
}


@pytest.mark.parametrize(
    ("name", "here"),
    [item for names in ELSEWHERE.values() for item in names.items()],
)
def test_a_name_of_another_library_leads_to_a_setting(name, here):
    assert name not in SETTINGS
    ours = here.split(" ")[0]
    group, _, key = ours.partition(".")
    assert (key in _WITHIN[group]) if key else (ours in SETTINGS)
    with pytest.raises(ValueError, match=f"^{name}: .*here it is '{ours}'"):
        check_key(name)


def test_one_name_means_one_thing():
    meanings = [names for names in ELSEWHERE.values()]
    for names in meanings:
        for other in meanings:
            both = names.keys() & other.keys() if names is not other else ()
            assert all(names[name] == other[name] for name in both)
        assert not names.keys() & ABSENT.keys()
    assert not SETTINGS & ABSENT.keys()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("num_generations", "TRL's name, here it is 'group_size'"),
        ("learning_rate", "TRL's name, here it is 'lr'"),
        ("beta", "TRL's name, here it is 'kl_coeff'"),
        (
            "clip_param",
            "RLlib's name, here it is 'eps_stale' .a ratio bound: 1.2",
        ),
        ("num_workers", "RLlib's name, here it is 'num_env_runners'"),
        ("train_batch_size", "RLlib's name, here it is 'episodes_per_update'"),
        ("entropy_coeff", "no setting here; there is no entropy bonus"),
        ("top_p", "no setting here; .*whole distribution"),
        ("env", "beside config"),
        ("render_env", "^render_env: RLlib's does nothing here"),
        ("offline_sampling", "^offline_sampling: RLlib's does nothing here"),
        ("eps_tii", "^unknown key 'eps_tii', did you mean 'eps_ti'"),
        ("max_stalenes", "did you mean 'max_staleness'"),
        (3, "^unknown key '3'$"),
        ("zzz", "^unknown key 'zzz'$"),
    ],
)
def test_answers(name, words):
    with pytest.raises(ValueError, match=words):
        check_key(name)


def test_rllibs_names_are_found_without_importing_it():
    names = rllib_names()
    ours = {key for key in vars(AlgorithmConfig()) if not key.startswith("_")}
    # The class takes some from its parent, and holds a few that are no settings.
    assert len(names & ours) / len(ours) > 0.95


def test_a_short_list_is_shown_whole():
    assert unknown("b2", ["a1", "b1"]) == "unknown 'b2'. Valid: a1, b1"
    assert unknown("rolout", ["rollout", "a"]) == (
        "unknown 'rolout', did you mean 'rollout'? Valid: rollout, a"
    )
