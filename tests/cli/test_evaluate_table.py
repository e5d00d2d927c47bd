"""The table of `rllib evaluate` on a terminal of 80 columns."""

import pytest

from rllib_llm_async.cli.evaluate import _print_table

KS = range(1, 9)


def row(num_trials):
    figures = {f"{name}{k}": k / 10 for name in ("pass@", "pass^") for k in KS}
    return {**figures, f"avg@{num_trials}": 0.5, "num_tasks": 50, "num_episodes": 400}


@pytest.mark.parametrize("num_trials", [1, 2, 8])
def test_every_title_is_whole_and_every_line_fits(num_trials, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    figures = [
        f"avg@{num_trials}",
        *(f"{n}{k}" for n in ("pass@", "pass^") for k in KS),
    ]
    error = {f"{figure}_se": 0.0625 for figure in figures}
    _print_table(
        {"delivery,instore,ota": row(num_trials), "airline": row(num_trials) | error},
        num_trials,
    )
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said and f"avg@{num_trials}" in said
    # Each of the domain's figures: avg and two for k = 2, 4 and 8.
    num_lines = {1: 0, 2: 1, 8: 3}[num_trials]
    assert said.count("± 0.062") == 1 + 2 * num_lines and "0.500 ± 0.062" in said
    if num_trials > 1:
        assert "pass@k" in said and "pass^k" in said
    # k = 2, 4 and 8 are lines of their own.
    assert said.count("0.800") == (4 if num_trials == 8 else 0)
