"""A page as narrow as a phone: panels below each other, all of them legible."""

import itertools

import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from rllib_llm_async.report.narrow import both_layouts
from rllib_llm_async.report.section import lay_out, panels


def figure_of(num_panels, *, legend=False):
    figure = panels([f"panel {n}" for n in range(num_panels)])
    for n in range(num_panels):
        figure.add_trace(
            go.Scatter(x=[0, 1], y=[0, 1], name=f"run {n}", showlegend=legend),
            row=n // 2 + 1,
            col=n % 2 + 1,
        )
    return lay_out(figure, 300 * ((num_panels + 1) // 2))


def domains(layout, axis):
    return [v for key, v in layout.items() if key.startswith(axis) and "domain" in key]


@pytest.mark.parametrize("num_panels", [2, 3, 6])
def test_panels_side_by_side_are_stacked_from_top_to_bottom(num_panels):
    layouts = both_layouts(figure_of(num_panels))
    narrow, wide = layouts["narrow"], layouts["wide"]
    assert domains(narrow, "xaxis") == [[0, 1]] * num_panels
    stack = domains(narrow, "yaxis")
    assert stack[0][1] == 1 and stack[-1][0] == pytest.approx(0, abs=1e-9)
    plot = narrow["height"] - narrow["margin.t"] - 56  # the margin below
    for above, below in itertools.pairwise(stack):
        # Room for the title of an axis and of a panel.
        assert (above[0] - below[1]) * plot > 60
    assert all((high - low) * plot > 80 for low, high in stack)
    titles = [narrow[f"annotations[{n}].y"] for n in range(num_panels)]
    assert titles == [high for _, high in stack]
    # Back on a wide page everything is as it was drawn.
    assert wide.keys() == narrow.keys()
    assert wide["xaxis2.domain"] == list(figure_of(num_panels).layout.xaxis2.domain)
    assert wide["annotations[1].x"] == figure_of(num_panels).layout.annotations[1].x
    assert wide["height"] == 300 * ((num_panels + 1) // 2)


def test_a_legend_has_a_line_for_each_entry():
    without = both_layouts(figure_of(2))["narrow"]
    with_legend = both_layouts(figure_of(2, legend=True))["narrow"]
    assert with_legend["margin.t"] - without["margin.t"] == 2 * 20
    assert with_legend["height"] - without["height"] == 2 * 20


def test_one_column_stays_one_and_its_titles_are_broken_into_lines():
    title = "Share of kept tokens that the clip stops (r_s beyond eps_stale)"
    figure = make_subplots(rows=2, cols=1, subplot_titles=("kept", title))
    narrow = both_layouts(lay_out(figure, 500))["narrow"]
    assert not domains(narrow, "yaxis")
    assert narrow["annotations[1].text"].replace("<br>", " ") == title
    assert max(map(len, narrow["annotations[1].text"].split("<br>"))) <= 42


def test_a_figure_without_panels_keeps_its_axes():
    figure = go.Figure(go.Bar(x=[1], y=["a"], orientation="h", name="phase"))
    figure = lay_out(figure, 200).update_layout(showlegend=True)
    narrow = both_layouts(figure)["narrow"]
    assert not domains(narrow, "xaxis") and narrow["margin.t"] > 20
