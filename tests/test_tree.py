"""The shape of the package: what stands at its top, and who may import whom."""

from tests.import_graph import ROOT, cycles, import_graph

#: Result keys are one flat list for all packages below.
TOP = {"__init__.py", "py.typed", "result_keys.py", "version.py"}


def test_nothing_else_stands_at_the_top():
    assert {path.name for path in ROOT.iterdir() if path.is_file()} == TOP


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in ROOT.rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_no_module_imports_itself_over_others():
    graph = import_graph()
    assert len(graph) > 100
    # RLlib's protocol: a config names its algorithm, the algorithm its default config.
    algorithm = "rllib_llm_async.algorithms.async_decoupled_ppo"
    config = f"{algorithm}.async_decoupled_ppo_config"
    assert algorithm in graph[config]
    graph[config].remove(algorithm)
    assert not cycles(graph)


def test_only_the_command_imports_the_command():
    graph = import_graph()
    cli = "rllib_llm_async.cli"
    importers = {
        name
        for name, targets in graph.items()
        if any(f"{target}.".startswith(f"{cli}.") for target in targets)
    }
    assert importers and all(f"{name}.".startswith(f"{cli}.") for name in importers)


def test_cycles_are_found():
    graph = {
        "a": {"b"},
        "b": {"c", "e"},
        "c": {"a"},
        "d": {"a"},
        "e": set(),
        "f": {"f"},
    }
    assert cycles(graph) == [["a", "b", "c"], ["f"]]
