"""The guard at the doors: settings, the keys as they are now, and who has been shut out. May import `web.auth`.

One per server, made before the tree. `refresh.KeyRefresher` keeps `keys` fresh when they come from a URL.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from attrs import define, field

from web.auth.credentials import Credentials
from web.auth.identity import Denied, Identity
from web.auth.keys import load_key_file
from web.auth.settings import AuthSettings
from web.auth.tokens import Key, authenticate

REVOKED = Denied("revoked", "Access has been withdrawn.")


def _nobody_listens() -> None:
    """Unknown keys concern nobody until a refresher asks to be told."""


@define
class Guard:
    """Answers who somebody is. Who is shut out it knows from memory; `revocations` keeps that for good."""

    settings: AuthSettings
    keys: tuple[Key, ...] = ()
    on_unknown_key: Callable[[], None] = _nobody_listens
    clock: Callable[[], float] = time.time
    _revoked: set[str] = field(factory=set, init=False)

    @classmethod
    def open(cls, settings: AuthSettings) -> Guard:
        """A guard with the keys of a key set file. Raises UserError (`bad_settings`) when it cannot be read."""
        local = settings.key_set and "://" not in settings.key_set
        return cls(settings, load_key_file(settings.key_set) if local else ())

    def authenticate(self, credentials: Credentials) -> Identity | Denied:
        answer = authenticate(self.settings, self.keys, credentials)
        if isinstance(answer, Denied):
            if answer.code == "unknown_key":
                self.on_unknown_key()
            return answer
        return REVOKED if answer.user in self._revoked else answer

    def revoke(self, user: str) -> None:
        """Refuses this user from now on; disconnecting live sockets is the roster's part (`users:<id>`)."""
        self._revoked.add(user)

    def restore(self, user: str) -> None:
        self._revoked.discard(user)

    def shut_out(self, users: frozenset[str]) -> frozenset[str]:
        """Refuses these users and no others from now on; those among them who are new."""
        new = users - self._revoked
        self._revoked = set(users)
        return new
