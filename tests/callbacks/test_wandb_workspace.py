"""The workspace shows what our runs log, and needs an account."""

import pytest
import wandb
from click.testing import CliRunner

from rllib_llm_async.callbacks.wandb_workspace import SECTIONS, build_workspace
from rllib_llm_async.cli import main


def test_every_panel_of_the_sections_is_there():
    workspace = build_workspace("project", "entity")
    assert [section.name for section in workspace.sections] == list(SECTIONS)
    for section in workspace.sections:
        titles = [panel.title for panel in section.panels]
        assert titles == list(SECTIONS[section.name])
        assert all(panel.y for panel in section.panels)


@pytest.mark.filterwarnings("ignore")
def test_without_an_account_it_says_how_to_get_there(monkeypatch):
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    done = CliRunner().invoke(main, ["dashboard", "--project", "p"])
    assert done.exit_code == 2 and "wandb login" in done.output
