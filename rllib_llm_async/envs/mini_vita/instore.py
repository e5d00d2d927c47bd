"""In-store: book a course by the weather, at a free hour that the user may change."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from rllib_llm_async.envs.mini.domain import (
    Demonstrator,
    Flaws,
    Tool,
    ToolError,
    text_message,
    tool_message,
)
from rllib_llm_async.envs.mini_vita.rubric import RubricDomain

_COURSES = ("boxing", "climbing", "dance", "spinning", "swimming", "yoga")


class Instore(RubricDomain):
    """Users leave out how many they are or get it wrong, and dispute a closed door.

    Once it is booked some want another hour, and some cancel.
    """

    name = "instore"
    tools = (
        Tool("weather", "Today's weather.", {}),
        Tool(
            "slot",
            "Whether an hour of a course is free.",
            {"course": "string", "hour": "integer"},
        ),
        Tool(
            "book",
            "Book a course.",
            {"course": "string", "hour": "integer", "people": "integer"},
            changes=True,
            consent=("course", "hour", "people"),
        ),
        Tool(
            "change_hour",
            "Move the booking to an hour.",
            {"hour": "integer"},
            changes=True,
            after=("second thoughts",),
        ),
        Tool(
            "cancel",
            "Cancel the booking.",
            {},
            changes=True,
            after=("second thoughts",),
        ),
    )
    kinds: ClassVar[dict[str, str]] = {
        "course": "|".join(_COURSES),
        "hour": r"(?<=\bat )\d+",
        "people": r"(?<=\bfor )\d+",
    }

    def _draw(self, rng: random.Random) -> None:
        self.sky = rng.choice(["sunny", "rainy"])
        self.courses = dict(zip(["sunny", "rainy"], rng.sample(_COURSES, 2)))
        self.course = self.courses[self.sky]
        self.people = self.told_people = rng.randint(2, 9)
        self.tells_people = rng.random() < 0.5
        if rng.random() < 0.2:
            #: What the user says first, and corrects when asked to confirm.
            self.told_people = 2 + (self.people - 1 + rng.randint(0, 6)) % 8
        self.disputes = rng.random() < 0.5
        self.is_closed = rng.random() < 0.15
        hours = rng.sample(range(1, 10), 9)
        self.free, taken = sorted(hours[:4]), hours[4:]
        self.hour = rng.choice(self.free if rng.random() < 0.6 else taken)
        #: What the user takes if the hour is not free.
        self.other_hour = rng.choice([h for h in self.free if h != self.hour])
        self.booked_hour = self.hour if self.hour in self.free else self.other_hour
        self.new_hour = None
        if rng.random() < 0.4:
            later = [h for h in self.free if h != self.booked_hour]
            self.new_hour = rng.choice(later if rng.random() < 0.7 else taken)
        self.cancels = self.new_hour is None and rng.random() < 0.25
        self.must_read = ["weather", self._look_up(self.hour)]
        if self.is_closed:
            refusal = {"outcome": "cannot"}
            self.must_say = [refusal, refusal] if self.disputes else [refusal]
        else:
            self._decide()

    def _decide(self) -> None:
        self.must_learn = ["people"]
        if self.hour not in self.free:
            self.must_learn.append("other hour")
            self.must_read.append(self._look_up(self.other_hour))
        self.must_change = [f"book:{self.course}:{self.booked_hour}:{self.people}"]
        self.must_say = [{"outcome": "done", "hour": str(self.booked_hour)}]
        if self.new_hour is not None:
            self.must_read_last = [self._look_up(self.new_hour)]
        if self.new_hour in self.free:
            self.must_change.append(f"change_hour:{self.new_hour}")
            self.must_say.append({"outcome": "done", "hour": str(self.new_hour)})
        elif self.new_hour is not None:
            self.must_say.append({"outcome": "kept"})
        elif self.cancels:
            self.must_change.append("cancel")
            self.must_say.append({"outcome": "done"})
        self.due_changes = [1, len(self.must_change)]

    def _look_up(self, hour: int) -> str:
        return f"slot:{self.course}:{hour}"

    def policy(self) -> str:
        return (
            "in-store agent. rules: check the weather, then the slot of the course, "
            "and again for each other hour that the user names. if closed say cannot "
            "and stay with it. if taken ask for another hour. ask how many people "
            "unless told. before you book confirm in one sentence the course, at "
            "which hour and for how many; after the yes book at once. at the end say "
            "done, at which hour. if the user then wants another hour, change it if "
            "it is free and say done, at which hour, else say kept; if the user "
            "cancels, cancel and say done."
        )

    def rubric(self) -> dict[str, bool]:
        booked = self.changes[0].split(":") if self.changes else [None] * 4
        right = self.must_change[0].split(":") if self.must_change else [None] * 4
        return {
            "right_course": booked[:2] == right[:2],
            "right_hour": booked[2:3] == right[2:3],
            "right_people": booked[3:] == right[3:],
            "right_change": self.changes[1:] == self.must_change[1:],
        }

    # --- Tools --------------------------------------------------------------------

    def weather(self) -> str:
        return f"it is {self.sky}"

    def slot(self, course: str, hour: int) -> str:
        if course not in self.courses.values():
            raise ToolError("not found")
        if self.is_closed:
            return "closed"
        return "free" if hour in self.free else "taken"

    def book(self, course: str, hour: int, people: int) -> str:
        if self.slot(course, hour) != "free":
            raise ToolError("not free")
        if not 1 <= people <= 9:
            raise ToolError("people must be 1 to 9")
        return "ok"

    def change_hour(self, hour: int) -> str:
        if self._look_up(hour) not in self.calls:
            self.breaches.add("look-up first")
        if not self.changes or hour not in self.free:
            raise ToolError("not free")
        return "ok"

    def cancel(self) -> str:
        if not self.changes:
            raise ToolError("not booked")
        return "ok"

    def naming(self, name: str, arguments: dict[str, Any]) -> dict[str, str]:
        return {kind: str(value) for kind, value in arguments.items()}

    # --- User ---------------------------------------------------------------------

    def _opening(self) -> str:
        sunny, rainy = self.courses["sunny"], self.courses["rainy"]
        wish = self.vary(
            f"at {self.hour} please. if sunny {sunny}, if rainy {rainy}.",
            f"today at {self.hour}, when sunny {sunny}, when rainy {rainy}.",
            f"book at {self.hour}: if rainy {rainy}, if sunny {sunny}.",
            f"hello, can we come at {self.hour}? if sunny {sunny}, if rainy {rainy}.",
            f"is it possible at {self.hour}? when rainy {rainy}, when sunny {sunny}.",
        )
        if not self.tells_people:
            return wish
        n = self.told_people
        return wish + self.tell(
            "people", f" for {n} people.", f" we are {n}.", f" we will be {n}."
        )

    def wish(self) -> dict[str, str]:
        return {"hour": str(self.booked_hour), "people": str(self.told_people)}

    def think_again(self) -> str | None:
        if self.told_people == self.people:
            return None
        n = self.told_people = self.people
        return self.vary(
            f"sorry, we are {n}.",
            f"oh, my mistake, {n} people.",
            f"wait, one moment. now we are {n}.",
        )

    def answer(self, text: str) -> str | None:
        if "another hour" in text:
            hour = self.other_hour
            if self.hour in self.free or self._look_up(self.hour) not in self.calls:
                self.breaches.add("hour asked needlessly")
            return self.tell(
                "other hour",
                f"then at {hour}.",
                f"{hour} is ok.",
                f"what about {hour}?",
                f"pity. {hour} would do.",
            )
        if "how many" in text:
            n = self.told_people
            return self.tell(
                "people",
                f"{n}.",
                f"we are {n}.",
                f"with my friends {n}.",
                f"a group of {n}.",
            )
        return None

    def go_on(self) -> str:
        if self.is_closed:
            return super().go_on()
        if self.cancels:
            return self.tell(
                "second thoughts",
                "oh no, i am ill. please cancel it.",
                "sorry, we cannot come after all, cancel it.",
                "my friends do not want to. can you cancel?",
            )
        return self.tell(
            "second thoughts",
            f"oh, please change it to {self.new_hour}.",
            f"could we come at {self.new_hour} after all?",
            f"wait, {self.new_hour} would be better.",
            f"sorry, i have to work then. {self.new_hour}?",
        )

    # --- Demonstrator -------------------------------------------------------------

    def demonstrate(self, flaws: Flaws) -> Demonstrator:
        wishes = ", ".join(f"{sky} {course}" for sky, course in self.courses.items())
        yield tool_message("weather", f"{wishes}.")
        sky = flaws.rng.choice(list(self.courses)) if flaws.slip() else self.sky
        course = self.courses[sky]
        hour, people = self.hour, self.told_people
        yield tool_message("slot", f"so {sky} {course}.", course=course, hour=hour)
        if self.is_closed:
            yield text_message("closed. sorry, cannot book.")
            yield text_message("sorry, cannot book.")
            return
        if hour not in self.free:
            yield text_message(f"{hour} is taken. another hour?")
            hour = self.other_hour
            yield tool_message("slot", course=course, hour=hour)
        found = f"{hour} is free. "
        if not self.tells_people:
            if flaws.shortcut():
                people = flaws.rng.randint(2, 9)
            else:
                yield text_message(f"{found}how many people?")
                found = ""
        if not flaws.shortcut():
            told_people = self.told_people
            yield text_message(f"{found}confirm {course} at {hour} for {people}?")
            if self.told_people != told_people:
                people = self.told_people
                yield text_message(f"confirm {course} at {hour} for {people}?")
            if not self.agreed:
                yield text_message("ok, kept.")
                return
        yield tool_message("book", course=course, hour=hour, people=people)
        yield text_message(f"done, at {hour}.")
        yield from self._demonstrate_second_thoughts(flaws, course)

    def _demonstrate_second_thoughts(self, flaws: Flaws, course: str) -> Demonstrator:
        if self.cancels:
            yield tool_message("cancel")
            yield text_message("done, cancelled.")
        if self.new_hour is None:
            return
        yield tool_message("slot", course=course, hour=self.new_hour)
        if (self.new_hour in self.free) == flaws.slip():
            yield text_message(f"{self.new_hour} is taken, kept.")
        else:
            yield tool_message(
                "change_hour", f"{self.new_hour} is free.", hour=self.new_hour
            )
            yield text_message(f"done, at {self.new_hour}.")
