"""The server itself: listeners, HTTP/1.1 for an ASGI application, WebSockets on a data path of our own.

    endpoint = Endpoint(EndpointSettings(port=0), app)        # made before the tree
    children = [..., endpoint.spec()]
    endpoint.urls                                             # once it listens
    await endpoint.drain()                                    # before the tree is stopped

`head`, `chunks` and `answer` are HTTP's grammar, pure; `http1` a connection that speaks it, `call` one request of it,
`connection` a client from its first byte to its last. `handshake` is what a WebSocket request may become, `stream` the
WebSocket afterwards and `hub` all of them at once; `asgi` is the same kind of transport over any other ASGI server.
May import `engine` and `web.sockets.transport`.
"""

from web.endpoint.endpoint import Endpoint
from web.endpoint.roster import Roster
from web.endpoint.serve import serve_socket
from web.endpoint.settings import EndpointSettings

__all__ = ["Endpoint", "EndpointSettings", "Roster", "serve_socket"]
