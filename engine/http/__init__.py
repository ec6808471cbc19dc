"""An HTTP/1.1 client's connections, lean enough for thousands of streams of tokens; httpx runs on them.

`wire` is a socket with or without TLS, `exchange` one request and its response on it, `pool` the connections that are
kept, `transport` what httpx and httpx2 (which the official SDKs are built on) are given. Imports nothing of ours.

What is gained: `httptools` parses in C, and whatever the kernel holds is handed over as one piece, however many chunks
the server wrote. HTTP/2, proxies and Unix sockets are left to httpx's own transport.
"""
