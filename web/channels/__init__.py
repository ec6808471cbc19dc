"""The application's channels: `task:<uuid>` (one task, live) and `user:<external_id>` (what becomes of all of them).

`payloads` says what clients are sent, `requests` what they may send, `cursor` what a client has been shown already.
May import `engine` and `web.sockets`.
"""
