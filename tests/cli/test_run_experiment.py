"""What a run says, beside its own lines."""

import logging
from types import SimpleNamespace

import pytest
from click import ClickException

from rllib_llm_async.cli import run_experiment
from rllib_llm_async.cli.run_experiment import without_stack


def test_what_tune_could_not_save_is_said_in_a_line(caplog):
    logger = logging.getLogger("experiment_state_of_a_test")
    logger.addFilter(without_stack)
    try:
        raise OSError(28, "No space left on device")
    except OSError:
        logger.error("saving to '/results/50%%' failed with %s: ", "it", exc_info=True)
    logger.warning("saving took 5 s")
    assert "Traceback" not in caplog.text
    failed, slow = [record.getMessage() for record in caplog.records]
    assert failed.startswith("saving to '/results/50%' failed with it: ")
    assert failed.endswith("No space left on device")
    assert slow == "saving took 5 s"


@pytest.mark.parametrize(
    ("checkpoints", "said"),
    [
        ([None], r"^trial failed: odd; no checkpoint had been saved$"),
        (["one", None], r"^2 of 2 failed: .*newest checkpoint with: rllib .*--resume$"),
    ],
)
def test_what_failed_goes_on_from_a_checkpoint_if_there_is_one(
    checkpoints, said, end_with
):
    results = [
        SimpleNamespace(error=ValueError("odd"), checkpoint=checkpoint)
        for checkpoint in checkpoints
    ]
    with pytest.raises(ClickException, match=said):
        end_with(results, swept=[])


@pytest.mark.parametrize("iterations", [(3, 0), (0, 0)])
def test_a_sweep_in_which_a_trial_failed_shows_the_others(
    iterations, end_with, monkeypatch, tmp_path
):
    shown = []
    monkeypatch.setattr(
        run_experiment, "report_sweep", lambda *args: shown.append(args)
    )
    errors = [None if number else ValueError("odd") for number in iterations]
    results = [
        SimpleNamespace(
            error=error, checkpoint=None, metrics={"training_iteration": number}
        )
        for error, number in zip(errors, iterations, strict=True)
    ]
    with pytest.raises(ClickException, match=r"of 2 failed: odd"):
        end_with(results, swept=["eps_ti"])
    assert shown == [(tmp_path / "odd", ["eps_ti"])] * any(iterations)


@pytest.fixture
def end_with(monkeypatch, tmp_path):
    """A run whose trials end with these results."""
    for name in (  # of which it sets some
        "RAY_AIR_NEW_OUTPUT",
        "TUNE_PRINT_ALL_TRIAL_ERRORS",
        "TUNE_FORCE_TRIAL_CLEANUP_S",
    ):
        monkeypatch.setenv(name, "0")

    def end(results, swept):
        tuner = SimpleNamespace(fit=lambda: results)
        monkeypatch.setattr(run_experiment, "_make_tuner", lambda *args: tuner)
        run_experiment.run_experiment(
            SimpleNamespace(name="odd", run="PPOEWMAAsync", env="mini", swept=swept),
            SimpleNamespace(storage_path=str(tmp_path)),
            SimpleNamespace(received=None, awaited=False),
            None,
        )

    return end
