"""Who breaks a sentence of a written policy earns nothing; who keeps them all earns 1.

Each cheat is perfect but for the one sentence beside it, which the policy must hold
("#" stands for a number).
"""

import json
import re

import pytest

from rllib_llm_async.envs.mini.mixture import MiniMixtureSuite
from tests.envs.mini_cheats import (
    all_at_once,
    asked_needlessly,
    early,
    ending,
    first,
    inserted,
    late,
    perfect,
    play,
    reworded,
    swapped,
    twice,
    with_argument,
    without,
    without_last,
)

pytestmark = pytest.mark.thorough

EVERY_AMOUNT = " ".join(f"${n}" for n in range(300))
EVERY_ID = " ".join(f"r{n}" for n in range(100, 1000))
EVERY_ORDER = " ".join(
    f"{item}{n}"
    for item in ("book", "chair", "desk", "jacket", "kettle", "lamp", "phone", "watch")
    for n in range(10)
)

#: By domain: a sentence, and cheats that break it.
CHEATS = {
    "retail": [
        ("and stay with it", [ending("done.", "^sorry"), ending("kept.", "^sorry")]),
        (
            "if asked where an order is, look it up, say done, the order and its",
            [
                without_last("get_order"),
                reworded(r"(done, \w+\d) \w+\.$", r"\1."),
                reworded(r"(done, \w+\d) .*", r"\1 pending shipped delivered."),
                reworded(r"done, (?!\w+ \$)\w+\d", "done,"),
            ],
        ),
        (
            "ask for the user id unless told",
            [
                without("user id"),
                reworded("what is your user id", "which"),
                first(tool="list_orders"),
                asked_needlessly("user id?", "user id", {"tool": "list_orders"}),
            ],
        ),
        ("list the orders, then look up the order", [without(tool="list_orders")]),
        (
            "then look up the order",
            [without(tool="get_order"), first(tool="get_order")],
        ),
        (
            "if several fit name them and ask which",
            [
                without("which"),
                reworded("which one,.*", "which one?"),
                asked_needlessly("which one?", "which", {"tool": "get_order"}),
            ],
        ),
        ("cancel only if pending", [ending("done, refund $20.", "cannot cancel")]),
        ("age at most # days", [ending("done, refund $20.", "cannot return: age")]),
        (
            "goes to gift, else to card",
            [
                with_argument(
                    "return_order", "to", {"gift": "card", "card": "gift"}.get
                ),
                reworded("to (gift|card)", "to gift or card"),
            ],
        ),
        (
            "before any change confirm in one sentence",
            [
                without("confirm"),
                reworded(".*confirm.*", "confirm?"),
                reworded("confirm (.*)", r"\1 confirm?"),
                reworded("confirm", "shall i"),
                swapped("confirm", "cancel|return_order"),
                first("confirm"),
                all_at_once,
            ],
        ),
        (
            "with cancel or return, the order",
            [
                reworded(r"confirm (cancel|return)", "confirm"),
                reworded(r"confirm (cancel|return)", "confirm cancel or return"),
                reworded(r"(confirm \w+) \w+\d", r"\1"),
                reworded(r"(confirm \w+) (\w+\d)", rf"\1 {EVERY_ORDER}"),
                reworded(r"(confirm \w+) (\w+\d)", r"\1 \g<2>0"),
                with_argument("cancel|return_order", "order", lambda order: order[:-1]),
            ],
        ),
        (
            "the refund",
            [
                reworded(r"(confirm .*), \$\d+", r"\1"),
                reworded(r"(confirm .*\$\d+)", r"\g<1>0"),
                reworded(r"(confirm .*)\$\d+", rf"\1{EVERY_AMOUNT}"),
            ],
        ),
        ("gift or card", [reworded(r"(confirm return .*) to \w+\?", r"\1?")]),
        (
            "after the yes do it at once",
            [
                twice("cancel|return_order"),
                inserted("one moment.", tool="cancel|return_order"),
            ],
        ),
        (
            "if a rule forbids it say cannot and why, status or else age",
            [
                ending("sorry, cannot.", "cannot"),
                ending("cannot: status or age.", "cannot"),
                ending("cannot: unstatused, aged.", "cannot"),
                ending("ok, kept.", "cannot"),
            ],
        ),
        (
            "if the user declines say kept",
            [ending("sorry, cannot: status.", "kept"), ending("done.", "kept")],
        ),
        (
            "at the end say done and the refund",
            [
                ending("done.", "done"),
                ending(f"done, refund {EVERY_AMOUNT}.", "done"),
                ending("done cannot kept transferred.", "done"),
                ending("good bye.", "done"),
            ],
        ),
    ],
    "airline": [
        ("and stay with it", [ending("done.", "^sorry"), ending("kept.", "^sorry")]),
        (
            "if asked about insurance say done, insured yes or insured no",
            [
                reworded("done, insured .*", "done."),
                reworded("done, insured .*", "done, insured yes or insured no."),
            ],
        ),
        (
            "ask for the reservation id unless told",
            [
                without("reservation id"),
                reworded("what is the reservation id", "confirm"),
                first(tool="get_res"),
                asked_needlessly("reservation id?", "ation id", {"tool": "get_res"}),
            ],
        ),
        ("then look it up", [without(tool="get_res")]),
        ("cancel if booked at most # hours ago", [ending("done.", "cannot")]),
        (
            "ask for the reason only if it decides, after the look-up",
            [
                without("reason"),
                first("reason"),
                asked_needlessly("the reason?", "reason", {"pattern": "confirm"}),
                all_at_once,
            ],
        ),
        (
            "each extra bag $#",
            [with_argument("add_bags", "fee", lambda fee: 0 if fee else 50)],
        ),
        (
            "before any change confirm in one sentence",
            [
                without("confirm"),
                reworded(".*confirm.*", "confirm?"),
                reworded("confirm (.*)", r"\1 confirm?"),
                reworded("confirm", "shall i"),
                swapped("confirm", "cancel|add_bags"),
                first("confirm"),
            ],
        ),
        (
            "with cancel and the id",
            [
                reworded("confirm cancel", "confirm"),
                reworded(r"(confirm cancel) r\d+", r"\1"),
                reworded(r"(confirm cancel r\d+)", r"\g<1>0"),
                reworded(r"(confirm cancel) r\d+", rf"\1 {EVERY_ID}"),
            ],
        ),
        (
            "the number of new bags, the id and the fee",
            [
                reworded(r"confirm \d bags?", "confirm bags"),
                reworded(r"confirm \d bags?", "confirm 1 bag 2 bags"),
                reworded(r"(confirm .*) for r\d+", r"\1"),
                reworded(r"(confirm .*), \$\d+", r"\1"),
                reworded(r"(confirm .*\$\d+)", r"\g<1>0"),
                reworded(r"(confirm .*)\$\d+", rf"\1{EVERY_AMOUNT}"),
            ],
        ),
        (
            "after the yes do it at once",
            [twice("cancel|add_bags"), inserted("one moment.", tool="cancel|add_bags")],
        ),
        (
            "if not allowed say cannot",
            [ending("ok, kept.", "cannot"), ending("cannot, done.", "cannot")],
        ),
        (
            "if the user declines say kept",
            [ending("sorry, cannot.", "kept"), ending("done.", "kept")],
        ),
        (
            "at the end say done and, for bags, the fee",
            [
                ending("done.", r"done, \$"),
                ending(f"done, {EVERY_AMOUNT}.", r"done, \$"),
                ending("abandoned.", "done"),
                ending("good bye.", "done"),
                ending("done, kept.", "done"),
            ],
        ),
    ],
    "telecom": [
        ("and stay with it", [ending("done.", "^sorry"), ending("kept.", "^sorry")]),
        (
            "if asked for the bill or what is left say done and the amount or the gb",
            [
                reworded(r"done, \$\d+", f"done, {EVERY_AMOUNT}"),
                reworded(r"(done, \$\d+)", r"\g<1>0"),
                reworded(r"done, \d gb", "done, 1 gb 2 gb 3 gb 4 gb 5 gb"),
                reworded(r"(done, \d) gb", r"\1"),
            ],
        ),
        ("look up the line", [without(tool="get_line")]),
        (
            "in this order",
            [first(tool="enable_roaming"), first(tool="resume"), first(tool="refuel")],
        ),
        ("with a bill: send it", [without(tool="send_bill")]),
        (
            "ask the user to pay, with the amount",
            [
                without("pay"),
                reworded("please pay.*", "please pay."),
                reworded(r"(please pay.*\$\d+)", r"\g<1>0"),
                reworded("please pay.*", f"please pay {EVERY_AMOUNT}."),
            ],
        ),
        ("then resume", [without(tool="resume")]),
        (
            "suspended without a bill: transfer",
            [without(tool="transfer"), twice("transfer")],
        ),
        (
            "confirm in one sentence",
            [
                without("confirm"),
                reworded(".*confirm.*", "confirm?"),
                reworded("confirm", "may i"),
                swapped("confirm", "refuel"),
                first("confirm"),
                all_at_once,
            ],
        ),
        (
            "with the number and # gb",
            [
                reworded(r"(confirm .*) for p\d+", r"\1"),
                reworded(r"(confirm .*p\d+)", r"\g<1>0"),
                reworded(r"confirm refuel \d gb", "confirm refuel"),
                reworded(r"confirm refuel \d gb", "confirm refuel 1 gb 2 gb 3 gb"),
                with_argument("refuel", "gb", lambda gb: gb % 3 + 1),
            ],
        ),
        (
            "after the yes refuel at once",
            [twice("refuel"), inserted("one moment.", tool="refuel")],
        ),
        ("if the user declines, transfer", [ending("done.", "transferred")]),
        (
            "ask if the user is abroad unless told",
            [
                without("abroad"),
                asked_needlessly("are you abroad?", "abroad", {"pattern": "check"}),
            ],
        ),
        ("line roaming and phone roaming must be on", [without(tool="enable_roaming")]),
        ("ask to check it", [without("check")]),
        (
            "then to switch only what is wrong",
            [
                without("switch"),
                first("switch"),
                reworded(
                    "please switch.*", "switch airplane off, data on, roaming on."
                ),
                reworded("(please switch.*)", r"\1 and switch airplane on."),
            ],
        ),
        (
            "at the end say done, or transferred",
            [
                ending("good bye.", "done|transferred"),
                first("^done.$"),
                ending("done, transferred.", "done|transferred"),
                ending("cannot.", "done|transferred"),
            ],
        ),
    ],
    "delivery": [
        ("and stay with it", [ending("done.", "^sorry"), ending("kept.", "^sorry")]),
        (
            "if asked for the price say done and the price",
            [
                reworded(r"done, \$\d+", f"done, {EVERY_AMOUNT}"),
                reworded(r"(done, \$\d+)", r"\g<1>0"),
            ],
        ),
        ("look up the diet in the profile", [without(tool="profile")]),
        (
            "then the offers of the dish",
            [without(tool="search"), first(tool="search")],
        ),
        (
            "ask for the budget",
            [without("budget"), reworded("your budget( and )?", "")],
        ),
        (
            "for the place, home or work, unless told",
            [
                reworded("( and )?the place, home or work", ""),
                asked_needlessly("home or work?", "the place", {"pattern": "confirm"}),
            ],
        ),
        (
            "take the first within diet and budget",
            [ending("sorry, cannot.", "done"), ending("done.", "cannot")],
        ),
        (
            "before you order confirm in one sentence",
            [
                without("confirm"),
                reworded(".*confirm.*", "confirm?"),
                reworded("confirm (.*)", r"\1 confirm?"),
                reworded("confirm", "shall i order"),
                swapped("confirm", "order"),
                first("confirm"),
                all_at_once,
            ],
        ),
        (
            "with the offer, the price and the place",
            [
                reworded(r"confirm \w+,", "confirm"),
                reworded(r"(confirm \w+),", r"\g<1>0,"),
                reworded(r"(confirm [a-z]+)\d", r"\g<1>1 \g<1>2 \g<1>3"),
                reworded(r"(confirm .*) \$\d+", r"\1"),
                reworded(r"(confirm .*\$\d+)", r"\g<1>0"),
                reworded(r"(confirm .*)\$\d+", rf"\1{EVERY_AMOUNT}"),
                reworded(r"(confirm .*) to \w+", r"\1"),
                reworded(r"(confirm .*) to \w+", r"\1 to home or work"),
                with_argument("order", "to", {"home": "work", "work": "home"}.get),
            ],
        ),
        (
            "after the yes order at once",
            [twice("order"), inserted("wait.", tool="order")],
        ),
        ("if none fits say cannot", [ending("ok, kept.", "cannot")]),
        (
            "at the end say done and the offer",
            [
                ending("done.", "done"),
                ending("done, pizza1 pizza2 soup1 soup2.", "done"),
                ending("good bye.", "done"),
            ],
        ),
    ],
    "instore": [
        ("and stay with it", [ending("done.", "^sorry"), ending("kept.", "^sorry")]),
        (
            "if the user cancels, cancel and say done",
            [
                without(tool="cancel"),
                first(tool="cancel"),
                early("cancel", "book"),
                twice("cancel"),
            ],
        ),
        ("check the weather", [without(tool="weather")]),
        (
            "then the slot of the course",
            [
                without(tool="slot"),
                first(tool="slot"),
                with_argument("slot", "hour", lambda hour: hour % 9 + 1),
            ],
        ),
        (
            "again for each other hour that the user names",
            [without_last("slot"), late("slot", "change_hour"), late("slot", "book")],
        ),
        (
            "if closed say cannot",
            [ending("done.", "cannot"), ending("kept.", "cannot")],
        ),
        (
            "if taken ask for another hour",
            [
                without("another hour"),
                first("another hour"),
                asked_needlessly("another hour?", "another", {"pattern": "confirm"}),
            ],
        ),
        (
            "ask how many people unless told",
            [
                without("how many"),
                asked_needlessly("how many?", "how many", {"pattern": "confirm"}),
            ],
        ),
        (
            "before you book confirm in one sentence",
            [
                without("confirm"),
                reworded(".*confirm.*", "confirm?"),
                reworded("confirm (.*)", r"\1 confirm?"),
                reworded("confirm", "shall i book"),
                swapped("confirm", "book"),
                first("confirm"),
                all_at_once,
            ],
        ),
        (
            "the course, at which hour and for how many",
            [
                reworded(r"confirm \w+", "confirm"),
                reworded(r"confirm \w+", "confirm yoga dance boxing spinning"),
                reworded(r"(confirm \w+) at \d", r"\1"),
                reworded(r"(confirm \w+) at \d", r"\1 at 1 at 2 at 3 at 4 at 5 at 6"),
                reworded(r"(confirm .*) for \d", r"\1"),
                reworded(r"(confirm .*for \d)", r"\g<1>0"),
                with_argument("book", "people", lambda people: people % 9 + 1),
            ],
        ),
        ("after the yes book at once", [twice("book"), inserted("wait.", tool="book")]),
        (
            "at the end say done, at which hour",
            [
                ending("done.", "done, at"),
                ending("done, at 1 at 2 at 3 at 4 at 5 at 6.", "done, at"),
                ending("good bye.", "done"),
                reworded("done, at .*", "done."),
            ],
        ),
        (
            "change it if it is free",
            [
                without(tool="change_hour"),
                first(tool="change_hour"),
                twice("change_hour"),
            ],
        ),
        ("else say kept", [ending("done.", "kept"), ending("cannot.", "kept")]),
    ],
}


@pytest.mark.parametrize("name", CHEATS)
def test_every_cheat_earns_nothing_and_the_demonstrator_everything(name):
    suite = MiniMixtureSuite([name])
    tasks = suite.tasks("test")
    dialogues = [perfect(suite, task) for task in tasks]
    rewards = [play(suite, *pair).reward for pair in zip(tasks, dialogues)]
    assert rewards == [1.0] * 256
    policy = re.sub(r"\d+", "#", suite.build(tasks[0]).policy())
    for sentence, edits in CHEATS[name]:
        assert sentence in policy
        for number, edit in enumerate(edits):
            cheats = [
                (task, messages)
                for task, dialogue in zip(tasks, dialogues)
                if (messages := edit(json.loads(json.dumps(dialogue)))) is not None
            ]
            assert cheats, f"{sentence}, cheat {number}: no occasion"
            paid = [t.id for t, messages in cheats if play(suite, t, messages).reward]
            assert not paid, f"{sentence}, cheat {number}: paid in {paid[:3]}"
