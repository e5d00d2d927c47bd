"""The workspace as W&B's own objects say it, and the command that sends it."""

import json
from types import SimpleNamespace

import pytest
import wandb
import wandb_workspaces.workspaces as workspaces
from click.testing import CliRunner
from wandb_workspaces.workspaces import internal

from rllib_llm_async.cli import main
from rllib_llm_async.monitoring.panels import HEADLINES, PANELS
from rllib_llm_async.monitoring.wandb_workspace import build_workspace


def spec_of(view):
    """What W&B stores of a view."""
    return json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))


def test_wandb_stores_every_panel_of_every_group():
    spec = spec_of(build_workspace("project", "entity")._to_model())
    *groups, sweep = spec["section"]["panelBankConfig"]["sections"]
    stored = {
        group["name"]: {
            panel["config"]["chartTitle"]: panel["config"]["metrics"]
            for panel in group["panels"]
        }
        for group in groups
    }
    assert stored == PANELS
    kinds = {panel["viewType"] for group in groups for panel in group["panels"]}
    axes = {p["config"]["xAxis"] for group in groups for p in group["panels"]}
    assert kinds == {"Run History Line Plot"} and axes == {"training_iteration"}
    assert sweep["name"] == "sweep" and all(group["isOpen"] for group in groups)


def test_trials_of_a_sweep_are_compared_by_settings_and_results():
    spec = spec_of(build_workspace("project", "entity")._to_model())
    (panel,) = spec["section"]["panelBankConfig"]["sections"][-1]["panels"]
    assert panel["viewType"] == "Parallel Coordinates Plot"
    axes = [column["accessor"] for column in panel["config"]["columns"]]
    assert "config:eps_ti.value" in axes
    # `define_metric(summary="last,max")` keeps a dictionary of these two.
    for key, how in HEADLINES.items():
        first = how.split(",")[0]
        assert f"summary:{key}.{first}" in axes


def test_what_is_read_back_is_what_was_built():
    built = build_workspace("project", "entity")
    again = workspaces.Workspace._from_model(built._to_model())
    assert [s.name for s in again.sections] == [*PANELS, "sweep"]
    for section, read in zip(built.sections, again.sections, strict=True):
        assert [type(p) for p in read.panels] == [type(p) for p in section.panels]
    assert again.runset_settings.pinned_columns
    assert {*built.runset_settings.pinned_columns} <= {
        *again.runset_settings.pinned_columns
    }


@pytest.mark.filterwarnings("ignore")
def test_the_command_sends_it_and_prints_where_it_is(monkeypatch):
    sent = []

    def upsert(view):
        sent.append(view)
        return {"upsertView": {"view": {"name": view.name, "id": "id"}}}

    api = SimpleNamespace(
        default_entity="me", client=SimpleNamespace(app_url="https://wandb.ai")
    )
    monkeypatch.setattr(wandb, "login", lambda prompt: True)
    monkeypatch.setattr(wandb, "Api", lambda *args, **kwargs: api)
    monkeypatch.setattr(internal, "upsert_view2", upsert)
    monkeypatch.setattr(
        "wandb_workspaces.workspaces.interface.get_app_url", lambda api: "https://w.ai"
    )
    done = CliRunner().invoke(main, ["dashboard", "--project", "p"])
    assert done.exit_code == 0, done.output
    (view,) = sent
    assert (view.entity, view.project) == ("me", "p")
    assert done.stdout.splitlines()[-1].startswith("https://w.ai/me/p?nw=")


@pytest.mark.filterwarnings("ignore")
def test_without_an_account_it_says_how_to_get_there(monkeypatch):
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    done = CliRunner().invoke(main, ["dashboard", "--project", "p"])
    assert done.exit_code == 2 and "wandb login" in done.output
