"""A verdict without a judge model: the orders are those of the task's reference.

Stricter in one way and laxer in another than the benchmark's score: other orders may
satisfy the rubrics, and neither address, time, note nor what was said is looked at.
"""

from __future__ import annotations

from collections import Counter
from typing import Any


class OrderMatch:
    """Compares the orders of the delivery domain."""

    async def verdict(
        self, task: Any, environment: Any, trajectory: list[Any]
    ) -> tuple[bool, dict[str, float]]:
        """Success, and ``order_match``, 1 if the orders match."""
        matches = orders_match(task, environment.tools.db.orders)
        return matches, {"order_match": float(matches)}


def required_orders(task: Any) -> tuple[list[dict[str, Any]], set[str]]:
    """The orders to place, and the ids of old orders to cancel, after the reference."""
    states = task.evaluation_criteria.expected_states or []
    orders = [order for state in states for order in state.required_orders or []]
    old = task.environment.get("orders") or {}
    to_place, to_cancel = {}, set()
    for order in orders:
        id_ = order["order_id"]
        # One reference gives a new order the id of an old one.
        is_old = id_ in old and old[id_]["store_id"] == order["store_id"]
        if order["status"] != "cancelled" and not is_old:
            to_place[id_] = order
        elif order["status"] == "cancelled" and is_old:
            to_cancel.add(id_)
    return list(to_place.values()), to_cancel


def orders_match(task: Any, orders: dict[str, Any]) -> bool:
    """Whether what was placed and cancelled is what the reference requires.

    Args:
        task: The package's task.
        orders: The package's orders at the end. New ones that are cancelled do not
            count.
    """
    to_place, to_cancel = required_orders(task)
    old = task.environment.get("orders") or {}
    placed = [
        _content(order.store_id, [dict(product) for product in order.products])
        for id_, order in orders.items()
        if id_ not in old and order.status != "cancelled"
    ]
    cancelled = {
        id_
        for id_, order in old.items()
        if orders[id_].status == "cancelled" and order["status"] != "cancelled"
    }
    return cancelled == to_cancel and Counter(placed) == Counter(
        _content(order["store_id"], order["products"]) for order in to_place
    )


def _content(store_id: str, products: list[dict[str, Any]]) -> tuple[str, ...]:
    # One reference lists an order among its products; nothing matches that.
    items = sorted(f"{p.get('product_id')} x{p.get('quantity')}" for p in products)
    return store_id, *items
