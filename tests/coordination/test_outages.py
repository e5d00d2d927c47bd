"""An outage of what environments need, and where tokens grow old."""

import asyncio
from types import SimpleNamespace

from rllib_llm_async.coordination import coordinator as module
from rllib_llm_async.env_runners import episode_service
from tests.coordination.in_process import Loop
from tests.coordination.test_coordinator import run, update


def test_an_outage_of_what_environments_need_gives_no_group_up(monkeypatch):
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(episode_service, "QUIET_REPORT_SECONDS", 0.05)

    async def main():
        waited, over = [0.0], asyncio.Event()

        async def wait(task):
            await over.wait()

        loop = Loop(wait=wait, max_staleness=0, ticket_timeout_s=300.0)
        (service,), groups = loop.services, loop.coordinator._dispatcher._groups
        service._player._others = SimpleNamespace(
            waiting_for=lambda: ["user: down"], seconds_waited=lambda: waited[0]
        )
        await loop.start()
        while not groups:
            await asyncio.sleep(0.05)
        waited[0] = 1000.0
        await asyncio.sleep(1.0)  # until it is reported
        for group in groups.values():
            group.started -= 600.0
        await asyncio.sleep(0.5)
        over.set()
        batch = await update(loop, 0)
        assert not batch.dropped
        await loop.stop()

    run(main)


def test_accounts_tell_where_tokens_grew_old():
    async def main():
        loop = Loop(max_staleness=2)
        await loop.start()
        for version in range(3):
            batch = await loop.batch()
            await loop.publish(version + 1)
            accounts = (await loop.coordinator.consumed()).accounts
            tokens = sum(o.num_tokens for g in batch.groups for o in g.outcomes)
            old = sum(
                o.num_tokens * (version - o.mean_version)
                for g in batch.groups
                for o in g.outcomes
            )
            told = [accounts[f"staleness_from_{x}"] for x in ("generation", "queue")]
            assert abs(sum(told) - old / tokens) < 1e-9
        await loop.stop()

    run(main)
