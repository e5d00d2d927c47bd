"""What the tau2 suite does without the package: arithmetic, databases, its absence."""

import copy
import re
import sys
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from rllib_llm_async.envs.registry import make_suite
from rllib_llm_async.envs.tau2 import grep
from rllib_llm_async.envs.tau2.calculator import bounded
from rllib_llm_async.envs.tau2.grep import count_matches
from rllib_llm_async.envs.tau2.shared_db import content, share, writing


def package_calculate(expression):
    """As tau2-bench 1.0.1 has it in retail and airline."""
    if not all(char in "0123456789+-*/(). " for char in expression):
        raise ValueError("Invalid characters in expression")
    return str(round(float(eval(expression, {"__builtins__": None}, {})), 2))


calculate = bounded(package_calculate)


def outcome(function, *args, **kwargs):
    """What a tool answers, errors as the package tells them to the agent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            return f"Error: {error}"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 2", "4.0"),
        ("(100 - 37.5) * 2 / 3", "41.67"),  # 125 / 3 = 41.666...
        ("-3 + -(4)", "-7.0"),
        ("7 // 2", "3.0"),
        ("2 ** 10", "1024.0"),
        ("10**400 / 10**399", "10.0"),
        (" 1.005*1000 ", "1005.0"),
    ],
)
def test_arithmetic(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression, error",
    [
        ("9**9**9", "int too large to convert to float"),
        ("9**9**8 - 9**9**8", "int too large to convert to float"),
        ("(9**999)**999", "int too large to convert to float"),
        ("9" * 999 + "**9", "Expression too long"),
        ("9" * 900 + "**99", "int too large to convert to float"),
        ("()+(9**9**9)", "Invalid expression: only numbers"),
        ("1(9**9**9)", "Invalid expression: only numbers"),
        ("-" * 980 + "9**9**9", ""),
        ("1" + "+1" * 2000, "Expression too long"),
    ],
)
def test_what_would_take_long_is_an_error(expression, error):
    assert outcome(calculate, expression=expression).startswith(f"Error: {error}")


@pytest.mark.parametrize(
    "expression",
    [
        "1/0",
        "1//0",
        "2.0**9999",
        "0**-1",
        "(-8)**0.5",
        "10**400",
        "(" * 400 + ")" * 400,
        "1(2)",
        "()",
        "()+1",
        "...",
        "5 5",
        "2 +",
        "().",
        "",
        "  ",
        "__import__",
        "1 if 1 else 2",
        "$5",
        5,
        None,
        ["1", "+", "1"],
    ],
)
def test_other_errors_are_told_as_the_package_tells_them(expression):
    told = outcome(package_calculate, expression)
    assert told.startswith("Error: ")
    assert outcome(calculate, expression) == told


def test_missing_and_unknown_arguments_are_errors_of_the_package_as_well():
    for arguments in ({}, {"expression": "1", "b": "2"}, {"text": "1"}):
        told = outcome(package_calculate, **arguments)
        assert outcome(calculate, **arguments) == told


@settings(deadline=None)
@given(st.text("0123456789+-*/(). ", max_size=30))
def test_any_expression_gives_what_the_package_gives_or_is_refused(expression):
    told = outcome(calculate, expression)
    too_large = told == "Error: int too large to convert to float"
    if not (too_large or told.startswith("Error: Invalid expression: ")):
        assert told == outcome(package_calculate, expression)


TEXTS = {"fee": "Annual fee: $95 {e}\nno FEE in year 1, a{2 {}", "empty": "", "b": "b"}
tokens = [*"aefin $^.*+?|(){}[],-19", "\\b", "\\d", "(?:", "fee", "{2}", "{,2}", "{1,}"]


@given(st.lists(st.sampled_from(tokens), min_size=1, max_size=8).map("".join))
def test_matches_are_counted_as_re_does(pattern):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compiled = re.compile(pattern, re.IGNORECASE)
        except re.error:
            compiled = re.compile(re.escape(pattern), re.IGNORECASE)
        counts = {key: len(compiled.findall(text)) for key, text in TEXTS.items()}
        found = count_matches(pattern, TEXTS)
    assert found == {key: count for key, count in counts.items() if count}


@pytest.mark.parametrize("pattern", ["(a{1000}){1000}", "a" * 501, "((a{9,}){9}){99}"])
def test_a_pattern_that_takes_much_memory_is_refused(pattern):
    with pytest.raises(ValueError, match="the pattern"):
        count_matches(pattern, TEXTS)


def test_a_pattern_that_takes_for_ever_is_given_up(monkeypatch):
    monkeypatch.setattr(grep, "_MAX_SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        count_matches("(a.*){20}!", {i: "annual fee " * 99 for i in range(99)})
    assert time.monotonic() - start < 5


class Order(BaseModel):
    status: str
    items: list[int]


class Shop(BaseModel):
    orders: dict[str, Order]
    totals: list[float]


def make_shop():
    orders = {key: Order(status="open", items=[1, 2]) for key in "abc"}
    return Shop(orders=orders, totals=[1.0])


def cancel(shop, key):
    shop.orders[key].status = "cancelled"


def add_item(shop, key):
    shop.orders.get(key, Order(status="", items=[])).items.append(3)


def replace(shop, key):
    shop.orders[key] = Order(status="new", items=[])


def remove(shop, key):
    shop.orders.pop(key, None)


def cancel_all(shop, key):
    for order in shop.orders.values():
        order.status = "cancelled"


def reopen_all(shop, key):
    for _, order in shop.orders.items():
        order.status = "open"


def look(shop, key):
    return shop.orders.get(key), list(shop.orders.items())


def count(shop, key):
    shop.totals.append(2.0)


ACTIONS = [cancel, add_item, replace, remove, cancel_all, reopen_all, look, count]
scripts = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.sampled_from("abc")), max_size=6
)


def run_on(shop, script):
    for action, key in script:
        try:
            action(shop, key)
        except KeyError:
            assert key not in shop.orders


@given(scripts, scripts)
def test_a_shared_database_behaves_like_a_copy(first, second):
    base = make_shop()
    shared, copies = [], []
    for script in (first, second):
        shared.append(share(base))
        copies.append(copy.deepcopy(base))
        with writing(shared[-1]):
            run_on(shared[-1], script)
        run_on(copies[-1], script)
    assert base == make_shop()
    assert [db.model_dump() for db in shared] == [db.model_dump() for db in copies]
    same_content = content(shared[0], base) == content(shared[1], base)
    assert same_content == (copies[0] == copies[1])


def test_entries_are_copied_only_when_they_may_be_written():
    base = make_shop()
    shop = share(base)
    assert shop.orders["a"] is base.orders["a"]
    with writing(shop):
        assert shop.orders["a"] is not base.orders["a"]
    assert shop.orders["b"] is base.orders["b"]
    assert content(shop, base) == {"totals": [1.0]}


@pytest.fixture
def without_tau2(monkeypatch):
    """As long as the test lasts, and what it has imported in its place goes with it."""

    def imported():
        return [name for name in sys.modules if name.split(".")[0] == "tau2"]

    for name in imported():
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in imported():
        del sys.modules[name]


def test_an_absent_package_is_one_line_of_advice(monkeypatch, without_tau2):
    monkeypatch.setitem(sys.modules, "tau2", None)
    with pytest.raises(ValueError, match=r"^env tau2: .* not installed; docs/tau2\.md"):
        make_suite("tau2", {"domains": ["retail"]})


def test_another_package_of_that_name_is_told_apart(
    monkeypatch, tmp_path, without_tau2
):
    (tmp_path / "tau2").mkdir()
    (tmp_path / "tau2" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="not tau2-bench"):
        make_suite("tau2", {"domains": ["retail"]})
    (tmp_path / "tau2" / "registry.py").write_text("import no_such_dependency")
    with pytest.raises(ValueError, match="needs 'no_such_dependency'"):
        make_suite("tau2", {"domains": ["retail"]})
