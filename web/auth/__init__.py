"""Who a client is, and whether a page of another site may speak for it. HTTP and sockets ask the same way.

    guard = Guard(AuthSettings(secret="…"))
    answer = guard.authenticate(Credentials.of(headers, query))     # Identity | Denied

`identity` has the answers, `credentials` finds the token in a request, `tokens` judges it, `refresh` keeps a key set
fresh, `origins` judges the Origin header. May import `engine`.
"""

from web.auth.credentials import Credentials, negotiate
from web.auth.guard import Guard
from web.auth.identity import DEVELOPER, Denied, Identity, Role
from web.auth.origins import OriginPolicy
from web.auth.settings import AuthSettings
from web.auth.tokens import authenticate

__all__ = [
    "DEVELOPER",
    "AuthSettings",
    "Credentials",
    "Denied",
    "Guard",
    "Identity",
    "OriginPolicy",
    "Role",
    "authenticate",
    "negotiate",
]
