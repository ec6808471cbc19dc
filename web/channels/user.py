"""The channel of one user, `user:<external_id>`: the births and changes of status of all their tasks.

Every TaskServer tells its user's channels what it tells its own; this channel keeps what a list of tasks shows. It
keeps no history: a client that was away asks for the list again. May import `engine.tasks` and `web.sockets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import UserError
from engine.tasks import intake
from engine.tasks.messages import TaskHappened
from web.channels import payloads
from web.channels.house import ChannelHouse
from web.channels.requests import check_object, new_task
from web.channels.troubles import TROUBLES, as_refusal
from web.sockets.channel import Channel, Connection, End, Refused, Reply, error, ok
from web.sockets.lane import Lane


class UserChannel(Channel):
    """One client's view of one user's tasks."""

    def __init__(self, lane: Lane, connection: Connection, house: ChannelHouse) -> None:
        super().__init__(lane, connection)
        self.house = house
        self.user = lane.topic.removeprefix("user:")

    async def join(self, params: Any) -> Mapping[str, Any] | Refused:
        try:
            self.house.check_open()
            self._check_user()
        except UserError as trouble:
            return Refused(as_refusal(trouble))
        self.house.runtime.channels.register(("user", self.user))
        self.house.runtime.relay.watch_user(self.user)
        return {"user": self.user}

    def _check_user(self) -> None:
        if not self.user:
            raise UserError("invalid_topic", "A user's topic is user: and the user's id.")
        if self.user != self.identity.user and not self.identity.operator:
            raise UserError("unauthorized", "This topic is not yours to join.")

    async def handle_in(self, event: str, payload: Any) -> Reply | End | None:
        try:
            match event:
                case "llm_generate":
                    check_object(payload)
                    return ok(await self._generate(payload))
                case "ping":
                    check_object(payload)
                    return ok(payload)
        except TROUBLES as trouble:
            return error(as_refusal(trouble))
        return error({"reason": "unknown_event", "message": "A user's topic knows llm_generate and ping."})

    async def _generate(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        self.house.check_open()
        wish = new_task(payload, self.user, None, self.connection.upgrade.header("traceparent"))
        answer = await intake.accept(self.house.runtime, wish)
        return payloads.accepted(answer)

    async def handle_info(self, message: object) -> End | None:
        if isinstance(message, TaskHappened):
            told = payloads.updated(message.event, message.task)
            if told is not None:
                self.push(*told)
        return None
