"""The caller's own account: who they are, and their preferences (a JSON object that is theirs to shape)."""

from __future__ import annotations

import msgspec

from engine.errors import Problem, UserError
from web.http.body import JsonObject, decode, nul_at
from web.http.exchange import Answer, Ask, json
from web.http.house import House

MAX_PREFERENCES = 64 * 1024
_object = msgspec.json.Decoder(JsonObject)


async def me(house: House, ask: Ask) -> Answer:
    """Who the token says the caller is."""
    return json({"user": ask.identity.user, "operator": ask.identity.operator})


async def preferences(house: House, ask: Ask) -> Answer:
    """The stored preferences; an empty object when none were."""
    return json(await house.runtime.users.preferences(ask.identity.user))


async def put_preferences(house: House, ask: Ask) -> Answer:
    """Replaces the preferences by the object in the body."""
    wanted = decode(ask.headers.get("content-type"), ask.body, _object)
    if len(ask.body) > MAX_PREFERENCES:
        raise UserError("body_too_large", f"Preferences may have {MAX_PREFERENCES} bytes.")
    where = nul_at(wanted) if b"\\u0000" in ask.body else None
    if where is not None:
        message = "Preferences may not contain the character NUL."
        raise UserError("invalid_request", message, details=(Problem(message, where),))
    await house.runtime.users.put_preferences(ask.identity.user, wanted)
    return json(wanted)
