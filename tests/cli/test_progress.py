"""A run that is quiet for long says what it waits for."""

from types import SimpleNamespace

from ray.tune.experiment import Trial

from rllib_llm_async.cli import progress


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


def test_a_quiet_run_says_what_it_waits_for(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    reporter = progress.Progress()

    class Running(SimpleNamespace):
        status = Trial.RUNNING

        def __str__(self):
            return "trial_1"

    trial = Running(last_result=None)

    def said(seconds):
        clock.now += seconds
        reporter.on_step_end(0, [trial])
        return capsys.readouterr().out

    assert said(59) == ""
    assert "trial_1: still waiting for engines" in said(2)
    assert said(30) == ""
    trial.last_result = {"training_iteration": 4}
    assert "for iteration 5" in said(31)
    reporter.on_trial_result(0, [trial], trial, {"training_iteration": 5})
    capsys.readouterr()
    assert said(59) == ""
