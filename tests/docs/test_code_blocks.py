"""What README and docs print is run here, or says above it what it would need.

A block under ``<!-- needs: ... -->`` is left out. Of shell blocks, `rllib train file`
is run with ``--check`` (whole runs are in tests/end_to_end), `make` with ``-n``.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rllib_llm_async.cli import main
from rllib_llm_async.cli.experiment_file import build_config, load_experiments
from rllib_llm_async.cli.sweep import tune_config
from rllib_llm_async.engine import NO_REGISTRATION

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(
    r"(?P<needs><!-- needs: [^\n]+ -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```",
    re.DOTALL,
)


def blocks(language):
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if match["language"] == language and not match["needs"]:
                line = text[: match.start()].count("\n") + 1
                found.append(pytest.param(match["text"], id=f"{page.name}:{line}"))
    assert found, f"no block of {language}"
    return found


def runs(block):
    return "build_algo()" in block.values[0]


def runs_in_python():
    """All of them train; the first, of the README, for whoever is in a hurry."""
    first, *others = filter(runs, blocks("python"))
    slow = [pytest.param(*b.values, id=b.id, marks=pytest.mark.slow) for b in others]
    return [first, *slow]


@pytest.mark.parametrize("text", runs_in_python())
def test_a_run_in_python(ray_cluster, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(text, {"__name__": "__main__"})


def test_python_without_a_run(tmp_path, monkeypatch):
    """All in one process, most of whose time goes into what they import."""
    # An engine in this process, of an earlier test, would have left it behind.
    monkeypatch.delenv(NO_REGISTRATION, raising=False)
    texts = {b.id: b.values[0] for b in blocks("python") if not runs(b)}
    code = (
        "import json, sys\n"
        "for where, text in json.load(sys.stdin).items():\n"
        "    exec(compile(text, where, 'exec'), {'__name__': '__main__'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(texts),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_is_valid(text, tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    for experiment in load_experiments(path):
        build_config(experiment)
        tune_config(experiment)


@pytest.mark.parametrize("text", blocks("bash"))
def test_commands_exist(text, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in text.strip().splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["rllib"]:
            dry = ["--check"] if words[1:3] == ["train", "file"] else []
            result = CliRunner().invoke(main, [*words[1:], *dry])
            assert result.exit_code == 0, result.output
        elif words[:1] == ["make"]:
            subprocess.run(["make", "-n", *words[1:]], check=True, capture_output=True)
        elif words[:2] == ["python", "-m"]:
            subprocess.run(
                [sys.executable, "-m", words[2], "--help"],
                check=True,
                capture_output=True,
            )
        else:
            assert words[0] in ("source", "bash") and Path(words[1]).suffix != ".py"
