"""`rllib report`: one HTML page about one run or a comparison of several.

`load` reads what Tune wrote, `groups` puts runs that differ by their seed alone
together, one file per kind of figure draws, `page` fills the template.
"""

from rllib_llm_async.report.groups import group_runs
from rllib_llm_async.report.load import find_runs
from rllib_llm_async.report.page import render_page

__all__ = ["find_runs", "group_runs", "render_page"]
