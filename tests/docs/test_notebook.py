"""The notebook's cells run in order, as a kernel would run them.

Nothing that only a kernel has is used in them, so that no kernel is needed here: what a
cell does while an asyncio loop is running is what it would do in one.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "first_steps.ipynb"
#: Runs cells of standard input within a running loop, as ipykernel does, and writes the
#: kinds of what the last expressions are.
KERNEL = """
import ast, asyncio, json, sys

async def main():
    shown, names = [], {}
    for source in json.load(sys.stdin):
        body = ast.parse(source).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            shown.append(type(value).__name__)
    results = [*names["results"], names["result"]]
    iterations = [result["training_iteration"] for result in results]
    print("SHOWN", json.dumps([shown, iterations]))

asyncio.run(main())
"""


def code_cells():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def test_cells_are_plain_python_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    # Outputs would be somebody's run, and megabytes of it.
    assert all(not c["outputs"] for c in cells if c["cell_type"] == "code")
    for source in code_cells():
        ast.parse(source)


@pytest.mark.usefixtures("own_cluster")
@pytest.mark.slow
def test_the_notebook_trains_plots_evaluates_and_sweeps(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        input=json.dumps(code_cells()),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^success [01]\.\d+ ± 0\.\d+$", done.stdout, re.MULTILINE)
    shown, iterations = json.loads(done.stdout.rpartition("SHOWN ")[2])
    assert shown.count("Figure") == 2
    # The last one is of the algorithm that `from_checkpoint` has brought back.
    assert iterations == [1, 2, 3, 4]
    starts = [*tmp_path.glob("results/sweep/*/run.jsonl")]
    settings = [json.loads(path.read_text())["settings"] for path in starts]
    assert sorted(s["eps_ti"] for s in settings) == [1.01, 1.5]
    assert 'class="plotly-graph-div"' in (tmp_path / "report.html").read_text()
