"""Airline: cancel a reservation or add bags, under a policy drawn for each task."""

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

_REASONS = {
    "health": ("i am ill.", "i have the flu."),
    "weather": ("there is a storm.", "the roads are full of snow."),
    "plans": ("my plans changed.", "i do not want to go any more."),
}


class Airline(Domain):
    """The user may leave out the reservation id and tells the reason only if asked."""

    name = "airline"
    tools = (
        Tool("get_res", "Look up a reservation.", {"id": "string"}),
        Tool("cancel", "Cancel a reservation.", {"id": "string"}, needs_consent=True),
        Tool(
            "add_bags",
            "Add bags to a reservation for a total fee in dollars.",
            {"id": "string", "n": "integer", "fee": "integer"},
            needs_consent=True,
        ),
    )

    def _draw(self, rng: random.Random) -> None:
        self.max_hours = rng.choice([20, 40, 60])
        self.free_bags_economy = rng.choice([1, 2])
        self.bag_price = rng.choice([20, 30, 50])
        self.reservation_id = f"r{rng.randint(100, 999)}"
        self.gives_id = rng.random() < 0.6
        self.agrees = rng.random() < 0.85
        self.reason = rng.choice(list(_REASONS))
        self.wants_cancel = rng.random() < 0.6
        self.num_new_bags = rng.choice([1, 2])
        reservation = {
            "cabin": rng.choice(["basic", "economy", "economy", "business"]),
            "hours": two_digits(rng, 10, 80),
            "insured": rng.choice(["yes", "no"]),
            "bags": rng.randint(0, 2),
            "status": "open",
        }
        self.db = {"reservations": {self.reservation_id: reservation}, "log": []}
        self.golden_db = copy.deepcopy(self.db)
        self.must_read = [f"get_res:{self.reservation_id}"]
        if self.wants_cancel:
            self._set_golden_cancel(reservation)
        else:
            self._set_golden_bags(reservation)

    def _set_golden_cancel(self, reservation: dict) -> None:
        covered = reservation["insured"] == "yes" and self.reason != "plans"
        if not (self._always_cancellable(reservation) or covered):
            self.must_say = ["cannot"]
        elif not self.agrees:
            self.must_say = ["kept"]
        else:
            golden = self.golden_db["reservations"][self.reservation_id]
            golden["status"] = "cancelled"
            self.golden_db["log"].append(["cancel", self.reservation_id])
            self.must_say = ["done"]

    def _set_golden_bags(self, reservation: dict) -> None:
        fee = self._fee(reservation)
        self.must_say = [f"${fee}", "done" if self.agrees else "kept"]
        if self.agrees:
            golden = self.golden_db["reservations"][self.reservation_id]
            golden["bags"] += self.num_new_bags
            self.golden_db["log"].append(
                ["bags", self.reservation_id, self.num_new_bags, fee]
            )

    def _always_cancellable(self, reservation: dict) -> bool:
        return (
            reservation["hours"] <= self.max_hours or reservation["cabin"] == "business"
        )

    def _free_bags(self, reservation: dict) -> int:
        free = {"basic": 0, "economy": self.free_bags_economy, "business": 3}
        return free[reservation["cabin"]]

    def _fee(self, reservation: dict) -> int:
        bags = reservation["bags"] + self.num_new_bags
        return max(0, bags - self._free_bags(reservation)) * self.bag_price

    def policy(self) -> str:
        return (
            f"airline agent. rules: cancel if booked at most {self.max_hours} hours "
            "ago, or cabin business, or insured and the reason is health or weather; "
            "ask for the reason only if needed. free bags: basic 0, economy "
            f"{self.free_bags_economy}, business 3; each extra bag ${self.bag_price}. "
            "tell the fee. confirm with the user before any change. if not allowed "
            "say cannot. if the user declines say kept. at the end say done."
        )

    # --- Tools --------------------------------------------------------------------

    def get_res(self, id: str) -> str:
        x = self._reservation(id)
        return (
            f"{id} {x['cabin']} hours {x['hours']} insured {x['insured']} "
            f"bags {x['bags']}"
        )

    def cancel(self, id: str) -> str:
        self._reservation(id)["status"] = "cancelled"
        self.db["log"].append(["cancel", id])
        return "ok"

    def add_bags(self, id: str, n: int, fee: int) -> str:
        reservation = self._reservation(id)
        if not (1 <= n <= 5 and 0 <= fee <= 999):
            raise ToolError("n must be 1 to 5, fee 0 to 999")
        reservation["bags"] += n
        self.db["log"].append(["bags", id, n, fee])
        return "ok"

    def _reservation(self, id: str) -> dict:
        if id not in self.db["reservations"]:
            raise ToolError("not found")
        return self.db["reservations"][id]

    # --- User ---------------------------------------------------------------------

    def _opening(self) -> str:
        if self.wants_cancel:
            wish = self.vary(
                "i need to cancel my flight",
                "please cancel my trip",
                "can you cancel my flight",
            )
        else:
            bags = "1 bag" if self.num_new_bags == 1 else f"{self.num_new_bags} bags"
            wish = self.vary(
                f"i want to add {bags} to my flight",
                f"please add {bags} to my trip",
                f"can i take {bags} more",
            )
        if not self.gives_id:
            return f"{wish}."
        return wish + self.vary(
            f", reservation {self.reservation_id}.", f". it is {self.reservation_id}."
        )

    def answer(self, text: str) -> str | None:
        if "confirm" in text:
            return self.consent(self.agrees)
        if "reason" in text:
            return self.vary(*_REASONS[self.reason])
        if "reservation id" in text:
            return self.vary(f"{self.reservation_id}.", f"it is {self.reservation_id}.")
        return None

    # --- Demonstrator -------------------------------------------------------------

    def demonstrate(self, flaws: Flaws) -> Demonstrator:
        if not self.gives_id:
            yield text_message("what is the reservation id?")
        yield tool_message("get_res", id=self.reservation_id)
        reservation = self.db["reservations"][self.reservation_id]
        if self.wants_cancel:
            yield from self._demonstrate_cancel(reservation, flaws)
        else:
            yield from self._demonstrate_bags(reservation, flaws)

    def _demonstrate_cancel(self, reservation: dict, flaws: Flaws) -> Demonstrator:
        found = (
            f"{reservation['cabin']}, hours {reservation['hours']} of {self.max_hours}"
        )
        allowed = self._always_cancellable(reservation)
        if not allowed and reservation["insured"] == "yes":
            if flaws.shortcut():
                allowed = flaws.rng.random() < 0.5
            else:
                yield text_message(f"{found}. what is the reason?")
                allowed = self.reason != "plans"
        if flaws.slip():
            allowed = not allowed
        if not allowed:
            yield text_message(f"{found}. sorry, cannot cancel.")
            return
        if not flaws.shortcut():
            yield text_message(f"{found}. confirm cancel {self.reservation_id}?")
            if not self.agrees:
                yield text_message("ok, kept.")
                return
        yield tool_message("cancel", id=self.reservation_id)
        yield text_message("done.")

    def _demonstrate_bags(self, reservation: dict, flaws: Flaws) -> Demonstrator:
        bags = reservation["bags"] + self.num_new_bags
        free = self._free_bags(reservation)
        extra = flaws.rng.randint(0, 4) if flaws.slip() else max(0, bags - free)
        fee = extra * self.bag_price
        if not flaws.shortcut():
            # Said step by step: a small model does not multiply in its head.
            yield text_message(
                f"{bags} bags, {free} free, {extra} extra x {self.bag_price}: "
                f"the fee is ${fee}. confirm?"
            )
            if not self.agrees:
                yield text_message("ok, kept.")
                return
        yield tool_message(
            "add_bags", id=self.reservation_id, n=self.num_new_bags, fee=fee
        )
        yield text_message("done.")
