"""What users wrote or were given is in no log and on no operator's page, whatever happens; and no key is shown.

A whole server as a process, at its most talkative, with words that are found again wherever they turn up.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import trio

from scripts.client import connect
from scripts.server import launch
from tests.engine.providers import fake_llm, fake_replicate
from tests.engine.providers.fake_llm import Plan
from tests.engine.providers.fake_replicate import Service

WORDS = {
    "prompt": "canary-prompt-7f3a",
    "output": "canary-output-9b1c",
    "file": "canary-file-44de",
    "error": "canary-echo-5c0f",
    "token": "canary-token-1d2e",
    "secret": "canary-secret-8a6b-of-thirty-two-bytes",
    "key": "canary-key-3e9d",
}
PAGES = (
    "/metrics", "/healthz", "/readyz", "/api/supervisor", "/api/supervisor/children?of=tasks", "/api/overview",
    "/api/queues", "/api/queues/default/dead-letters", "/api/models", "/api/openapi.json", "/operators", "/",
)  # fmt: skip


def environment(service: Service, llm: Any) -> dict[str, str]:
    return {
        "ELWIFT_LOCAL_MODEL": "false",
        "ELWIFT_LOG_LEVEL": "debug",
        "ELWIFT_LOG_FORMAT": "json",
        "ELWIFT_TOKENS": f"{WORDS['token']}=ada:operator",
        "ELWIFT_JWT_SECRET": WORDS["secret"],
        "ELWIFT_REPLICATE_API_TOKEN": fake_replicate.TOKEN,
        "ELWIFT_REPLICATE_BASE_URL": service.url,
        "ELWIFT_OPENAI_API_KEY": WORDS["key"],
        "ELWIFT_OPENAI_BASE_URL": f"{llm.url}/v1",
        "ELWIFT_STORE_PATIENCE": "0.2",
    }


async def task(http: httpx.AsyncClient, model: str, **given: Any) -> UUID:
    body = {"prompt": WORDS["prompt"], "model": model, "input": given}
    answer = await http.post("/api/tasks", json=body)
    assert answer.status_code == 202, answer.text
    return UUID(answer.json()["task_id"])


async def until(http: httpx.AsyncClient, task_id: UUID) -> dict[str, Any]:
    """The task, once it is over, or once an attempt at it has failed: the next ones need not be waited for."""
    with trio.fail_after(40):
        while True:
            task: dict[str, Any] = (await http.get(f"/api/tasks/{task_id}")).json()
            if task["status"] in ("completed", "failed", "cancelled") or task["error"]:
                return task
            await trio.sleep(0.05)


async def everything_that_may_happen(http: httpx.AsyncClient, llm: Any) -> list[dict[str, Any]]:
    """Tasks that go well, fail, crash their processes, are refused and cancelled; how the first ones ended."""
    picture = "data:text/plain;base64," + base64.b64encode(WORDS["file"].encode()).decode()
    llm.plan = Plan(words=["well ", WORDS["output"]])
    tasks = [
        await task(http, "flux-schnell", script={"output": WORDS["output"]}),
        await task(http, "flux-schnell", script={"output": [picture]}),
        await task(http, "flux-schnell", script={"end": "failed", "error": f"no good: {WORDS['error']}"}),
        await task(http, "gpt-6.2-sol"),
        await task(http, "simulate", steps=3, interval=0.05, crash_at=2, text=True),
        await task(http, "simulate", steps=3, interval=0.05, fail_at=2, text=True),
    ]
    cancelled = await task(http, "simulate", steps=1000, interval=1.0)
    await http.post(f"/api/tasks/{cancelled}/cancel")
    for bad in ({"steps": WORDS["prompt"]}, {WORDS["prompt"]: 1}):
        await http.post("/api/tasks", json={"model": "simulate", "prompt": WORDS["prompt"], "input": bad})
    await http.post(
        "/api/tasks", content=f'{{"prompt": "{WORDS["prompt"]}', headers={"content-type": "application/json"}
    )
    await http.get(f"/api/tasks?cursor={WORDS['prompt']}")
    return [await until(http, each) for each in tasks]


async def test_no_log_and_no_page_has_what_users_wrote_or_were_given_or_any_key(data_dir: Path) -> None:
    async with fake_replicate.serving() as service, fake_llm.serving() as llm, trio.open_nursery() as nursery:
        server = await launch(nursery, data_dir, environment=environment(service, llm))
        headers = {"Authorization": f"Bearer {WORDS['token']}"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers, trust_env=False, timeout=20) as http:
            ends = await everything_that_may_happen(http, llm)
            assert [end["status"] for end in ends[:2]] == ["completed", "completed"]
            assert WORDS["output"] in ends[0]["response"]
            assert WORDS["error"] in ends[2]["error"]["message"]
            assert WORDS["output"] in ends[3]["response"]
            async with connect(server.url, f"token={WORDS['token']}") as socket:
                await socket.join(f"task:{UUID(int=1)}")
            pages = {page: await http.get(page) for page in PAGES}
        served = {page: answer.text for page, answer in pages.items() if answer.status_code == 200}
        assert len(served) >= 6, {page: answer.status_code for page, answer in pages.items()}
        left = await server.kill()
        assert left != 0
        again = await launch(nursery, data_dir, environment=environment(service, llm))
        assert await again.terminate() == 0
        log = server.log.read_text()
        assert "crash" in log, "the log tells what happened"
        for what, word in {**WORDS, "replicate": fake_replicate.TOKEN}.items():
            lines = [line[:2000] for line in log.splitlines() if word in line]
            assert not lines, f"{what} in the log: {json.dumps(lines[:3], indent=1)}"
            shown = [page for page, text in served.items() if word in text]
            assert not shown, f"{what} on {shown}"
        nursery.cancel_scope.cancel()
