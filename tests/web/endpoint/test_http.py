"""HTTP over the endpoint: what is answered, what is refused, and what a client cannot make the server hold."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import trio

from engine.otp import Node
from engine.otp.preempt import Watchdog
from tests.web.endpoint.raw import Response, connect, get, request, upgrade
from tests.web.endpoint.running import lifespan, running, until


async def answers(port: int, data: bytes) -> Response:
    async with connect(port) as client:
        await client.say(data)
        return await client.response()


async def test_requests_are_answered_one_after_another_on_one_connection(node: Node) -> None:
    async with running() as endpoint, connect(endpoint.port) as client:
        for _ in range(3):
            await client.say(request("/"))
            assert (await client.response()).body == b"alive"


async def test_pipelined_requests_are_answered_in_order(node: Node) -> None:
    async with running() as endpoint, connect(endpoint.port) as client:
        posts = b"".join(request("/size", f"Content-Length: {n}", method="POST", body=b"x" * n) for n in (3, 70000, 1))
        await client.say(posts)
        assert [(await client.response()).body for _ in range(3)] == [b"3", b"70000", b"1"]


async def test_a_chunked_body_arrives_whole(node: Node) -> None:
    async with running() as endpoint, connect(endpoint.port) as client:
        await client.say(request("/size", "Transfer-Encoding: chunked", method="POST"))
        for _ in range(5):
            await client.say(b"3\r\nabc\r\n")
        await client.say(b"0\r\n\r\n")
        assert (await client.response()).body == b"15"


async def test_a_client_that_waits_for_it_is_told_to_continue(node: Node) -> None:
    async with running() as endpoint, connect(endpoint.port) as client:
        await client.say(request("/size", "Content-Length: 3", "Expect: 100-continue", method="POST"))
        assert (await client.response(bodyless=True)).status == 100
        await client.say(b"abc")
        assert (await client.response()).body == b"3"


async def test_a_head_request_has_no_body(node: Node) -> None:
    async with running() as endpoint, connect(endpoint.port) as client:
        await client.say(request("/", method="HEAD") + request("/"))
        assert (await client.response(bodyless=True)).headers["content-length"] == "5"
        assert (await client.response()).body == b"alive"


async def test_a_handler_that_raises_is_a_500_without_its_traceback(node: Node) -> None:
    async with running() as endpoint, connect(endpoint.port) as client:
        await client.say(request("/crash"))
        found = await client.response()
        assert found.status == 500
        assert b"Traceback" not in found.body
        assert b"fault" not in found.body


async def test_an_exit_raised_in_a_handler_is_a_500_and_no_more(node: Node) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        if scope["path"] == "/exit":
            from engine.otp import Exit

            raise Exit("some server's reason")
        return await alive(send)

    async with running(app) as endpoint:
        assert (await get(endpoint.port, "/exit")).status == 500
        assert (await get(endpoint.port)).status == 200


async def test_a_handler_that_holds_the_loop_is_interrupted_and_its_server_goes_on(node: Node) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        while scope["path"] == "/spin":
            pass
        return await alive(send)

    async with running(app) as endpoint, connect(endpoint.port) as steady:
        with Watchdog(budget=0.2):
            assert (await get(endpoint.port, "/spin")).status == 500
        await steady.say(request("/"))
        assert (await steady.response()).body == b"alive"
        assert endpoint.faults.counts == {"application_error": 1}


def answering(*messages: dict[str, Any]) -> Any:
    """An application that says just this."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        for message in messages:
            await send({"type": "http.response.start" if "status" in message else "http.response.body", **message})
        return None

    return app


async def test_an_answer_of_unknown_length_comes_in_chunks(node: Node) -> None:
    parts = ({"body": b"ab", "more_body": True}, {"body": b"", "more_body": True}, {"body": b"c"})
    async with running(answering({"status": 200}, *parts)) as endpoint, connect(endpoint.port) as client:
        await client.say(request("/") + request("/", "Connection: close"))
        said = await client.rest()
        assert said.count(b"transfer-encoding: chunked\r\n") == 2
        assert said.count(b"\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n") == 2
        assert b"content-length" not in said


async def test_to_an_old_client_the_end_of_the_connection_is_the_end_of_the_answer(node: Node) -> None:
    app = answering({"status": 200}, {"body": b"ab", "more_body": True}, {"body": b"c"})
    async with running(app) as endpoint, connect(endpoint.port) as client:
        await client.say(b"GET / HTTP/1.0\r\n\r\n")
        assert (await client.rest()).endswith(b"connection: close\r\n\r\nabc")


@pytest.mark.parametrize(
    "messages",
    [
        ({"status": 200, "headers": [(b"x", b"a\r\nset-cookie: b")]}, {"body": b"x"}),
        ({"status": 200, "headers": [(b"x\r\ny", b"a")]}, {"body": b"x"}),
        ({"status": 200, "headers": [(b"content-length", b"3")]}, {"body": b"four"}),
        ({"status": 200, "headers": [(b"content-length", b"3")]}, {"body": b"x"}),
        ({"status": 200}, {"status": 200}),
        ({"body": b"x"},),
        (),
    ],
)
async def test_an_answer_that_is_none_becomes_a_500(node: Node, messages: tuple[dict[str, Any], ...]) -> None:
    """A header with a line end in it would be two headers, or another answer."""
    async with running(answering(*messages)) as endpoint:
        found = await answers(endpoint.port, request("/"))
        assert (found.status, found.headers["connection"]) == (500, "close")
        assert b"set-cookie" not in found.body


async def test_an_answer_that_breaks_off_does_not_look_whole(node: Node) -> None:
    app = answering({"status": 200}, {"body": b"ab", "more_body": True}, {"status": 200})
    async with running(app) as endpoint, connect(endpoint.port) as client:
        await client.say(request("/"))
        assert (await client.rest()).endswith(b"\r\n\r\n2\r\nab\r\n")


async def test_an_answer_without_a_body_says_nothing_of_one(node: Node) -> None:
    async with running(answering({"status": 204}, {"body": b"ignored"})) as endpoint, connect(endpoint.port) as client:
        await client.say(request("/") * 2)
        for _ in range(2):
            found = await client.response(bodyless=True)
            assert (found.status, {"content-length", "transfer-encoding"} & set(found.headers)) == (204, set())


async def test_a_connection_whose_request_was_not_read_to_its_end_is_closed_with_the_answer(node: Node) -> None:
    app = answering({"status": 403, "headers": [(b"content-length", b"0")]}, {"body": b""})
    async with running(app) as endpoint, connect(endpoint.port) as client:
        await client.say(request("/", "Content-Length: 100", method="POST", body=b"x"))
        assert (await client.response()).headers["connection"] == "close"
        assert await client.rest() == b""


async def test_a_websocket_request_with_a_body_is_refused(node: Node) -> None:
    async with running() as endpoint:
        assert (await answers(endpoint.port, upgrade("/echo", "Content-Length: 3") + b"abc")).status == 400


async def test_a_declared_body_that_is_too_large_is_the_applications_to_refuse(node: Node) -> None:
    """It can say so in its own words, and to pages of other sites; without having been sent the body."""
    app = answering({"status": 413, "headers": [(b"content-length", b"0")]}, {"body": b""})
    async with running(app, max_body=1000) as endpoint:
        asked = request("/", "Content-Length: 2000000", "Expect: 100-continue", method="POST")
        found = await answers(endpoint.port, asked)
        assert (found.status, found.headers["connection"]) == (413, "close")


async def alive(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"alive"})


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (request("/", "Bad Name: x"), 400),
        (request("/", "Content-Length: x", method="POST"), 400),
        (request("/", "Content-Length: 1", "Content-Length: 2", method="POST"), 400),
        (request("/", "Transfer-Encoding: gzip", method="POST"), 501),
        (request("/", "Content-Length: 5", "Transfer-Encoding: chunked", method="POST", body=b"0\r\n\r\n"), 400),
        (request("/", "X: " + "x" * 20000), 431),
        (request("/" + "x" * 20000), 431),
        (request("/size", "Transfer-Encoding: chunked", method="POST", body=b"zz\r\n"), 400),
        (request("/size", "Content-Length: 9", method="POST", body=b"short") + b"", 408),
        (upgrade("/socket", version="8"), 426),
        (upgrade("/socket", key="short"), 400),
        (upgrade("/socket", key="!" * 24), 400),
    ],
)
async def test_what_is_wrong_is_refused_and_the_server_goes_on(node: Node, data: bytes, status: int) -> None:
    async with running(body_timeout=0.2, min_body_rate=0) as endpoint:
        found = await answers(endpoint.port, data)
        assert found.status == status
        assert found.headers["connection"] == "close"
        assert (await get(endpoint.port)).status == 200
        assert sum(endpoint.faults.counts.values()) == 1, "it is noted once"


async def test_an_h2c_upgrade_is_answered_as_if_it_had_not_been_asked_for(node: Node) -> None:
    async with running() as endpoint:
        asked = request("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: !!!")
        assert (await answers(endpoint.port, asked)).status == 200


async def test_a_body_that_is_too_large_is_refused_and_the_answer_can_be_read(node: Node) -> None:
    """Ten megabytes are on their way when the answer is given; closing at once would reset the connection."""
    asked = request("/size", f"Content-Length: {10 << 20}", method="POST", body=b"x" * (10 << 20))
    async with (
        running(max_body=1 << 20) as endpoint,
        connect(endpoint.port) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(client.say, asked)
        assert (await client.response()).status == 413


async def test_a_chunked_body_that_grows_too_large_is_refused(node: Node) -> None:
    async with running(max_body=100_000) as endpoint, connect(endpoint.port) as client:
        await client.say(request("/size", "Transfer-Encoding: chunked", method="POST"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.say, b"2000\r\n%b\r\n" % (b"x" * 0x2000) * 20)
            assert (await client.response()).status == 413


async def test_bodies_of_all_clients_together_are_bounded(node: Node) -> None:
    async with (
        running(max_buffered=100_000) as endpoint,
        connect(endpoint.port) as first,
        connect(endpoint.port) as second,
    ):
        assert endpoint._server is not None
        budget = endpoint._server.hub.budget
        await first.say(request("/size", "Content-Length: 90000", method="POST", body=b"x" * 80_000))
        await until(lambda: budget.held == 80_000)
        await second.say(request("/size", "Content-Length: 90000", method="POST", body=b"x" * 80_000))
        refused = await second.response()
        assert refused.status == 503
        await first.say(b"x" * 10_000)
        assert (await first.response()).body == b"90000"
        await until(lambda: budget.held == 0)


async def test_a_body_in_very_many_very_small_chunks_is_refused(node: Node) -> None:
    """Six bytes of a client's cost us twenty microseconds; a body in a few hundred such chunks is served."""
    async with running() as endpoint, connect(endpoint.port) as patient, connect(endpoint.port) as hostile:
        for client in (patient, hostile):
            await client.say(request("/size", "Transfer-Encoding: chunked", method="POST"))
        await patient.say(b"1\r\nx\r\n" * 200 + b"0\r\n\r\n")
        assert (await patient.response()).body == b"200"
        await hostile.say(b"1\r\nx\r\n" * 5000)
        assert (await hostile.response()).status == 400


async def test_headers_that_trickle_are_given_up(node: Node) -> None:
    async with running(header_timeout=0.3) as endpoint, connect(endpoint.port) as client:
        await client.say(b"GET / HTTP/1.1\r\nHost: x\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle, client)
            assert (await client.response()).status == 408
            nursery.cancel_scope.cancel()


async def trickle(client: Any) -> None:
    """Until it is cancelled, or the server has had enough."""
    with contextlib.suppress(trio.BrokenResourceError):
        while True:
            await client.say(b"X-Slow: x\r\n")
            await trio.sleep(0.05)


async def test_a_body_that_trickles_is_given_up_and_one_that_flows_is_not(node: Node) -> None:
    async with (
        running(body_timeout=0.3, min_body_rate=1000) as endpoint,
        connect(endpoint.port) as slow,
        connect(endpoint.port) as steady,
    ):
        await slow.say(request("/size", "Content-Length: 1000", method="POST", body=b"x"))
        await steady.say(request("/size", "Content-Length: 5000", method="POST"))
        for _ in range(10):  # half a second, at ten times the rate that is asked for
            await steady.say(b"x" * 500)
            await trio.sleep(0.05)
        assert (await steady.response()).body == b"5000"
        assert (await slow.response()).status == 408


async def test_a_client_that_says_nothing_is_dropped(node: Node) -> None:
    async with running(header_timeout=0.2) as endpoint, connect(endpoint.port) as client:
        assert await client.rest() == b""


async def test_a_kept_connection_is_dropped_when_no_request_follows(node: Node) -> None:
    async with running(keep_alive_timeout=0.2) as endpoint, connect(endpoint.port) as client:
        await client.say(request("/"))
        assert (await client.response()).status == 200
        assert await client.rest() == b""


async def test_a_client_that_does_not_read_its_answer_is_dropped(node: Node) -> None:
    async with running(write_timeout=0.3) as endpoint, connect(endpoint.port) as client:
        await client.say(request("/big"))
        await until(lambda: not endpoint.connections)
        assert len(await client.rest()) < 64 << 20
        assert endpoint.faults.counts == {"client_does_not_read": 1}


async def test_too_many_connections_are_refused_and_room_is_made_again(node: Node) -> None:
    async with running(max_connections=2) as endpoint:
        async with connect(endpoint.port) as first, connect(endpoint.port) as second:
            for client in (first, second):
                await client.say(request("/"))
                assert (await client.response()).status == 200
            async with connect(endpoint.port) as third:
                found = await third.response()
                assert found.status == 503
                assert "retry-after" in found.headers
        await until(lambda: not endpoint.connections)
        assert (await get(endpoint.port)).status == 200


async def test_too_many_connections_from_one_address_are_refused(node: Node) -> None:
    async with running(max_per_address=1) as endpoint, connect(endpoint.port) as first:
        await first.say(request("/"))
        assert (await first.response()).status == 200
        async with connect(endpoint.port) as second:
            assert (await second.response()).status == 429


async def test_a_handler_goes_on_while_its_server_drains_and_newcomers_are_refused(node: Node) -> None:
    release = trio.Event()
    entered = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        entered.set()
        await release.wait()
        return await alive(send)

    async with running(app) as endpoint, connect(endpoint.port) as busy, connect(endpoint.port) as idle:
        port = endpoint.port
        await busy.say(request("/"))
        await entered.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(endpoint.drain, 5.0)
            assert await idle.rest() == b"", "whoever has asked for nothing is let go"
            with pytest.raises(OSError, match=r"[Rr]efused|attempts to connect"):
                await trio.open_tcp_stream("127.0.0.1", port)
            release.set()
            found = await busy.response()
        assert (found.body, found.headers["connection"]) == (b"alive", "close")


async def test_a_drain_ends_at_its_deadline(node: Node) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        return await trio.sleep_forever()

    async with running(app) as endpoint, connect(endpoint.port) as busy:
        await busy.say(request("/"))
        with trio.fail_after(2):
            await endpoint.drain(0.3)
