"""Importing Replicate's models through a whole server, and running one at its price."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.models.test_imported import ONE, SCHEMAS, TWO, said, version
from tests.real.replicate import house


async def test_a_model_is_imported_run_billed_and_refreshed(data_dir: Path) -> None:
    async with house(data_dir) as at, httpx.AsyncClient(base_url=at.service.reach, trust_env=False) as http:

        async def bring(status: int, **body: Any) -> Any:
            answer = await http.post("/api/models/import", json=body)
            assert answer.status_code == status, answer.text
            return answer.json()

        assert (await bring(404, model="acme/painter"))["code"] == "no_such_model"
        at.service.models["acme/painter"] = said(
            run_count=7, visibility="public", url="https://replicate.com/acme/painter"
        )
        at.service.faults.append(("^GET /v1/models/", "503 html"))
        assert (await bring(502, model="acme/painter"))["code"] == "import_failed"
        at.service.faults.append(("^GET /v1/models/", "redirect https://elsewhere.example/"))
        assert (await bring(502, model="acme/painter"))["code"] == "import_failed"
        assert (await bring(400, model="painter"))["code"] == "invalid_request"

        model = await bring(201, model="acme/painter", price={"run": 0.25, "image_output_count": 0.5})
        assert (model["version"], model["category"], model["settings"]["output"]) == (ONE, "image", "files")
        assert (await http.get("/api/models/painter")).json()["id"] == model["id"]

        # it runs as that version, with its defaults, and costs what its metrics count
        steps = {"allOf": [], **SCHEMAS["Input"]}
        assert steps["properties"]["steps"]["default"] == 4
        task = await http.post("/api/tasks", json={"model": "painter", "prompt": "a cat", "input": {"stepz": 1}})
        assert task.status_code == 422
        task = await http.post("/api/tasks", json={"model": "painter", "prompt": "a cat"})
        ended = await at.ended(task.json()["task_id"])
        assert ended["status"] == "completed"
        (run,) = at.service.runs.values()
        assert (run.body["version"], run.body["input"]) == (ONE, {"prompt": "a cat", **model["defaults"]})
        assert ended["usage"]["cost"] == pytest.approx(0.25)

        # operators change it; a refresh leaves that alone, and a new version takes it over
        changed = await http.patch(f"/api/models/{model['id']}", json={"defaults": {"steps": 1}, "price": {"run": 1.0}})
        assert changed.status_code == 200, changed.text
        assert (await bring(200, model="acme/painter"))["defaults"] == {"steps": 1}
        at.service.models["acme/painter"]["latest_version"] = version(TWO)
        newer = await bring(201, model="acme/painter")
        assert (newer["version"], newer["defaults"], newer["price"]) == (TWO, {"steps": 1}, {"run": 1.0})
        assert (await http.get("/api/models/painter")).json()["version"] == TWO
        assert (await http.get(f"/api/models/painter:{ONE}")).status_code == 200
        wrong = await http.patch(f"/api/models/{model['id']}", json={"price": {"run": -1}})
        assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_request")
