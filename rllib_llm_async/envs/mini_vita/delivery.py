"""Delivery: find a dish within diet and budget, of which the user tells piecemeal."""

from __future__ import annotations

import random
from typing import Any

from rllib_llm_async.envs.mini.consent import AMOUNT
from rllib_llm_async.envs.mini.domain import (
    Demonstrator,
    Flaws,
    Tool,
    ToolError,
    compare,
    near,
    text_message,
    tool_message,
)
from rllib_llm_async.envs.mini_vita.rubric import RubricDomain

_DISHES = ("burger", "noodles", "pizza", "rice", "salad", "soup")


class Delivery(RubricDomain):
    """The diet is in the profile; budget and place come on request and may change."""

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
    kinds = {
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
        self.place = rng.choice(["home", "work"])
        self.tells_place = rng.random() < 0.5
        self.offers = {
            f"{self.dish}{digit}": {
                "kind": rng.choice(["meat", "vegan"]),
                "price": near(rng, self.budget, 10, 60),
            }
            for digit in rng.sample(range(1, 10), 3)
        }
        self.must_read = ["profile", f"search:{self.dish}"]
        self.must_learn = ["budget", "place"]
        first = self._first_fitting(self.budget)
        if first is not None and self.new_budget != self.budget:
            self.must_hear = ["new budget"]
        # A user who is offered nothing has nothing to think over.
        choice = None if first is None else self._first_fitting(self.new_budget)
        self.must_say = [{"outcome": "cannot"}]
        if choice is not None:
            self.must_change = [f"order:{choice}:{self.place}"]
            self.must_say = [{"outcome": "done", "offer": choice}]

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
            "the place; the user may change the budget then; after the yes order "
            "at once. if none fits say cannot. at the end say done and the offer."
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
        )
        if not self.tells_place:
            return f"{wish}."
        return wish + self.tell("place", f", to {self.place}.")

    def wish(self) -> dict[str, str]:
        return {"to": self.place}

    def think_again(self) -> str | None:
        if self.budget == self.new_budget:
            return None
        self.budget = self.new_budget
        return self.tell(
            "new budget",
            f"sorry, at most ${self.budget} please.",
            f"oh, only ${self.budget} today.",
        )

    def answer(self, text: str) -> str | None:
        told = []
        if "budget" in text:
            limit = self.tell("budget", "at most ", "up to ", "")
            told.append(f"{limit}${self.budget}")
        if "home or work" in text:
            told.append(self.tell("place", "to ", "") + self.place)
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
                return
            offer = f"{choice}, ${self.offers[choice]['price']} to {self.place}"
            yield text_message(f"{checked}. confirm {offer}?")
            budget = self.budget
        yield tool_message("order", offer=choice, to=self.place)
        yield text_message(f"done, {choice}.")

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
