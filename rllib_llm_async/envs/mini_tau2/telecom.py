"""Telecom: repair mobile data under dual control.

The agent's tools reach the line; the phone and the money are the user's, who acts only
when the agent asks. Data works if both sides are in order.
"""

from __future__ import annotations

import copy
import random
import re

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
        Tool("send_bill", "Send the open bill to the user.", _PHONE),
        Tool("resume", "Resume a suspended line.", _PHONE),
        Tool(
            "refuel",
            "Sell data volume in gigabytes.",
            {"phone": "string", "gb": "integer"},
            needs_consent=True,
        ),
        Tool("enable_roaming", "Switch roaming on for a line.", _PHONE),
        Tool("transfer", "Hand over to a human.", {}),
    )

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
            "transferred": False,
        }
        self.golden_db = copy.deepcopy(self.db)
        self.must_read = [f"get_line:{self.phone}"]
        self._set_golden()

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

    def _set_golden(self) -> None:
        golden = self.golden_db
        if not self._has("locked"):
            if self._has("bill"):
                golden["bill_sent"] = True
                golden["line"].update(status="active", bill=0)
            if not self._has("gb") or self.agrees:
                if self._has("gb"):
                    golden["line"]["gb"] = self.refuel_gb
                golden["phone"].update(airplane="off", data="on")
                if self.is_abroad:
                    golden["line"]["roaming"] = golden["phone"]["roaming"] = "on"
                self.must_say = ["done"]
                return
        golden["transferred"] = True
        self.must_say = ["transferred"]

    def policy(self) -> str:
        return (
            "telecom agent. rules: look up the line. suspended with a bill: send it, "
            "ask the user to pay, then resume. suspended without a bill: transfer. "
            f"0 gb left: ask, then refuel {self.refuel_gb} gb; if the user declines, "
            "transfer. if the user is abroad, line roaming and phone roaming must be "
            "on. only the user can change the phone: ask to check it, then to switch "
            "airplane off, data on or roaming on. at the end say done, or "
            "transferred."
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
        self.db["transferred"] = True
        return "ok"

    def _line(self, phone: str) -> dict:
        if phone != self.phone:
            raise ToolError("not found")
        return self.db["line"]

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
        return trouble + number + self.vary(" i am abroad.", " i am abroad on holiday.")

    def answer(self, text: str) -> str | None:
        if "refuel" in text:
            return self.consent(self.agrees)
        if "pay" in text:
            return self._pay()
        if "abroad" in text:
            if self.is_abroad:
                return self.vary("yes, i am abroad.", "yes, on holiday.")
            return self.vary("no, i am at home.", "no.")
        if "check" in text:
            return ", ".join(f"{k} {v}" for k, v in self.db["phone"].items()) + "."
        if "switch" in text:
            return self._switch(text)
        return None

    def _pay(self) -> str:
        if not self.db["bill_sent"]:
            return self.vary("i have no bill.", "which bill?")
        self.db["line"]["bill"] = 0
        return self.vary("ok, paid.", "i paid it.", "done, it is paid.")

    def _switch(self, text: str) -> str:
        for setting, value in re.findall(r"(airplane|data|roaming) (on|off)", text):
            self.db["phone"][setting] = value
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
                yield text_message(f"0 gb left. may i refuel {self.refuel_gb} gb?")
                if not self.agrees:
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
        wanted = {"airplane": "off", "data": "on"}
        if is_abroad:
            wanted["roaming"] = "on"
        wrong = [k for k, v in wanted.items() if self.db["phone"][k] != v]
        if wrong and flaws.slip():
            wrong.remove(flaws.rng.choice(wrong))
        if wrong:
            switches = ", ".join(f"{k} {wanted[k]}" for k in wrong)
            yield text_message(f"please switch {switches}.")


def _hand_over() -> Demonstrator:
    yield tool_message("transfer")
    yield text_message("transferred.")
