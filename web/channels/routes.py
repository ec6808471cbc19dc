"""Which channel serves which topic in the application. May import the channels and the router."""

from __future__ import annotations

from functools import partial

from web.channels.house import ChannelHouse
from web.channels.task import TaskChannel
from web.channels.user import UserChannel
from web.sockets.channel import MakeChannel
from web.sockets.router import Router


def application_router(house: ChannelHouse) -> Router[MakeChannel]:
    """`task:<uuid>` and `user:<external_id>`."""
    return Router.of(
        ("task:*", partial(TaskChannel, house=house)),
        ("user:*", partial(UserChannel, house=house)),
    )
