"""Delivery: find a dish within diet and budget, of which the user tells piecemeal."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from rllib_llm_async.envs.mini.consent import AMOUNT
from rllib_llm_async.envs.mini.domain import (
    Demonstrator,
    Flaws,
    Tool,
    ToolError,
    text_message,
    tool_message,
)
from rllib_llm_async.envs.mini.numbers import compare, near
from rllib_llm_async.envs.mini_vita.rubric import RubricDomain

_DISHES = ("burger", "noodles", "pizza", "rice", "salad", "soup")


class Delivery(RubricDomain):
    """The diet is in the profile; budget and place come on request and may change.

    Users dispute a refusal, and ask for the price in the end.
    """

    name = "delivery"
    tools = (
        Tool("profile", "The user's diet.", {}),
        Tool("search", "Offers of a dish.", {"dish": "string"}),
        Tool(
            "order",
            "Order an offer, to home or to work.",
            {"offer": "string", "to": "string"},
            changes=True,
            consent=("offer", "amount", "to"),
        ),
    )
    kinds: ClassVar[dict[str, str]] = {
        "offer": rf"(?:{'|'.join(_DISHES)})\d",
        "amount": AMOUNT,
        "to": "home|work",
    }

    def _draw(self, rng: random.Random) -> None:
        self.dish = rng.choice(_DISHES)
        self.diet = rng.choice(["any", "vegan"])
        self.budget = rng.choice([20, 30, 40, 50])
        #: What the user wants on second thoughts, at the first offer.
        thinks_again = self.budget > 20 and rng.random() < 0.45
        self.new_budget = self.budget - 10 if thinks_again else self.budget
        self.place = self.new_place = rng.choice(["home", "work"])
        if not thinks_again and rng.random() < 0.2:
            self.new_place = "work" if self.place == "home" else "home"
        self.disputes = rng.random() < 0.4
        self.asks_more = rng.random() < 0.25
        self.tells_place = rng.random() < 0.5
        self.offers: dict[str, dict[str, Any]] = {
            f"{self.dish}{digit}": {
                "kind": rng.choice(["meat", "vegan"]),
                "price": near(rng, self.budget, 10, 60),
            }
            for digit in rng.sample(range(1, 10), 3)
        }
        self.must_read = ["profile", f"search:{self.dish}"]
        self.must_learn = ["budget", "place"]
        first = self._first_fitting(self.budget)
        changes = (self.budget, self.place) != (self.new_budget, self.new_place)
        if first is not None and changes:
            self.must_hear = ["second thoughts"]
        # A user who is offered nothing has nothing to think over.
        choice = None if first is None else self._first_fitting(self.new_budget)
        if choice is None:
            refusal = {"outcome": "cannot"}
            self.must_say = [refusal, refusal] if self.disputes else [refusal]
            return
        self.must_change = [f"order:{choice}:{self.new_place}"]
        self.must_say = [{"outcome": "done", "offer": choice}]
        if self.asks_more:
            price = f"${self.offers[choice]['price']}"
            self.must_say.append({"outcome": "done", "amount": price})

    def _fits(self, offer: dict, budget: int) -> bool:
        return offer["price"] <= budget and self.diet in ("any", offer["kind"])

    def _first_fitting(self, budget: int) -> str | None:
        return next((o for o, x in self.offers.items() if self._fits(x, budget)), None)

    def policy(self) -> str:
        return (
            "delivery agent. rules: look up the diet in the profile, then the offers "
            "of the dish. ask for the budget, and for the place, home or work, unless "
            "told. go through the offers and take the first within diet and budget. "
            "before you order confirm in one sentence with the offer, the price and "
            "the place; the user may change the budget or the place then; after the "
            "yes order at once. if none fits say cannot and stay with it. at the end "
            "say done and the offer. if asked for the price say done and the price."
        )

    def rubric(self) -> dict[str, bool]:
        orders = [change.split(":") for change in self.changes]
        right = [change.split(":") for change in self.must_change]
        return {
            "budget_asked": "budget" in self.learned,
            "right_offer": [o[1] for o in orders] == [o[1] for o in right],
            "right_place": [o[2] for o in orders] == [o[2] for o in right],
        }

    # --- Tools --------------------------------------------------------------------

    def profile(self) -> str:
        return f"diet {self.diet}"

    def search(self, dish: str) -> str:
        if dish != self.dish:
            raise ToolError("not found")
        return ", ".join(
            f"{offer} {x['kind']} ${x['price']}" for offer, x in self.offers.items()
        )

    def order(self, offer: str, to: str) -> str:
        if offer not in self.offers:
            raise ToolError("not found")
        if to not in ("home", "work"):
            raise ToolError("to must be home or work")
        return "ok"

    def naming(self, name: str, arguments: dict[str, Any]) -> dict[str, str]:
        price = self.offers[arguments["offer"]]["price"]
        return {**arguments, "amount": f"${price}"}

    # --- User ---------------------------------------------------------------------

    def _opening(self) -> str:
        wish = self.vary(
            f"i am hungry, get me {self.dish}",
            f"can you find me {self.dish}",
            f"please order {self.dish}",
            f"hello, my children would love some {self.dish}",
            f"it is late and i could eat a {self.dish}",
            f"what about {self.dish} tonight",
        )
        if not self.tells_place:
            return f"{wish}."
        return wish + self.tell(
            "place", f", to {self.place}.", f". bring it to {self.place} please."
        )

    def wish(self) -> dict[str, str]:
        return {"to": self.place}

    def true_offer(self) -> dict[str, str]:
        choice = self._first_fitting(self.budget)
        if choice is None:
            return {}
        return self.naming("order", {"offer": choice, "to": self.place})

    def think_again(self) -> str | None:
        if self.budget != self.new_budget:
            self.budget = budget = self.new_budget
            return self.tell(
                "second thoughts",
                f"sorry, at most ${budget} please.",
                f"oh, only ${budget} today.",
                f"that is too much, ${budget} is all i have.",
                f"hm, i changed my mind, not above ${budget}.",
            )
        if self.place != self.new_place:
            self.place = place = self.new_place
            return self.tell(
                "second thoughts",
                f"sorry, rather to {place}.",
                f"oh wait, i will be at {place}.",
                f"my mistake, {place} is right.",
            )
        return None

    def go_on(self) -> str:
        if not self.must_change:
            return super().go_on()
        return self.vary(
            "thanks, and what does it cost?",
            "how much do i pay?",
            "one more thing, what was the price?",
        )

    def answer(self, text: str) -> str | None:
        told = []
        if "budget" in text:
            limit = self.tell("budget", "at most ", "up to ", "", "not above ")
            told.append(f"{limit}${self.budget}")
        if "home or work" in text:
            told.append(self.tell("place", "to ", "", "i am at ") + self.place)
        return ", ".join(told) + "." if told else None

    # --- Demonstrator -------------------------------------------------------------

    def demonstrate(self, flaws: Flaws) -> Demonstrator:
        yield tool_message("profile")
        yield tool_message("search", dish=self.dish)
        asks = [] if flaws.shortcut() else ["your budget"]
        if not self.tells_place:
            asks.append("the place, home or work")
        if asks:
            yield text_message(f"what is {' and '.join(asks)}?")
        budget = self.budget if "your budget" in asks else flaws.rng.choice([20, 50])
        while not self.agreed:
            checked, choice = self._go_through(budget, flaws)
            if choice is None:
                yield text_message(f"{checked}. sorry, cannot: none fits.")
                yield text_message("sorry, cannot: none fits.")
                return
            price = self.offers[choice]["price"]
            offer = f"{choice}, ${price} to {self.place}"
            yield text_message(f"{checked}. confirm {offer}?")
            budget = self.budget
        yield tool_message("order", offer=choice, to=self.place)
        yield text_message(f"done, {choice}.")
        yield text_message(f"done, ${price}.")

    def _go_through(self, budget: int, flaws: Flaws) -> tuple[str, str | None]:
        checked = []
        for offer, x in self.offers.items():
            suits, slips = self.diet in ("any", x["kind"]), flaws.slip()
            if not (suits or slips):
                checked.append(f"{offer} {x['kind']} no")
                continue
            slips = slips and suits
            price = compare(x["price"], budget, slips)
            checked.append(f"{offer} {x['kind']} {price}")
            if (x["price"] <= budget) != slips:
                return ", ".join(checked), offer
        return ", ".join(checked), None
