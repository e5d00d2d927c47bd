"""A run listens on loopback alone, and leaves no key behind."""

from tests.end_to_end.watched_run import KEYS


def test_a_run_is_open_to_nobody(finished_run):
    assert finished_run.num_processes > 5  # Ray's, the driver, the runner, its engine
    assert finished_run.listeners == set()


def test_a_run_keeps_no_key(finished_run):
    files = [path for path in finished_run.home.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    expected = {"result.json", "metadata.json", "dialogues.jsonl", "raylet.out"}
    assert {*expected, "output"} <= names
    assert any(name.endswith(".wandb") for name in names)
    for key in KEYS.values():
        assert [p for p in files if key.encode() in p.read_bytes()] == []
