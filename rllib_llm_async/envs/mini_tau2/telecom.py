"""Telecom: repair mobile data under dual control.

The agent's tools reach the line; the phone and the money are the user's, who acts only
when the agent asks. Data works if both sides are in order.
"""

from __future__ import annotations

import random
import re
from typing import Any

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
    """One or two faults on the line, the phone or both; some users are abroad."""

    name = "telecom"
    tools = (
        Tool("get_line", "Look up a line.", _PHONE),
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
    kinds = {"phone": r"p\d{3}", "gb": r"\d+(?= gb\b)", "amount": AMOUNT}

    def _draw(self, rng: random.Random) -> None:
        self.refuel_gb = rng.choice([1, 2, 3])
        self.phone = f"p{rng.randint(100, 999)}"
        self.is_abroad = rng.random() < 0.5
        self.tells_abroad = self.is_abroad and rng.random() < 0.5
        self.agrees = rng.random() < 0.8
        self.faults = self._draw_faults(rng)
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
        declines = self._has("gb") and not self.agrees
        if self._has("bill"):
            self.must_change += [f"send_bill:{self.phone}", f"resume:{self.phone}"]
        if self._has("locked") or declines:
            if not self._has("locked"):
                arguments = {"phone": self.phone, "gb": self.refuel_gb}
                self.must_offer = self.naming("refuel", arguments)
            self.must_change.append("transfer")
            self.must_say = [{"outcome": "transferred"}]
            return
        if self._has("gb"):
            self.must_change.append(f"refuel:{self.phone}:{self.refuel_gb}")
        if self._has("line_roaming"):
            self.must_change.append(f"enable_roaming:{self.phone}")
        self.must_hear = ["abroad", "phone", *self._wrong_settings()]
        self.must_say = [{"outcome": "done"}]

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
            "done, or transferred."
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
        trouble = self.vary(
            "my mobile data does not work.",
            "i have no internet.",
            "help, my phone is offline.",
        )
        number = self.vary(f" my number is {self.phone}.", f" i am {self.phone}.")
        if not self.tells_abroad:
            return trouble + number
        abroad = self.tell("abroad", " i am abroad.", " i am abroad on holiday.")
        return trouble + number + abroad

    def answer(self, text: str) -> str | None:
        if "pay" in text:
            return self._pay(text)
        if "abroad" in text:
            if self.is_abroad:
                return self.tell("abroad", "yes, i am abroad.", "yes, on holiday.")
            return self.tell("abroad", "no, i am at home.", "no.")
        if "check" in text:
            settings = ", ".join(f"{k} {v}" for k, v in self.db["phone"].items())
            return self.tell("phone", f"{settings}.")
        if "switch" in text:
            return self._switch(text)
        return None

    def _pay(self, text: str) -> str:
        line = self.db["line"]
        if not self.db["bill_sent"]:
            return self.vary("i have no bill.", "which bill?")
        if named(text, {"amount": AMOUNT}) != {"amount": f"${line['bill']}"}:
            return self.vary("how much?", "that is not what the bill says.")
        line["bill"] = 0
        return self.vary("ok, paid.", "i paid it.", "done, it is paid.")

    def _switch(self, text: str) -> str:
        asked = re.findall(r"\b((airplane|data|roaming) (on|off))\b", text)
        if "phone" not in self.learned:
            self.breaches.add("switched unchecked")
        for words, setting, value in asked:
            if words not in self._wrong_settings():
                self.breaches.add("switched needlessly")
            self.db["phone"][setting] = value
            self.learned.add(words)
        return self.vary("ok.", "ok, i did that.", "done.")

    # --- Demonstrator -------------------------------------------------------------

    def demonstrate(self, flaws: Flaws) -> Demonstrator:
        yield tool_message("get_line", phone=self.phone)
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
        yield text_message("done.")

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
