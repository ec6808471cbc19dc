"""A small application for the protocol's tests: rooms whose events each show one thing a channel may do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import trio

from engine.otp import Reason, self_, send, send_after
from web.sockets.channel import Asked, Channel, End, MakeChannel, Refused, Reply, error, ok
from web.sockets.presence import Presence
from web.sockets.router import Router


class Log:
    """What channels did, in order, for tests to look at."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self._more = trio.Event()

    def add(self, *line: Any) -> None:
        self.lines.append(line)
        self._more.set()
        self._more = trio.Event()

    async def wait_for(self, *line: Any) -> None:
        with trio.fail_after(5):
            while line not in self.lines:
                await self._more.wait()


class Room(Channel):
    """`room:*`. The join's params say how the join goes."""

    intercepts = frozenset({"whispered"})
    log = Log()
    gates: ClassVar[dict[str, trio.Event]] = {}

    def joiner(self) -> None:
        """Tests put something here that looks at the channel when it joins."""

    async def join(self, params: Any) -> Mapping[str, Any] | Refused:
        params = params or {}
        self.joins = params.get("joins")
        if "push_first" in params:
            self.push("early", {"n": 1})
        if "wait" in params:
            self.log.add("joining", self.topic)
            await self.gates.setdefault(params["wait"], trio.Event()).wait()
        if params.get("raise"):
            raise RuntimeError("this join was told to crash")
        if "refuse" in params:
            return Refused({"reason": params["refuse"]})
        if "after" in params:
            send_after(0, self_(), ("joined", params["after"]))
        self.joiner()
        self.log.add("joined", self.topic)
        answer: dict[str, Any] = params.get("answer", {})
        return answer

    async def handle_in(self, event: str, payload: Any) -> Reply | End | None:
        match event:
            case "ping":
                return ok()
            case "echo":
                return ok(payload)
            case "status":
                return Reply(payload["status"], payload["response"])
            case "who":
                return ok({"connects": self.connection.params.get("connects"), "joins": self.joins})
            case "quiet":
                return None
            case "later":
                send_after(0.01, self_(), ("answer", self.asked(), payload))
                return None
            case "shout":
                self.broadcast("shouted", payload)
                return ok()
            case "shout_others":
                self.broadcast_from("shouted", payload)
                return ok()
            case "whisper":
                self.broadcast("whispered", payload)
                return ok()
            case "slowly":
                send_after(payload["seconds"], self_(), ("at_last", payload))
                return None
            case "push":
                self.push("pushed", payload)
                return None
            case "bytes":
                self.push("pushed", b"efg")
                self.broadcast("shouted", b"hij")
                return ok(b"klm")
            case "crash":
                raise RuntimeError("this handler was told to crash")
            case "stop":
                return End(reply=ok({"bye": True}) if payload else None)
            case "wait":
                self.log.add("waiting", self.topic)
                await self.gates.setdefault(payload["for"], trio.Event()).wait()
                return ok()
        return error({"reason": "unknown_event"})

    async def handle_info(self, message: object) -> End | None:
        match message:
            case ("joined", payload):
                self.push("joined", payload)
            case ("at_last", payload):
                self.push("at_last", payload)
            case ("answer", Asked() as asked, payload):
                self.reply(asked, ok(payload))
        return None

    async def handle_out(self, event: str, payload: Any) -> End | None:
        self.push(event, payload | {"to": self.topic})
        return None

    async def terminate(self, reason: Reason) -> None:
        self.log.add("terminated", self.topic)


class Lobby(Channel):
    """`lobby:*`. Shows who is here."""

    presence: Presence

    @property
    def who(self) -> str:
        return self.connection.params.get("user", self.identity.user)

    async def join(self, params: Any) -> Mapping[str, Any] | Refused:
        send(self_(), "joined")
        return {}

    async def handle_in(self, event: str, payload: Any) -> Reply | End | None:
        return ok({"updated": await self.presence.update(self.topic, self.who, payload)})

    async def handle_info(self, message: object) -> End | None:
        # The difference comes first: clients wait for the state, and apply it after that.
        await self.presence.track(self.topic, self.who, {"mood": "calm"})
        self.push("presence_state", await self.presence.list(self.topic))
        return None


class Food(Channel):
    async def join(self, params: Any) -> Mapping[str, Any] | Refused:
        return {"pattern": "food"}


class Foo(Channel):
    async def join(self, params: Any) -> Mapping[str, Any] | Refused:
        return {"pattern": "foo"}


def rooms(presence: Presence) -> tuple[Router[MakeChannel], type[Room]]:
    """A router, and the class of its rooms with a log and gates of its own."""

    class OwnLobby(Lobby):
        pass

    OwnLobby.presence = presence

    class OwnRoom(Room):
        log = Log()
        gates: ClassVar[dict[str, trio.Event]] = {}

    return Router.of(("room:*", OwnRoom), ("lobby:*", OwnLobby), ("food*", Food), ("foo*", Foo)), OwnRoom
