"""Phoenix channels: the wire, the Socket process of a connection, the Channel process of a joined topic.

Read in this order: `frames` and `serializers` (the wire), `rules` (what a frame means), `channel` (how a channel is
written), `channel_server` and `socket` (the processes), `lane` and `pubsub` (the way out), `door` (the handshake),
`presence`, `longpoll`. `transport` is what a connection looks like from here; `web.endpoint` implements it.
"""
