"""Delivery: find a dish within diet and budget, of which the user tells piecemeal."""

from __future__ import annotations

import random

from rllib_llm_async.envs.mini.domain import (
    Demonstrator,
    Flaws,
    Tool,
    ToolError,
    text_message,
    tool_message,
    two_digits,
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
            needs_consent=True,
        ),
    )

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
                "price": two_digits(rng, 10, 60),
            }
            for digit in rng.sample(range(1, 10), 3)
        }
        first = self._first_fitting(self.budget)
        # A user who is offered nothing has nothing to think over.
        golden = None if first is None else self._first_fitting(self.new_budget)
        self.db = {"orders": []}
        self.golden_db = {"orders": [[golden, self.place]] if golden else []}
        self.must_read = ["profile", f"search:{self.dish}"]
        self.must_say = ["done"] if golden else ["cannot"]

    def _fits(self, offer: dict, budget: int) -> bool:
        return offer["price"] <= budget and self.diet in ("any", offer["kind"])

    def _first_fitting(self, budget: int) -> str | None:
        return next((o for o, x in self.offers.items() if self._fits(x, budget)), None)

    def policy(self) -> str:
        return (
            "delivery agent. rules: look up the diet in the profile. ask for the "
            "budget, and for the place, home or work, unless told. go through the "
            "offers of the dish and take the first within diet and budget. confirm "
            "with the user before you order; the user may change the budget then. if "
            "none fits say cannot. at the end say done."
        )

    def rubric(self) -> dict[str, bool]:
        orders, golden = self.db["orders"], self.golden_db["orders"]
        return {
            "budget_asked": any("budget" in text for text in self.said),
            "right_offer": [o[0] for o in orders] == [o[0] for o in golden],
            "right_place": [o[1] for o in orders] == [o[1] for o in golden],
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
        self.db["orders"].append([offer, to])
        return "ok"

    # --- User ---------------------------------------------------------------------

    def _opening(self) -> str:
        wish = self.vary(
            f"i am hungry, get me {self.dish}",
            f"can you find me {self.dish}",
            f"please order {self.dish}",
        )
        return wish + (f", to {self.place}." if self.tells_place else ".")

    def answer(self, text: str) -> str | None:
        if "confirm" in text:
            if self.budget != self.new_budget:
                self.budget = self.new_budget
                return self.vary(
                    f"sorry, at most ${self.budget} please.",
                    f"oh, only ${self.budget} today.",
                )
            return self.consent(True)
        told = []
        if "budget" in text:
            told.append(self.vary("at most ", "up to ", "") + f"${self.budget}")
        if "home or work" in text:
            told.append(self.vary("to ", "") + self.place)
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
        while not self.consents:
            checked, choice = self._go_through(budget, flaws)
            if choice is None:
                yield text_message(f"{checked}. sorry, cannot: none fits.")
                return
            yield text_message(f"{checked}. confirm {choice} to {self.place}?")
            budget = self.budget
        yield tool_message("order", offer=choice, to=self.place)
        yield text_message(f"done, {choice}.")

    def _go_through(self, budget: int, flaws: Flaws) -> tuple[str, str | None]:
        checked = []
        for offer, x in self.offers.items():
            fits = self._fits(x, budget) != flaws.slip()
            verdict = "yes" if fits else "no"
            checked.append(f"{offer} {x['kind']} ${x['price']} {verdict}")
            if fits:
                return f"${budget}: {', '.join(checked)}", offer
        return f"${budget}: {', '.join(checked)}", None
