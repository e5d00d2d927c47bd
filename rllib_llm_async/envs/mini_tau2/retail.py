"""Retail: cancel or return one of several orders under a policy drawn per task."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from rllib_llm_async.envs.mini.consent import AMOUNT
from rllib_llm_async.envs.mini.domain import (
    Demonstrator,
    Domain,
    Flaws,
    Tool,
    ToolError,
    text_message,
    tool_message,
)
from rllib_llm_async.envs.mini.numbers import compare, near

_ITEMS = ("book", "chair", "desk", "jacket", "kettle", "lamp", "phone", "watch")


class Retail(Domain):
    """Users leave out their id or get it wrong, and own two orders of an item.

    They dispute a refusal, and ask for another order's status after a change.
    """

    name = "retail"
    tools = (
        Tool(
            "list_orders",
            "Names of a user's orders.",
            {"user": "string"},
            after=("user id",),
        ),
        Tool("get_order", "Look up an order.", {"order": "string"}),
        Tool(
            "cancel",
            "Cancel an order.",
            {"order": "string"},
            changes=True,
            consent=("action", "order", "amount"),
        ),
        Tool(
            "return_order",
            "Return an order; the refund goes to card or gift.",
            {"order": "string", "to": "string"},
            changes=True,
            consent=("action", "order", "amount", "to"),
        ),
    )
    kinds: ClassVar[dict[str, str]] = {
        "action": "(cancel|return)(?:ed|ing)?",
        "order": rf"(?:{'|'.join(_ITEMS)})\d",
        "amount": AMOUNT,
        "to": "card|gift",
        "reason": "status|age",
        "state": "pending|shipped|delivered",
    }

    def _draw(self, rng: random.Random) -> None:
        self.max_age = rng.choice([20, 30])
        self.gift_above = rng.choice([30, 50, 70])
        number, error = rng.randint(10, 99), rng.randint(1, 89)
        self.user_id = f"u{number}"
        self.wrong_user = f"u{10 + (number - 10 + error) % 90}"
        self.gives_user = rng.random() < 0.55
        self.mistakes_user = self.gives_user and rng.random() < 0.25
        self.disputes = not self.mistakes_user and rng.random() < 0.4
        self.asks_more = not self.mistakes_user and rng.random() < 0.3
        self.agrees = rng.random() < 0.85
        self.wants = rng.choice(["cancel"] * 2 + ["return"] * 2 + ["status"])
        self.item, *others = rng.sample(_ITEMS, 3)
        self.is_ambiguous = rng.random() < 0.4
        items = [self.item, *others]
        if self.is_ambiguous:
            items[2] = self.item
        digits = rng.sample(range(1, 10), 3)
        self.other_item, self.other_order = items[1], f"{items[1]}{digits[1]}"
        orders = {f"{i}{d}": self._draw_order(rng) for i, d in zip(items, digits)}
        self.order = f"{self.item}{digits[0]}"
        self.db = {"orders": dict(sorted(orders.items()))}
        self.must_read = [f"list_orders:{self.user_id}", f"get_order:{self.order}"]
        self.must_learn = ["user id", "order"] if self.is_ambiguous else ["user id"]
        if self.wants != "status" and rng.random() < 0.5:
            fitting = "pending" if self.wants == "cancel" else "delivered"
            orders[self.order]["status"] = fitting
        self._decide(orders[self.order])

    def _draw_order(self, rng: random.Random) -> dict:
        return {
            "status": rng.choice(["pending", "shipped", "delivered"]),
            "age": near(rng, self.max_age, 10, 40),
            "price": near(rng, self.gift_above, 10, 100),
        }

    def _decide(self, order: dict) -> None:
        if self.wants == "status":
            self.must_say = [self._status(self.order)]
            return
        obstacle = self._obstacle(order)
        name, arguments = self._change(self.order)
        if obstacle is not None:
            refusal = {"outcome": "cannot", "reason": obstacle}
            self.must_say = [refusal, refusal] if self.disputes else [refusal]
        elif not self.agrees:
            self.must_offer = self.naming(name, arguments)
            self.must_say = [{"outcome": "kept"}]
        else:
            self.must_change = [":".join([name, *arguments.values()])]
            self.must_say = [{"outcome": "done", "amount": f"${order['price']}"}]
            if self.asks_more:
                self.must_read_last = [f"get_order:{self.other_order}"]
                self.must_say.append(self._status(self.other_order))

    def _status(self, order: str) -> dict[str, str]:
        """What the agent must say who was asked for it."""
        state = self.db["orders"][order]["status"]
        return {"outcome": "done", "order": order, "state": state}

    def _obstacle(self, order: dict) -> str | None:
        if order["status"] != ("pending" if self.wants == "cancel" else "delivered"):
            return "status"
        if self.wants == "return" and order["age"] > self.max_age:
            return "age"
        return None

    def _change(self, order: str) -> tuple[str, dict[str, str]]:
        """The call that does what the user wants."""
        if self.wants == "cancel":
            return "cancel", {"order": order}
        price = self.db["orders"][order]["price"]
        to = "gift" if price > self.gift_above else "card"
        return "return_order", {"order": order, "to": to}

    def policy(self) -> str:
        return (
            "retail agent. rules: ask for the user id unless told. list the orders, "
            "then look up the order. if several fit name them and ask which. cancel "
            f"only if pending. return only if delivered and age at most {self.max_age} "
            f"days; a refund above ${self.gift_above} goes to gift, else to card. "
            "before any change confirm in one sentence with cancel or return, the "
            "order, the refund and, to return, gift or card; after the yes do it at "
            "once. if a rule forbids it say cannot and why, status or else age, and "
            "stay with it. if the user declines say kept. at the end say done and the "
            "refund. if asked where an order is, look it up, say done, the order and "
            "its status."
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
        return "ok"

    def return_order(self, order: str, to: str) -> str:
        x = self._order(order)
        if to not in ("card", "gift"):
            raise ToolError("to must be card or gift")
        x["status"] = "returned"
        return "ok"

    def _order(self, order: str) -> dict:
        if order not in self.db["orders"]:
            raise ToolError("not found")
        return self.db["orders"][order]

    def naming(self, name: str, arguments: dict[str, Any]) -> dict[str, str]:
        order = arguments["order"]
        things = {"order": order, "amount": f"${self.db['orders'][order]['price']}"}
        if name == "cancel":
            return {"action": "cancel", **things}
        return {"action": "return", **things, "to": arguments["to"]}

    # --- User ---------------------------------------------------------------------

    def _opening(self) -> str:
        item = self.item
        if self.wants == "status":
            wish = self.vary(
                f"where is my {item}?",
                f"hello, when will the {item} arrive?",
                f"i am still waiting for my {item}.",
                f"could you check the status of my {item}?",
            )
        else:
            wish = self.vary(
                f"hi, i want to {self.wants} my {item}.",
                f"please {self.wants} my {item}.",
                f"can you {self.wants} the {item} i bought?",
                f"hello, i would like to {self.wants} a {item}.",
                f"i ordered a {item} by mistake, please {self.wants} it.",
                f"my {item} is not what i need. can i {self.wants} it?",
            )
        if self.mistakes_user:
            return f"{wish} i am {self.wrong_user}."
        return f"{wish} {self._tell_user()}" if self.gives_user else wish

    def _tell_user(self) -> str:
        id = self.user_id
        if self.mistakes_user:
            return self.tell(
                "user id", f"oh, {id}.", f"sorry, i meant {id}.", f"my mistake, {id}."
            )
        return self.tell(
            "user id", f"i am {id}.", f"my id is {id}.", f"user {id}.", f"use {id}."
        )

    def go_on(self) -> str:
        if self.must_say[0]["outcome"] == "cannot":
            return super().go_on()
        item = self.other_item
        return self.vary(
            f"and where is my {item}?",
            f"one more thing, has the {item} been sent?",
            f"thanks. what about my {item}?",
        )

    def wish(self) -> dict[str, str]:
        return {"action": self.wants, "order": self.order}

    def answer(self, text: str) -> str | None:
        if "which" in text:
            if not self.is_ambiguous:
                self.breaches.add("order asked needlessly")
            # The user knows the item; the orders' names come from the agent.
            if not all(order in text for order in self._fitting()):
                return self.vary(f"my {self.item}.", f"the {self.item}, of course.")
            order = self.order
            return self.tell(
                "order", f"{order}.", f"i mean {order}.", f"{order}, the other is fine."
            )
        if "user id" in text:
            return self._tell_user()
        return None

    def _fitting(self) -> list[str]:
        return [order for order in self.db["orders"] if order.startswith(self.item)]

    # --- Demonstrator -------------------------------------------------------------

    def demonstrate(self, flaws: Flaws) -> Demonstrator:
        if self.mistakes_user:
            yield tool_message("list_orders", user=self.wrong_user)
            yield text_message("unknown. what is your user id?")
        elif not self.gives_user:
            yield text_message("what is your user id?")
        yield tool_message("list_orders", user=self.user_id)
        choice = self.order
        if self.is_ambiguous:
            if flaws.shortcut():
                choice = flaws.rng.choice(self._fitting())
            else:
                yield text_message(f"which one, {' or '.join(self._fitting())}?")
        yield tool_message("get_order", order=choice)
        order = self.db["orders"][choice]
        if self.wants == "status":
            yield text_message(f"done, {choice} {order['status']}.")
            return
        obstacle = self._obstacle(order)
        found = f"{choice} {order['status']}"
        if self.wants == "return" and order["status"] == "delivered":
            found += f", age {compare(order['age'], self.max_age)}"
        if flaws.slip():
            obstacle = flaws.rng.choice(["status", "age"]) if obstacle is None else None
        if obstacle is not None:
            refusal = f"sorry, cannot {self.wants}: {obstacle}."
            yield text_message(f"{found}. {refusal}")
            yield text_message(refusal)
            return
        yield from self._demonstrate_change(choice, order, found, flaws)

    def _demonstrate_change(
        self, choice: str, order: dict, found: str, flaws: Flaws
    ) -> Demonstrator:
        name, arguments = self._change(choice)
        if not flaws.shortcut():
            offer = f"confirm {self.wants} {choice}, ${order['price']}"
            if self.wants == "return":
                found += f", price {compare(order['price'], self.gift_above)}"
                offer += f" to {arguments['to']}"
            yield text_message(f"{found}. {offer}?")
            if not self.agreed:
                yield text_message("ok, kept.")
                return
        yield tool_message(name, **arguments)
        yield text_message(f"done, refund ${order['price']}.")
        yield tool_message("get_order", order=self.other_order)
        status = self.db["orders"][self.other_order]["status"]
        yield text_message(f"done, {self.other_order} {status}.")
