"""Telecom: repair mobile data under dual control.

The agent's tools reach the line; the phone and the money are the user's, who acts only
when the agent asks. Data works if both sides are in order.
"""

from __future__ import annotations

import random
import re
from typing import Any, ClassVar

from rllib_llm_async.envs.mini.consent import AMOUNT, named
from rllib_llm_async.envs.mini.domain import (
    Demonstrator,
    Domain,
    Flaws,
    Tool,
    ToolError,
    text_message,
    tool_message,
)

_FAULTS = ("airplane", "data", "phone_roaming", "line_roaming", "bill", "locked", "gb")
_PHONE = {"phone": "string"}


class Telecom(Domain):
    """One or two faults on the line, the phone or both; some users are abroad.

    Users get their number wrong, dispute a transfer, ask for the bill or what is left.
    """

    name = "telecom"
    tools = (
        Tool("get_line", "Look up a line.", _PHONE, after=("number",)),
        Tool("send_bill", "Send the open bill to the user.", _PHONE, changes=True),
        Tool("resume", "Resume a suspended line.", _PHONE, changes=True),
        Tool(
            "refuel",
            "Sell data volume in gigabytes.",
            {"phone": "string", "gb": "integer"},
            changes=True,
            consent=("gb", "phone"),
        ),
        Tool(
            "enable_roaming",
            "Switch roaming on for a line.",
            _PHONE,
            changes=True,
            after=("abroad",),
        ),
        Tool("transfer", "Hand over to a human.", {}, changes=True),
    )
    kinds: ClassVar[dict[str, str]] = {
        "phone": r"p\d{3}",
        "gb": r"\d+(?= gb\b)",
        "amount": AMOUNT,
    }

    def _draw(self, rng: random.Random) -> None:
        self.refuel_gb = rng.choice([1, 2, 3])
        number, error = rng.randint(100, 999), rng.randint(1, 899)
        self.phone = f"p{number}"
        self.wrong_phone = f"p{100 + (number - 100 + error) % 900}"
        self.wants_bill = rng.random() < 0.12
        self.is_abroad = rng.random() < 0.5
        self.tells_abroad = self.is_abroad and rng.random() < 0.5
        self.agrees = rng.random() < 0.8
        self.faults = self._draw_faults(rng)
        # Two faults are long enough.
        is_short = len(self.faults) == 1
        self.mistakes_phone = is_short and rng.random() < 0.25
        is_short &= not self.mistakes_phone
        self.asks_more = is_short and rng.random() < 0.4
        self.disputes = not self.mistakes_phone and rng.random() < 0.4
        line_roaming = self._draw_roaming(rng, "line_roaming")
        phone_roaming = self._draw_roaming(rng, "phone_roaming")
        self.db = {
            "line": {
                "status": "suspended" if self._has("bill", "locked") else "active",
                "bill": rng.randint(11, 59) if self._has("bill") else 0,
                "gb": 0 if self._has("gb") else rng.randint(1, 9),
                "roaming": line_roaming,
            },
            "phone": {
                "airplane": "on" if self._has("airplane") else "off",
                "data": "off" if self._has("data") else "on",
                "roaming": phone_roaming,
            },
            "bill_sent": False,
        }
        self.must_read = [f"get_line:{self.phone}"]
        self.must_learn = ["number"]
        self._decide()

    def _draw_faults(self, rng: random.Random) -> list[str]:
        faults = set(rng.sample(_FAULTS, rng.choice([1, 2])))
        if not self.is_abroad:
            faults -= {"phone_roaming", "line_roaming"}
        if faults >= {"locked", "bill"}:
            faults.remove("bill")
        return sorted(faults) or [rng.choice(["airplane", "data"])]

    def _draw_roaming(self, rng: random.Random, fault: str) -> str:
        if self.is_abroad:
            return "off" if self._has(fault) else "on"
        # It does not matter at home, and must not give the place away.
        return rng.choice(["on", "off"])

    def _has(self, *faults: str) -> bool:
        return any(fault in self.faults for fault in faults)

    def _decide(self) -> None:
        if self.wants_bill:
            bill = f"${self.db['line']['bill']}"
            self.must_say = [{"outcome": "done", "amount": bill}]
            return
        declines = self._has("gb") and not self.agrees
        if self._has("bill"):
            self.must_change += [f"send_bill:{self.phone}", f"resume:{self.phone}"]
        if self._has("locked") or declines:
            if not self._has("locked"):
                arguments = {"phone": self.phone, "gb": self.refuel_gb}
                self.must_offer = self.naming("refuel", arguments)
            self.must_change.append("transfer")
            transferred = {"outcome": "transferred"}
            self.must_say = [transferred, transferred][: 1 + self.disputes]
            return
        if self._has("gb"):
            self.must_change.append(f"refuel:{self.phone}:{self.refuel_gb}")
        if self._has("line_roaming"):
            self.must_change.append(f"enable_roaming:{self.phone}")
        self.must_hear = ["abroad", "phone", *self._wrong_settings()]
        self.must_say = [{"outcome": "done"}]
        if self.asks_more:
            gb = self.refuel_gb if self._has("gb") else self.db["line"]["gb"]
            self.must_say.append({"outcome": "done", "gb": str(gb)})

    def _wrong_settings(self) -> list[str]:
        """What is to be switched on the phone, as "setting value"."""
        wanted = {"airplane": "off", "data": "on"}
        if self.is_abroad:
            wanted["roaming"] = "on"
        phone = self.db["phone"]
        return [f"{k} {v}" for k, v in wanted.items() if phone[k] != v]

    def policy(self) -> str:
        return (
            "telecom agent. rules: look up the line and mend it in this order. "
            "suspended with a bill: send it, ask the user to pay, with the amount, "
            "then resume. suspended without a bill: transfer. 0 gb left: confirm in "
            f"one sentence with the number and {self.refuel_gb} gb, after the yes "
            "refuel at once; if the user declines, transfer. ask if the user is "
            "abroad unless told; if so, line roaming and phone roaming must be on. "
            "only the user can change the phone: ask to check it, then to switch "
            "only what is wrong: airplane off, data on or roaming on. at the end say "
            "done, or transferred and stay with it. if asked for the bill or what is "
            "left say done and the amount or the gb."
        )

    # --- Tools --------------------------------------------------------------------

    def get_line(self, phone: str) -> str:
        line = self._line(phone)
        return (
            f"{phone} {line['status']} bill ${line['bill']} gb {line['gb']} "
            f"roaming {line['roaming']}"
        )

    def send_bill(self, phone: str) -> str:
        if not self._line(phone)["bill"]:
            raise ToolError("no bill")
        self.db["bill_sent"] = True
        return "ok"

    def resume(self, phone: str) -> str:
        if self._line(phone)["bill"] or self._has("locked"):
            raise ToolError("not allowed")
        self._line(phone)["status"] = "active"
        return "ok"

    def refuel(self, phone: str, gb: int) -> str:
        line = self._line(phone)
        if not 1 <= gb <= 9:
            raise ToolError("gb must be 1 to 9")
        line["gb"] = gb
        return "ok"

    def enable_roaming(self, phone: str) -> str:
        self._line(phone)["roaming"] = "on"
        return "ok"

    def transfer(self) -> str:
        return "ok"

    def _line(self, phone: str) -> dict:
        if phone != self.phone:
            raise ToolError("not found")
        return self.db["line"]

    def naming(self, name: str, arguments: dict[str, Any]) -> dict[str, str]:
        return {"phone": arguments["phone"], "gb": str(arguments["gb"])}

    # --- User ---------------------------------------------------------------------

    def _opening(self) -> str:
        if self.wants_bill:
            wish = self.vary(
                "how much is my bill?",
                "hello, i want to know what i have to pay.",
                "is there an open bill?",
            )
        else:
            wish = self.vary(
                "my mobile data does not work.",
                "i have no internet.",
                "help, my phone is offline.",
                "hello, no page loads on my phone.",
                "since this morning i cannot get online.",
            )
        number = self.wrong_phone
        if not self.mistakes_phone:
            self.learned.add("number")
            number = self.phone
        wish += self.vary(
            f" my number is {number}.", f" i am {number}.", f" it is {number}."
        )
        if not self.tells_abroad:
            return wish
        return wish + self.tell(
            "abroad",
            " i am abroad.",
            " i am abroad on holiday.",
            " i am abroad for work.",
        )

    def go_on(self) -> str:
        if self.must_say[0]["outcome"] == "transferred":
            return super().go_on()
        return self.vary(
            "how many gb do i have left?",
            "thanks, and how much data is left?",
            "one more thing, what volume do i have now?",
        )

    def answer(self, text: str) -> str | None:
        if "pay" in text:
            return self._pay(text)
        if "your number" in text:
            return self._tell_number()
        if "abroad" in text:
            if self.is_abroad:
                return self.tell(
                    "abroad",
                    "yes, i am abroad.",
                    "yes, on holiday.",
                    "yes, visiting family.",
                )
            return self.tell(
                "abroad", "no, i am at home.", "no.", "no, i did not travel."
            )
        if "check" in text:
            settings = ", ".join(f"{k} {v}" for k, v in self.db["phone"].items())
            return self.tell("phone", f"{settings}.", f"it says {settings}.")
        if "switch" in text:
            return self._switch(text)
        return None

    def _tell_number(self) -> str:
        p = self.phone
        if self.mistakes_phone:
            return self.tell(
                "number", f"sorry, i meant {p}.", f"oh, {p}.", f"my mistake, {p}."
            )
        return f"{p}."

    def _pay(self, text: str) -> str:
        line = self.db["line"]
        if not self.db["bill_sent"]:
            return self.vary("i have no bill.", "which bill?", "i got none.")
        if named(text, {"amount": AMOUNT}) != {"amount": f"${line['bill']}"}:
            return self.vary("how much?", "that is not what the bill says.")
        line["bill"] = 0
        return self.vary(
            "ok, paid.", "i paid it.", "done, it is paid.", "the money is sent."
        )

    def _switch(self, text: str) -> str:
        asked = re.findall(r"\b((airplane|data|roaming) (on|off))\b", text)
        if "phone" not in self.learned:
            self.breaches.add("switched unchecked")
        for words, setting, value in asked:
            if words not in self._wrong_settings():
                self.breaches.add("switched needlessly")
            self.db["phone"][setting] = value
            self.learned.add(words)
        return self.vary("ok.", "ok, i did that.", "done.", "that is changed now.")

    # --- Demonstrator -------------------------------------------------------------

    def demonstrate(self, flaws: Flaws) -> Demonstrator:
        if self.mistakes_phone:
            yield tool_message("get_line", phone=self.wrong_phone)
            yield text_message("not found. what is your number?")
        yield tool_message("get_line", phone=self.phone)
        if self.wants_bill:
            yield text_message(f"done, ${self.db['line']['bill']}.")
            return
        yield from self._demonstrate_repair(flaws)
        yield text_message("done.")
        yield text_message(f"done, {self.db['line']['gb']} gb.")

    def _demonstrate_repair(self, flaws: Flaws) -> Demonstrator:
        line = self.db["line"]
        if line["status"] == "suspended":
            if bool(line["bill"]) == flaws.slip():
                yield from _hand_over()
                return
            yield tool_message("send_bill", phone=self.phone)
            if not flaws.shortcut():
                yield text_message(f"please pay the bill of ${line['bill']}.")
            yield tool_message("resume", phone=self.phone)
        if line["gb"] == 0:
            if not flaws.shortcut():
                offer = f"refuel {self.refuel_gb} gb for {self.phone}"
                yield text_message(f"0 gb left. confirm {offer}?")
                if not self.agreed:
                    yield from _hand_over()
                    return
            yield tool_message("refuel", phone=self.phone, gb=self.refuel_gb)
        is_abroad = self.tells_abroad
        if not self.tells_abroad and not flaws.shortcut():
            yield text_message("are you abroad?")
            is_abroad = self.is_abroad
        if is_abroad and line["roaming"] == "off":
            yield tool_message("enable_roaming", phone=self.phone)
        if not flaws.shortcut():
            yield from self._demonstrate_phone(is_abroad, flaws)

    def _demonstrate_phone(self, is_abroad: bool, flaws: Flaws) -> Demonstrator:
        yield text_message("please check the phone.")
        wrong = self._wrong_settings()
        if not is_abroad:
            wrong = [words for words in wrong if words != "roaming on"]
        if wrong and flaws.slip():
            wrong.remove(flaws.rng.choice(wrong))
        if wrong:
            yield text_message(f"please switch {', '.join(wrong)}.")


def _hand_over() -> Demonstrator:
    yield tool_message("transfer")
    yield text_message("transferred.")
    yield text_message("sorry, transferred.")
