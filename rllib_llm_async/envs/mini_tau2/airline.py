"""Airline: cancel a reservation or add bags, under a policy drawn for each task."""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import Any, ClassVar

from rllib_llm_async.envs.agent_env import Message
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

_REASONS = {
    "health": (
        "i am ill.",
        "i have the flu.",
        "my doctor told me not to fly.",
        "i broke my leg.",
    ),
    "weather": (
        "there is a storm.",
        "the roads are full of snow.",
        "the airport is under fog.",
        "heavy rain is on its way.",
    ),
    "plans": (
        "my plans changed.",
        "i do not want to go any more.",
        "i found a cheaper hotel elsewhere.",
        "a meeting came up at work.",
    ),
}


class Airline(Domain):
    """Users leave out the id or get it wrong, and tell the reason only if asked.

    They dispute a refusal, take another number of bags when they hear the fee, and ask
    whether they are insured.
    """

    name = "airline"
    tools = (
        Tool("get_res", "Look up a reservation.", {"id": "string"}, after=("id",)),
        Tool(
            "cancel",
            "Cancel a reservation.",
            {"id": "string"},
            changes=True,
            consent=("action", "id"),
        ),
        Tool(
            "add_bags",
            "Add bags to a reservation for a total fee in dollars.",
            {"id": "string", "n": "integer", "fee": "integer"},
            changes=True,
            consent=("bags", "id", "amount"),
        ),
    )
    kinds: ClassVar[dict[str, str]] = {
        "action": "(cancel)(?:led|ling)?",
        "id": r"r\d{3}",
        "bags": r"\d+(?= bags?\b)",
        "amount": AMOUNT,
        "insured": r"(?<=\binsured )(?:yes|no)",
    }

    def _draw(self, rng: random.Random) -> None:
        self.max_hours = rng.choice([20, 40, 60])
        self.free_bags_economy = rng.choice([1, 2])
        self.bag_price = rng.choice([20, 30, 50])
        number, error = rng.randint(100, 999), rng.randint(1, 899)
        self.reservation_id = f"r{number}"
        self.wrong_id = f"r{100 + (number - 100 + error) % 900}"
        self.gives_id = rng.random() < 0.65
        self.mistakes_id = self.gives_id and rng.random() < 0.25
        self.disputes = not self.mistakes_id and rng.random() < 0.4
        self.asks_more = not self.mistakes_id and rng.random() < 0.25
        self.agrees = rng.random() < 0.85
        self.reason = rng.choice(list(_REASONS))
        wants = ["cancel"] * 5 + ["bags"] * 4 + ["insurance"]
        self.wants = rng.choice(wants)
        self.num_new_bags = self.num_wanted_bags = rng.choice([1, 2])
        if self.wants == "bags" and rng.random() < 0.3:
            #: What the user takes who hears the fee.
            self.num_wanted_bags = 3 - self.num_new_bags
            self.must_hear = ["other number"]
        self.reservation: dict[str, Any] = {
            "cabin": rng.choice(["basic", "economy", "economy", "business"]),
            "hours": near(rng, self.max_hours, 10, 80),
            "insured": rng.choice(["yes", "no"]),
            "bags": rng.randint(0, 2),
        }
        self.db = {"reservations": {self.reservation_id: self.reservation}}
        self.must_read = [f"get_res:{self.reservation_id}"]
        self.must_learn = ["id"]
        self.needs_reason = (
            self.wants == "cancel"
            and not self._always_cancellable()
            and self.reservation["insured"] == "yes"
        )
        if self.needs_reason:
            self.must_learn.append("reason")
        self._decide()

    def _decide(self) -> None:
        covered = self.needs_reason and self.reason != "plans"
        insured = {"outcome": "done", "insured": self.reservation["insured"]}
        if self.wants == "insurance":
            self.must_say = [insured]
            return
        if self.wants == "cancel" and not (self._always_cancellable() or covered):
            refusal = {"outcome": "cannot"}
            self.must_say = [refusal, refusal] if self.disputes else [refusal]
            return
        name, arguments = self._change(self.num_wanted_bags)
        if not self.agrees:
            self.must_offer = self.naming(name, arguments)
            self.must_say = [{"outcome": "kept"}]
            return
        self.must_change = [":".join([name, *map(str, arguments.values())])]
        self.must_say = [{"outcome": "done"}]
        if self.wants == "bags":
            self.must_say[0]["amount"] = f"${arguments['fee']}"
        if self.asks_more:
            self.must_say.append(insured)

    def _change(self, num_bags: int) -> tuple[str, dict[str, Any]]:
        """The call that does what the user wants."""
        if self.wants == "cancel":
            return "cancel", {"id": self.reservation_id}
        fee = self._num_extra_bags(num_bags) * self.bag_price
        arguments = {"id": self.reservation_id, "n": num_bags, "fee": fee}
        return "add_bags", arguments

    def _always_cancellable(self) -> bool:
        return (
            self.reservation["hours"] <= self.max_hours
            or self.reservation["cabin"] == "business"
        )

    def _num_free_bags(self) -> int:
        free = {"basic": 0, "economy": self.free_bags_economy, "business": 3}
        return free[self.reservation["cabin"]]

    def _num_extra_bags(self, num_new_bags: int) -> int:
        bags = self.reservation["bags"] + num_new_bags
        return max(0, bags - self._num_free_bags())

    def policy(self) -> str:
        return (
            "airline agent. rules: ask for the reservation id unless told, then look "
            f"it up. cancel if booked at most {self.max_hours} hours ago, or cabin "
            "business, or insured and the reason is health or weather; ask for the "
            "reason only if it decides, after the look-up. free bags: basic 0, "
            f"economy {self.free_bags_economy}, business 3; each extra bag "
            f"${self.bag_price}. before any change confirm in one sentence with "
            "cancel and the id, or the number of new bags, the id and the fee; "
            "after the yes do it at once. if not allowed say cannot and stay with it. "
            "if the user declines say kept. at the end say done and, for bags, the "
            "fee. if asked about insurance say done, insured yes or insured no."
        )

    # --- Tools --------------------------------------------------------------------

    def get_res(self, id: str) -> str:
        x = self._reservation(id)
        return (
            f"{id} {x['cabin']} hours {x['hours']} insured {x['insured']} "
            f"bags {x['bags']}"
        )

    def cancel(self, id: str) -> str:
        self._reservation(id)
        return "ok"

    def add_bags(self, id: str, n: int, fee: int) -> str:
        reservation = self._reservation(id)
        if not (1 <= n <= 5 and 0 <= fee <= 999):
            raise ToolError("n must be 1 to 5, fee 0 to 999")
        reservation["bags"] += n
        return "ok"

    def _reservation(self, id: str) -> dict:
        if id not in self.db["reservations"]:
            raise ToolError("not found")
        return self.db["reservations"][id]

    def naming(self, name: str, arguments: dict[str, Any]) -> dict[str, str]:
        if name == "cancel":
            return {"action": "cancel", "id": arguments["id"]}
        return {
            "bags": str(arguments["n"]),
            "id": arguments["id"],
            "amount": f"${arguments['fee']}",
        }

    # --- User ---------------------------------------------------------------------

    def _opening(self) -> str:
        if self.wants == "cancel":
            wish = self.vary(
                "i need to cancel my flight",
                "please cancel my trip",
                "can you cancel my flight",
                "hello, i cannot travel, so cancel my ticket",
                "i have to cancel the journey i booked",
            )
        elif self.wants == "insurance":
            wish = self.vary(
                "is my flight insured",
                "hello, did i buy insurance for my trip",
                "i forgot whether i have insurance",
            )
        else:
            bags = "1 bag" if self.num_new_bags == 1 else f"{self.num_new_bags} bags"
            wish = self.vary(
                f"i want to add {bags} to my flight",
                f"please add {bags} to my trip",
                f"can i take {bags} more",
                f"hello, i will bring {bags} on my journey",
                f"how much would {bags} be for my flight",
            )
        if self.mistakes_id:
            return f"{wish}. it is {self.wrong_id}."
        if not self.gives_id:
            return f"{wish}."
        id = self.reservation_id
        return wish + self.tell(
            "id", f", reservation {id}.", f". it is {id}.", f". my number is {id}."
        )

    def wish(self) -> dict[str, str]:
        if self.wants == "bags":
            return {"bags": str(self.num_new_bags), "id": self.reservation_id}
        return {"action": self.wants, "id": self.reservation_id}

    def true_offer(self) -> dict[str, str]:
        if self.wants == "bags":
            return self.naming(*self._change(self.num_new_bags))
        return {}

    def think_again(self) -> str | None:
        if self.num_new_bags == self.num_wanted_bags:
            return None
        n = self.num_new_bags = self.num_wanted_bags
        return self.tell(
            "other number",
            f"on second thoughts make it {n}.",
            f"oh, then i take {n} instead.",
            f"hm, i changed my mind, {n} please.",
        )

    def go_on(self) -> str:
        if self.must_say[0]["outcome"] == "cannot":
            return super().go_on()
        return self.vary(
            "and am i insured?",
            "thank you. is there any insurance on it?",
            "one more thing, did i buy insurance?",
        )

    def answer(self, text: str) -> str | None:
        if "reason" in text:
            if not self.needs_reason or not set(self.must_read) <= set(self.calls):
                self.breaches.add("reason asked needlessly")
            return self.tell("reason", *_REASONS[self.reason])
        if "reservation id" in text:
            id = self.reservation_id
            if self.mistakes_id:
                return self.tell(
                    "id", f"sorry, i meant {id}.", f"oh, {id}.", f"my mistake, {id}."
                )
            return self.tell("id", f"{id}.", f"it is {id}.", f"here it is: {id}.")
        return None

    # --- Demonstrator -------------------------------------------------------------

    def demonstrate(self, flaws: Flaws) -> Demonstrator:
        if self.mistakes_id:
            yield tool_message("get_res", id=self.wrong_id)
            yield text_message("not found. what is the reservation id?")
        elif not self.gives_id:
            yield text_message("what is the reservation id?")
        yield tool_message("get_res", id=self.reservation_id)
        insured = f"done, insured {self.reservation['insured']}."
        if self.wants == "cancel":
            yield from self._demonstrate_cancel(flaws)
        elif self.wants == "bags":
            yield from self._demonstrate_bags(flaws)
        # What a question about insurance is answered with, whenever it comes.
        yield text_message(insured)

    def _demonstrate_cancel(self, flaws: Flaws) -> Demonstrator:
        x = self.reservation
        found = x["cabin"]
        allowed = self._always_cancellable()
        if x["cabin"] != "business":
            found += f", hours {compare(x['hours'], self.max_hours)}"
        if not allowed:
            found += f", insured {x['insured']}"
        if self.needs_reason:
            if flaws.shortcut():
                allowed = flaws.rng.random() < 0.5
            else:
                yield text_message(f"{found}. what is the reason?")
                found = self.reason
                allowed = self.reason != "plans"
        if flaws.slip():
            allowed = not allowed
        if not allowed:
            yield text_message(f"{found}. sorry, cannot cancel.")
            yield text_message("sorry, cannot cancel.")
            return
        if not flaws.shortcut():
            yield text_message(f"{found}. confirm cancel {self.reservation_id}?")
            if not self.agreed:
                yield text_message("ok, kept.")
                return
        yield tool_message("cancel", id=self.reservation_id)
        yield text_message("done.")

    def _demonstrate_bags(self, flaws: Flaws) -> Demonstrator:
        fee = self._num_extra_bags(self.num_new_bags) * self.bag_price
        while not (self.agreed or flaws.shortcut()):
            fee = yield from self._offer_bags(flaws)
            if self.declined:
                yield text_message("ok, kept.")
                return
        yield tool_message(
            "add_bags", id=self.reservation_id, n=self.num_new_bags, fee=fee
        )
        yield text_message(f"done, ${fee}.")

    def _offer_bags(self, flaws: Flaws) -> Generator[Message, list[Message], int]:
        """Says step by step what a small model does not compute in its head."""
        old, new = self.reservation["bags"], self.num_new_bags
        free = self._num_free_bags()
        extra = flaws.rng.randint(0, 4) if flaws.slip() else self._num_extra_bags(new)
        bags = "1 bag" if new == 1 else f"{new} bags"
        yield text_message(
            f"{old} and {new} are {compare(old + new, free)}: {extra} extra x "
            f"{self.bag_price}. confirm {bags} for {self.reservation_id}, "
            f"${extra * self.bag_price}?"
        )
        return extra * self.bag_price
