"""Scripted users, judges and agents for the vita suite."""

import asyncio
import json
import re

import pytest

from rllib_llm_async.envs.agent_env import EpisodeError
from rllib_llm_async.envs.chat_model import as_it_is
from rllib_llm_async.envs.registry import make_suite
from rllib_llm_async.envs.vita.order_match import required_orders

ENDPOINT = {"model": "m", "base_url": "http://127.0.0.1:9/v1", "api_key_env": None}
STOP = "###STOP###"


class Scripted:
    """A chat model that is a function of the messages."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    async def complete(self, messages, tools=None, read=as_it_is):
        self.asked.append(messages)
        await asyncio.sleep(0)
        try:
            return read({"role": "assistant", "content": self.answer(messages)})
        except ValueError as error:
            raise EpisodeError(str(error)) from error

    def metrics(self):
        return {"calls": float(len(self.asked))}


def patient_user(messages):
    return f"please go on, {len(messages)}."


def rubrics_in(messages):
    """Those that a judge is asked about, as it would write them down unchanged."""
    prompt = messages[-1]["content"]
    return json.loads(re.search(r"<current_rubrics>(.*)</current_r", prompt, re.S)[1])


def stern_judge(messages):
    """Finds that nothing holds."""
    return json.dumps(rubrics_in(messages))


def make_vita(user=patient_user, judge=None, **env_config):
    """A suite with scripted models; without a judge, orders are compared."""
    pytest.importorskip("vita", reason="needs the VitaBench package")
    suite = make_suite(
        "vita",
        {
            "domains": ["delivery"],
            "user": ENDPOINT,
            "judge": "order_match" if judge is None else ENDPOINT,
            **env_config,
        },
    )
    suite.models["user"] = Scripted(user)
    if judge is not None:
        suite.models["judge"] = Scripted(judge)
    return suite


def all_tasks(suite):
    return suite.tasks("train") + suite.tasks("test")


def text(content):
    return {"role": "assistant", "content": content}


def tools(*calls):
    """A message with calls; each a name and arguments, as a dict or as written."""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": arguments
                    if isinstance(arguments, str)
                    else json.dumps(arguments),
                },
            }
            for number, (name, arguments) in enumerate(calls)
        ],
    }


def place_order(task, order):
    """The call that places a reference order of the delivery domain."""
    products = order["products"]
    return "create_delivery_order", {
        "user_id": task.environment["user_id"],
        "store_id": order["store_id"],
        "product_ids": [product.get("product_id") for product in products],
        "product_cnts": [product.get("quantity") for product in products],
        "address": order["location"]["address"],
        "dispatch_time": task.environment["time"],
    }


def reference_turns(suite, ref):
    """What an agent says that knows the reference orders of a delivery task."""
    _, task = suite.task(ref)
    to_place, to_cancel = required_orders(task)
    calls = [("cancel_delivery_order", {"order_id": id_}) for id_ in sorted(to_cancel)]
    calls += [place_order(task, order) for order in to_place]
    return [text("one moment."), *(tools(call) for call in calls), text(STOP)]


async def play(env, ref, turns):
    """Plays until the end or as far as ``turns`` go; start and steps.

    Other episodes on the loop get a turn after every step.
    """
    try:
        start, steps = await env.reset(ref), []
        for turn in turns:
            await asyncio.sleep(0)
            steps.append(await env.step(turn))
            if steps[-1].terminated or steps[-1].truncated:
                break
        return start, steps
    finally:
        await env.aclose()
