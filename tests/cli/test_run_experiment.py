"""What a run says, beside its own lines."""

import logging

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
