"""A key set at a URL: fetched at the start, fetched again for an unknown key, and not given up when the URL fails."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import jwt
import trio
from attrs import define, field
from cryptography.hazmat.primitives.asymmetric import ec
from quart import abort
from quart_trio import QuartTrio

from engine.otp import Node, Supervisor, stop
from tests.web.endpoint.running import running, until
from web.auth import AuthSettings, Credentials, Guard, Identity
from web.auth.refresh import KeyRefresher


@define
class KeyServer:
    """An issuer of tokens with a key set at `/keys`; `broken` makes it answer 500."""

    keys: dict[str, ec.EllipticCurvePrivateKey] = field(factory=dict)
    broken: bool = False
    fetches: int = 0
    port: int = 0

    def new_key(self, kid: str) -> None:
        self.keys[kid] = ec.generate_private_key(ec.SECP256R1())

    def token(self, kid: str) -> str:
        return jwt.encode({"sub": "ann"}, self.keys[kid], algorithm="ES256", headers={"kid": kid})

    def app(self) -> QuartTrio:
        app = QuartTrio("issuer")

        @app.get("/keys")
        async def keys() -> str:
            self.fetches += 1
            if self.broken:
                abort(500)
            public = partial(jwt.algorithms.ECAlgorithm.to_jwk, as_dict=True)
            return json.dumps({"keys": [{**public(key.public_key()), "kid": kid} for kid, key in self.keys.items()]})

        return app


@asynccontextmanager
async def refreshed(server: KeyServer, **timing: Any) -> AsyncIterator[Guard]:
    async with running(server.app()) as endpoint:
        guard = Guard.open(AuthSettings(key_set=f"{endpoint.urls[0]}/keys"))
        assert KeyRefresher.needed(guard)
        top = await Supervisor.start_link([KeyRefresher(guard, **timing).spec()])
        yield guard
        await stop(top)


def lets_in(guard: Guard, token: str) -> bool:
    return guard.authenticate(Credentials(token)) == Identity("ann")


async def test_keys_are_there_once_the_process_is_up(node: Node) -> None:
    server = KeyServer()
    server.new_key("one")
    async with refreshed(server) as guard:
        assert lets_in(guard, server.token("one"))


async def test_an_unknown_key_fetches_the_set_again_but_not_as_often_as_anybody_likes(node: Node) -> None:
    server = KeyServer()
    server.new_key("one")
    async with refreshed(server, at_most_every=0.2) as guard:
        server.new_key("two")
        assert not lets_in(guard, server.token("two"))
        for _ in range(50):
            lets_in(guard, server.token("two"))
        await until(lambda: lets_in(guard, server.token("two")))
        assert server.fetches == 2


async def test_a_key_set_that_fails_leaves_the_keys_that_are_known(node: Node) -> None:
    server = KeyServer()
    server.new_key("one")
    async with refreshed(server, at_most_every=0.02, period=0.05) as guard:
        server.broken = True
        before = server.fetches
        await until(lambda: server.fetches > before + 2)
        assert lets_in(guard, server.token("one"))
        server.broken = False
        server.new_key("two")
        await until(lambda: lets_in(guard, server.token("two")))


async def test_without_an_answer_the_server_starts_and_lets_nobody_in(node: Node) -> None:
    guard = Guard.open(AuthSettings(key_set="http://127.0.0.1:1/keys"))
    top = await Supervisor.start_link([KeyRefresher(guard).spec()])
    assert guard.keys == ()
    with trio.fail_after(5):
        await stop(top)
