"""In-store: book a course by weather and free hours; the user may change the hour."""

from __future__ import annotations

import random

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
    """Half of the users leave out how many they are; some want another hour later."""

    name = "instore"
    tools = (
        Tool("weather", "Today's weather.", {}),
        Tool("slots", "Free hours of a course.", {"course": "string"}),
        Tool(
            "book",
            "Book a course.",
            {"course": "string", "hour": "integer", "people": "integer"},
            needs_consent=True,
        ),
        Tool("change_hour", "Move the booking to an hour.", {"hour": "integer"}),
    )

    def _draw(self, rng: random.Random) -> None:
        self.sky = rng.choice(["sunny", "rainy"])
        self.courses = dict(zip(["sunny", "rainy"], rng.sample(_COURSES, 2)))
        self.course = self.courses[self.sky]
        self.people = rng.randint(2, 9)
        self.tells_people = rng.random() < 0.5
        self.is_closed = rng.random() < 0.15
        hours = rng.sample(range(1, 10), 9)
        self.free, taken = sorted(hours[:4]), hours[4:]
        self.hour = rng.choice(self.free if rng.random() < 0.6 else taken)
        #: What the user takes if the hour is not free.
        self.other_hour = rng.choice([h for h in self.free if h != self.hour])
        booked = self.hour if self.hour in self.free else self.other_hour
        self.new_hour = None
        if rng.random() < 0.4:
            later = [h for h in self.free if h != booked]
            self.new_hour = rng.choice(later if rng.random() < 0.7 else taken)
        self.wants_change = self.new_hour is not None
        self.db = {"booking": None}
        self._set_golden(booked)
        self.must_read = ["weather", f"slots:{self.course}"]

    def _set_golden(self, booked: int) -> None:
        self.golden_db = {"booking": None}
        self.must_say = ["cannot"] if self.is_closed else ["done"]
        if self.is_closed:
            return
        if self.new_hour in self.free:
            booked = self.new_hour
        elif self.new_hour is not None:
            self.must_say = ["kept"]
        self.golden_db["booking"] = {
            "course": self.course,
            "hour": booked,
            "people": self.people,
        }

    def policy(self) -> str:
        return (
            "in-store agent. rules: check the weather, then the slots of the "
            "course. if closed say cannot. if the hour is not free ask for "
            "another hour. ask how many people unless told. confirm with the user "
            "before you book. at the end say done. if the user then wants another "
            "hour, change it if it is free, else say kept."
        )

    def rubric(self) -> dict[str, bool]:
        booking, golden = self.db["booking"] or {}, self.golden_db["booking"] or {}
        return {
            f"right_{part}": booking.get(part) == golden.get(part)
            for part in ("course", "hour", "people")
        }

    # --- Tools --------------------------------------------------------------------

    def weather(self) -> str:
        return f"it is {self.sky}"

    def slots(self, course: str) -> str:
        if course not in self.courses.values():
            raise ToolError("not found")
        return "closed" if self.is_closed else " ".join(map(str, self.free))

    def book(self, course: str, hour: int, people: int) -> str:
        if self.slots(course) == "closed" or hour not in self.free:
            raise ToolError("not free")
        if not 1 <= people <= 9:
            raise ToolError("people must be 1 to 9")
        self.db["booking"] = {"course": course, "hour": hour, "people": people}
        return "ok"

    def change_hour(self, hour: int) -> str:
        if self.db["booking"] is None or hour not in self.free:
            raise ToolError("not free")
        self.db["booking"]["hour"] = hour
        return "ok"

    # --- User ---------------------------------------------------------------------

    def _opening(self) -> str:
        sunny, rainy = self.courses["sunny"], self.courses["rainy"]
        wish = self.vary(
            f"at {self.hour} please. if sunny {sunny}, if rainy {rainy}.",
            f"today at {self.hour}, when sunny {sunny}, when rainy {rainy}.",
            f"book at {self.hour}: if rainy {rainy}, if sunny {sunny}.",
        )
        if not self.tells_people:
            return wish
        return wish + self.vary(
            f" for {self.people} people.", f" we are {self.people}."
        )

    def answer(self, text: str) -> str | None:
        if "confirm" in text:
            return self.consent(True)
        if "another hour" in text:
            return self.vary(f"then at {self.other_hour}.", f"{self.other_hour} is ok.")
        if "how many" in text:
            return self.vary(f"{self.people}.", f"we are {self.people}.")
        if "done" in text and self.wants_change:
            self.wants_change = False
            return self.vary(
                f"oh, please change it to {self.new_hour}.",
                f"could we come at {self.new_hour} after all?",
            )
        return None

    # --- Demonstrator -------------------------------------------------------------

    def demonstrate(self, flaws: Flaws) -> Demonstrator:
        yield tool_message("weather")
        sky = flaws.rng.choice(list(self.courses)) if flaws.slip() else self.sky
        course = self.courses[sky]
        yield tool_message("slots", f"so {sky} {course}.", course=course)
        if self.is_closed:
            yield text_message("closed. sorry, cannot book.")
            return
        hour = self.hour
        if hour not in self.free:
            yield text_message(f"{hour} is not free. another hour?")
            hour = self.other_hour
        people = self.people
        if not self.tells_people:
            if flaws.shortcut():
                people = flaws.rng.randint(2, 9)
            else:
                yield text_message("how many people?")
        if not flaws.shortcut():
            yield text_message(f"book {course} at {hour} for {people}. confirm?")
        yield tool_message("book", course=course, hour=hour, people=people)
        yield text_message("done.")
        if self.new_hour is None:
            return
        if (self.new_hour in self.free) == flaws.slip():
            yield text_message(f"{self.new_hour} is not free, kept.")
            return
        yield tool_message("change_hour", hour=self.new_hour)
        yield text_message("done.")
