"""What the tests of bad days at Replicate share: a whole server before a fake service that keeps a bill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from attrs import define
from typed_settings.types import SecretStr

from engine.providers.replicate import Pace, Replicate
from engine.providers.settlement import Rhythm, Settlement
from scripts.http_client import HttpClient, http_client
from tests.engine.providers import fake_replicate
from tests.engine.providers.fake_replicate import PRICE, Run, Service
from web.application import Application
from web.serve import running
from web.settings import Settings

QUICK = Pace(
    first=0.05,
    longest=0.2,
    silence=0.5,
    lost_after=30.0,
    gone_after=0.3,
    stop_within=5.0,
    search=(0.05, 0.2),
    settled_after=0.5,
)
RHYTHM = Rhythm(surely_listed=0.0, too_young=0.0)
PUBLIC = "https://app.example"


@define(eq=False)
class House:
    """A server, its client, and the service behind it."""

    service: Service
    http: HttpClient
    application: Application | None = None
    duplicates_before: float = 0.0

    @property
    def provider(self) -> Replicate:
        assert self.application is not None
        assert self.application.backends.replicate is not None
        return self.application.backends.replicate

    async def model(self, name: str, **more: Any) -> None:
        """Registers a model of its own for a scenario, with a price by the second."""
        model = {
            "name": name,
            "provider": "replicate",
            "slug": f"acme/{name}",
            "version": "official",
            "category": "image",
            "price": {"second": PRICE},
            "settings": {"backoff": {"floor": 0.5, "base": 0.1, "ceiling": 1.0, "jitter": 0.0}},
            **more,
        }
        status, answer = await self.http.post("/api/models", model)
        assert status == 201, answer

    async def start(self, name: str, **script: Any) -> str:
        body = {"model": name, "prompt": f"a picture for {name}", "input": {"script": script}}
        status, answer = await self.http.post("/api/tasks", body)
        assert status == 202, answer
        return str(answer["task_id"])

    async def task(self, task_id: str) -> dict[str, Any]:
        status, task = await self.http.get(f"/api/tasks/{task_id}")
        assert status == 200, task
        return dict(task)

    async def ended(self, task_id: str, within: float = 40.0) -> dict[str, Any]:
        with trio.fail_after(within):
            while True:
                task = await self.task(task_id)
                if task["status"] in ("completed", "failed", "cancelled"):
                    return task
                await trio.sleep(0.05)

    async def cancel(self, task_id: str) -> None:
        status, answer = await self.http.post(f"/api/tasks/{task_id}/cancel", {})
        assert (status, answer["status"]) == (200, "cancelled")

    async def statement(self, task_id: str) -> dict[str, Any]:
        """What was bought for the task."""
        status, answer = await self.http.get(f"/api/tasks/{task_id}/predictions")
        assert status == 200, answer
        return dict(answer)

    def bought(self, name: str) -> list[Run]:
        return [run for run in self.service.runs.values() if run.model == f"acme/{name}"]

    async def begun(self, name: str, **script: Any) -> tuple[str, Run]:
        """A task whose prediction runs until it is let go."""
        await self.model(name)
        task_id = await self.start(name, **{"steps": 1, "held": True, **script})
        await until(lambda: [run for run in self.bought(name) if run.started_at is not None])
        return task_id, self.bought(name)[0]

    async def settled(self, *task_ids: str) -> None:
        """Rounds of the settlement, until nothing of these tasks is open."""
        assert self.application is not None
        settlement = Settlement(self.provider, self.application.bills, self.application.runtime.models, RHYTHM)
        with trio.fail_after(20):
            while True:
                await settlement.round()
                statements = [await self.statement(task_id) for task_id in task_ids]
                if not any(line["open"] for each in statements for line in each["predictions"]):
                    return
                await trio.sleep(0.1)

    async def duplicates(self) -> float:
        """How many calls were counted as paid beside another, since the server started."""
        return await self.metric("elwift_provider_duplicate_calls_total") - self.duplicates_before

    async def metric(self, name: str) -> float:
        """A metric's sum over its labels: of this OS process, whatever ran in it before."""
        return await metric(self.service.reach, name)


async def metric(url: str, name: str) -> float:
    """A metric of a server, summed over its labels."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{url}/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


async def until(condition: Callable[[], object], within: float = 20.0) -> None:
    """Waits for something that no event tells of."""
    with trio.fail_after(within):
        while True:
            if condition():
                return
            await trio.sleep(0.01)


def settings(service: Service, **more: Any) -> dict[str, Any]:
    return {
        "replicate_api_token": SecretStr(fake_replicate.TOKEN),
        "replicate_base_url": service.url,
        "local_model": False,
        "preempt_budget": 0,
        **more,
    }


@asynccontextmanager
async def house(data_dir: Path, webhooks: bool = False, **more: Any) -> AsyncIterator[House]:
    """A whole server in this process, at a quick pace."""
    async with fake_replicate.serving() as service:
        if webhooks:
            more |= {"public_url": PUBLIC, "replicate_webhook_secrets": SecretStr(fake_replicate.SECRET)}
        given = Settings(port=0, data_dir=data_dir, **settings(service, **more))
        async with running(given) as application, http_client(application.endpoint.urls[0], 40) as http:
            service.reach = application.endpoint.urls[0]
            made = House(service, http, application)
            made.provider.pace = QUICK
            made.provider.api.create_within = 1.5
            made.provider.api.within = 3.0
            made.duplicates_before = await made.metric("elwift_provider_duplicate_calls_total")
            yield made
