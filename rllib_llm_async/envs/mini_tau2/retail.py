"""Retail: cancel or return one of several orders under a policy drawn per task."""

from __future__ import annotations

import copy
import random

from rllib_llm_async.envs.mini.domain import (
    Demonstrator,
    Domain,
    Flaws,
    Tool,
    ToolError,
    text_message,
    tool_message,
    two_digits,
)

_ITEMS = ("book", "chair", "desk", "jacket", "kettle", "lamp", "phone", "watch")


class Retail(Domain):
    """The user may leave out the user id and may own two orders of the same item."""

    name = "retail"
    tools = (
        Tool("list_orders", "Names of a user's orders.", {"user": "string"}),
        Tool("get_order", "Look up an order.", {"order": "string"}),
        Tool("cancel", "Cancel an order.", {"order": "string"}, needs_consent=True),
        Tool(
            "return_order",
            "Return an order; the refund goes to card or gift.",
            {"order": "string", "to": "string"},
            needs_consent=True,
        ),
    )

    def _draw(self, rng: random.Random) -> None:
        self.max_age = rng.choice([20, 30])
        self.gift_above = rng.choice([30, 50, 70])
        self.user_id = f"u{rng.randint(10, 99)}"
        self.gives_user = rng.random() < 0.5
        self.agrees = rng.random() < 0.85
        self.wants = rng.choice(["cancel", "return"])
        self.item, *others = rng.sample(_ITEMS, 3)
        self.is_ambiguous = rng.random() < 0.4
        items = [self.item, *others]
        if self.is_ambiguous:
            items[2] = self.item
        digits = rng.sample(range(1, 10), 3)
        orders = {f"{i}{d}": self._draw_order(rng) for i, d in zip(items, digits)}
        self.order = f"{self.item}{digits[0]}"
        self.db = {"orders": dict(sorted(orders.items())), "log": []}
        self.golden_db = copy.deepcopy(self.db)
        self.must_read = [f"get_order:{self.order}"]
        order = orders[self.order]
        if rng.random() < 0.5:
            order["status"] = "pending" if self.wants == "cancel" else "delivered"
            self.golden_db["orders"][self.order]["status"] = order["status"]
        self._set_golden(order)

    def _draw_order(self, rng: random.Random) -> dict:
        return {
            "status": rng.choice(["pending", "shipped", "delivered"]),
            "age": two_digits(rng, 10, 40),
            "price": two_digits(rng, 10, 100),
        }

    def _set_golden(self, order: dict) -> None:
        obstacle = self._obstacle(order)
        if obstacle is not None:
            self.must_say = ["cannot", obstacle]
        elif not self.agrees:
            self.must_say = ["kept"]
        else:
            done = "cancelled" if self.wants == "cancel" else "returned"
            self.golden_db["orders"][self.order]["status"] = done
            to = [] if self.wants == "cancel" else [self._refund_to(order)]
            self.golden_db["log"].append([self.wants, self.order, *to])
            self.must_say = ["done", f"${order['price']}"]

    def _obstacle(self, order: dict) -> str | None:
        if order["status"] != ("pending" if self.wants == "cancel" else "delivered"):
            return "status"
        if self.wants == "return" and order["age"] > self.max_age:
            return "age"
        return None

    def _refund_to(self, order: dict) -> str:
        return "gift" if order["price"] > self.gift_above else "card"

    def policy(self) -> str:
        return (
            "retail agent. rules: get the user id first. cancel only if pending. "
            f"return only if delivered and age at most {self.max_age} days. refund "
            f"above ${self.gift_above} to gift, else to card. ask which order if "
            "several fit. confirm with the user before any change. if a rule forbids "
            "it say cannot and why, status or age. if the user declines say kept. at "
            "the end say done and the refund."
        )

    # --- Tools --------------------------------------------------------------------

    def list_orders(self, user: str) -> str:
        if user != self.user_id:
            raise ToolError("unknown user")
        return ", ".join(self.db["orders"])

    def get_order(self, order: str) -> str:
        x = self._order(order)
        return f"{order} {x['status']} age {x['age']} price ${x['price']}"

    def cancel(self, order: str) -> str:
        self._order(order)["status"] = "cancelled"
        self.db["log"].append(["cancel", order])
        return "ok"

    def return_order(self, order: str, to: str) -> str:
        x = self._order(order)
        if to not in ("card", "gift"):
            raise ToolError("to must be card or gift")
        x["status"] = "returned"
        self.db["log"].append(["return", order, to])
        return "ok"

    def _order(self, order: str) -> dict:
        if order not in self.db["orders"]:
            raise ToolError("not found")
        return self.db["orders"][order]

    # --- User ---------------------------------------------------------------------

    def _opening(self) -> str:
        wish = self.vary(
            f"hi, i want to {self.wants} my {self.item}.",
            f"please {self.wants} my {self.item}.",
            f"can you {self.wants} the {self.item} i bought?",
        )
        if not self.gives_user:
            return wish
        return wish + self.vary(f" i am {self.user_id}.", f" my id is {self.user_id}.")

    def answer(self, text: str) -> str | None:
        if "confirm" in text:
            if self.order not in text:
                self.has_asked = True
                return self.vary("no, not that one.", "no, i mean another order.")
            return self.consent(self.agrees)
        if "which" in text:
            return self.vary(f"{self.order}.", f"i mean {self.order}.")
        if "user id" in text:
            return self.vary(f"{self.user_id}.", f"it is {self.user_id}.")
        return None

    # --- Demonstrator -------------------------------------------------------------

    def demonstrate(self, flaws: Flaws) -> Demonstrator:
        if not self.gives_user:
            yield text_message("what is your user id?")
        yield tool_message("list_orders", user=self.user_id)
        choice = self.order
        if self.is_ambiguous:
            if flaws.shortcut():
                fitting = [o for o in self.db["orders"] if o.startswith(self.item)]
                choice = flaws.rng.choice(fitting)
            else:
                yield text_message(f"which {self.item}?")
        yield tool_message("get_order", order=choice)
        order = self.db["orders"][choice]
        obstacle = self._obstacle(order)
        found = f"{choice} {order['status']}"
        if self.wants == "return" and obstacle != "status":
            found += f", age {order['age']} of {self.max_age}"
        if flaws.slip():
            obstacle = flaws.rng.choice(["status", "age"]) if obstacle is None else None
        if obstacle is not None:
            yield text_message(f"{found}. sorry, cannot {self.wants}: {obstacle}.")
            return
        yield from self._demonstrate_change(choice, order, found, flaws)

    def _demonstrate_change(
        self, choice: str, order: dict, found: str, flaws: Flaws
    ) -> Demonstrator:
        to = self._refund_to(order)
        if not flaws.shortcut():
            if self.wants == "return":
                found += f", price ${order['price']} of ${self.gift_above}, to {to}"
            yield text_message(f"{found}. confirm {self.wants} {choice}?")
            if not self.agrees or choice != self.order:
                yield text_message("ok, kept.")
                return
        if self.wants == "cancel":
            yield tool_message("cancel", order=choice)
        else:
            yield tool_message("return_order", order=choice, to=to)
        yield text_message(f"done, refund ${order['price']}.")
