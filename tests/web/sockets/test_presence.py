"""Who is here, as the server tells it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.web.sockets.lines import Client, ask
from tests.web.sockets.server import Server

pytestmark = pytest.mark.parametrize("line", ["memory"], indirect=True)
T = "lobby:1"


async def enter(server_client: Client) -> dict[str, Any]:
    """Joins, and answers what is told up to the state."""
    await ask(server_client, "1", "1", T, "phx_join", {})
    return await told(server_client, "presence_state")


async def told(client: Client, event: str) -> dict[str, Any]:
    """The payload of the next event of this name."""
    while True:
        _, _, _, name, payload = await client.receive()
        if name == event:
            found: dict[str, Any] = payload
            return found


async def test_a_newcomer_is_told_who_is_here_and_the_others_of_the_newcomer(server: Server) -> None:
    async with server.connect("vsn=2.0.0&user=ada") as ada, server.connect("vsn=2.0.0&user=bob") as bob:
        assert list(await enter(ada)) == ["ada"]
        state = await enter(bob)
        assert sorted(state) == ["ada", "bob"]
        diff = await told(ada, "presence_diff")
        assert (list(diff["joins"]), diff["leaves"]) == (["bob"], {})
        assert diff["joins"]["bob"]["metas"][0]["mood"] == "calm"


async def test_every_meta_has_a_ref_of_its_own_and_nothing_stands_beside_the_metas(server: Server) -> None:
    async with server.connect("vsn=2.0.0&user=ada") as phone, server.connect("vsn=2.0.0&user=ada") as laptop:
        await enter(phone)
        state = await enter(laptop)
        assert list(state["ada"]) == ["metas"]
        refs = [meta["phx_ref"] for meta in state["ada"]["metas"]]
        assert len(set(refs)) == 2
        assert all(isinstance(ref, str) for ref in refs)


async def test_an_update_leaves_as_the_old_and_joins_as_the_new(server: Server) -> None:
    async with server.connect("vsn=2.0.0&user=ada") as ada:
        before = (await enter(ada))["ada"]["metas"][0]
        await ada.send(["1", "2", T, "mood", {"mood": "glad"}])
        diff = await told(ada, "presence_diff")
        new = diff["joins"]["ada"]["metas"][0]
        assert diff["leaves"]["ada"]["metas"] == [before]
        assert (new["mood"], new["phx_ref_prev"]) == ("glad", before["phx_ref"])
        assert new["phx_ref"] != before["phx_ref"]


@pytest.mark.parametrize("how", ["leave", "drop"])
async def test_who_goes_is_gone_however_it_goes(server: Server, how: str) -> None:
    async with server.connect("vsn=2.0.0&user=ada") as ada:
        await enter(ada)
        async with server.connect("vsn=2.0.0&user=bob") as bob:
            await enter(bob)
            await told(ada, "presence_diff")
            if how == "leave":
                await bob.send(["1", "2", T, "phx_leave", {}])
        diff = await told(ada, "presence_diff")
        assert (diff["joins"], list(diff["leaves"])) == ({}, ["bob"])
