"""The protocol's cases, frame by frame, over every kind of line. Numbers are those of the protocol's list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.otp import Shutdown
from tests.web.sockets.lines import Client, ask
from tests.web.sockets.server import Server

T = "room:1"
OK: dict[str, Any] = {"status": "ok", "response": {}}
UNMATCHED = {"status": "error", "response": {"reason": "unmatched topic"}}
Open = Callable[..., Any]


def reply(join_ref: Any, ref: Any, status: str = "ok", response: Any = None, topic: str = T) -> list[Any]:
    return [join_ref, ref, topic, "phx_reply", {"status": status, "response": {} if response is None else response}]


async def join(client: Client, join_ref: str | None = "11", ref: str = "1", topic: str = T, **params: Any) -> Any:
    return await ask(client, join_ref, ref, topic, "phx_join", params)


async def nothing_before_heartbeat(client: Client) -> None:
    """What comes next is the answer to a heartbeat sent now: the Socket had nothing else to say."""
    assert await ask(client, None, "hb", "phoenix", "heartbeat", {}) == [None, "hb", "phoenix", "phx_reply", OK]


async def nothing_before_ping(client: Client, join_ref: str = "11", topic: str = T) -> None:
    """What comes next is the answer to an event sent now: the channel had nothing else to say."""
    assert await ask(client, join_ref, "png", topic, "ping", {}) == reply(join_ref, "png", topic=topic)


# --- heartbeat ----------------------------------------------------------------------------------------


async def test_case_15_a_heartbeat_is_answered(client: Client) -> None:
    answer = await ask(client, None, "1", "phoenix", "heartbeat", {})
    assert answer == [None, "1", "phoenix", "phx_reply", OK]


@pytest.mark.parametrize("join_ref", ["", "7", 7])
async def test_case_16_a_heartbeat_with_a_join_ref_is_answered_without(client: Client, join_ref: Any) -> None:
    answer = await ask(client, join_ref, "1", "phoenix", "heartbeat", {})
    assert answer == [None, "1", "phoenix", "phx_reply", OK]


async def test_case_18_another_event_on_the_phoenix_topic_is_unmatched(client: Client) -> None:
    assert await ask(client, None, "1", "phoenix", "greet", {}) == [None, "1", "phoenix", "phx_reply", UNMATCHED]


async def test_a_heartbeat_does_not_wait_for_a_slow_join(server: Server, client: Client) -> None:
    await client.send(["11", "1", T, "phx_join", {"wait": "gate"}])
    await server.room.log.wait_for("joining", T)
    await nothing_before_heartbeat(client)
    server.room.gates["gate"].set()
    assert await client.receive() == reply("11", "1")


# --- join ---------------------------------------------------------------------------------------------


async def test_case_19_a_join_is_answered_with_both_refs(client: Client) -> None:
    assert await join(client) == reply("11", "1")


async def test_case_20_a_join_answers_what_the_channel_returns(client: Client) -> None:
    assert await join(client, answer={"room": "é"}) == reply("11", "1", response={"room": "é"})


async def test_case_21_a_push_after_the_join_follows_the_reply(client: Client) -> None:
    assert await join(client, after={"n": 1}) == reply("11", "1")
    assert await client.receive() == ["11", None, T, "joined", {"n": 1}]


async def test_a_push_made_while_joining_follows_the_reply_too(client: Client) -> None:
    assert await join(client, push_first=True) == reply("11", "1")
    assert await client.receive() == ["11", None, T, "early", {"n": 1}]


async def test_case_22_the_joiner_gets_its_own_broadcast_with_its_join_ref(client: Client) -> None:
    await join(client)
    await client.send(["11", "2", T, "shout", {"n": 1}])
    assert await client.receive() == ["11", None, T, "shouted", {"n": 1}]
    assert await client.receive() == reply("11", "2")


async def test_case_23_a_refused_join_is_answered_and_leaves_nothing_behind(client: Client) -> None:
    assert await join(client, refuse="no") == reply("11", "1", "error", {"reason": "no"})
    assert await ask(client, "11", "2", T, "ping", {}) == [None, "2", T, "phx_reply", UNMATCHED]


async def test_case_24_a_join_that_raises_is_answered_and_the_socket_lives(client: Client) -> None:
    answer = await ask(client, "11", "1", T, "phx_join", {"raise": True})
    assert answer == reply("11", "1", "error", {"reason": "join crashed"})
    assert await join(client, "12", "2") == reply("12", "2")


async def test_case_25_a_topic_that_nobody_serves_is_unmatched(client: Client) -> None:
    assert await join(client, topic="nowhere") == [None, "1", "nowhere", "phx_reply", UNMATCHED]


async def test_case_26_the_101st_join_is_refused(client: Client) -> None:
    for n in range(1, 101):
        await join(client, str(n), str(n), f"room:{n}")
    refusal = {"reason": "too many channels joined"}
    assert await join(client, "101", "101", "room:101") == reply("101", "101", "error", refusal, "room:101")


async def test_case_27_the_limit_can_be_one(open_server: Open) -> None:
    async with open_server(most_channels=1) as server, server.connect() as client:
        await join(client)
        refusal = {"reason": "too many channels joined"}
        assert await join(client, "12", "2", "room:2") == reply("12", "2", "error", refusal, "room:2")


async def both(client: Client) -> list[Any]:
    """Two frames whose order the protocol leaves open, by the join_ref of the first."""
    return sorted([await client.receive(), await client.receive()], key=lambda frame: (frame[0], frame[3]))


async def test_case_28_a_second_join_closes_the_first_once(client: Client) -> None:
    await join(client)
    await client.send(["12", "2", T, "phx_join", {}])
    assert await both(client) == [["11", "11", T, "phx_close", {}], reply("12", "2")]
    await nothing_before_heartbeat(client)


async def test_case_29_after_that_only_the_second_join_is_heard(client: Client) -> None:
    await join(client)
    await client.send(["12", "2", T, "phx_join", {}])
    await both(client)
    await client.send(["11", "3", T, "ping", {}])
    assert await ask(client, "12", "4", T, "ping", {}) == reply("12", "4")


async def test_case_30_a_refused_second_join_still_closes_the_first(client: Client) -> None:
    await join(client)
    await client.send(["12", "2", T, "phx_join", {"refuse": "no"}])
    assert await both(client) == [["11", "11", T, "phx_close", {}], reply("12", "2", "error", {"reason": "no"})]
    assert await ask(client, "11", "3", T, "ping", {}) == [None, "3", T, "phx_reply", UNMATCHED]


async def test_case_31_a_second_join_is_allowed_at_the_limit(open_server: Open) -> None:
    async with open_server(most_channels=1) as server, server.connect() as client:
        await join(client)
        await client.send(["12", "2", T, "phx_join", {}])
        assert await both(client) == [["11", "11", T, "phx_close", {}], reply("12", "2")]


async def test_case_32_leave_and_join_sent_together_end_joined(client: Client) -> None:
    await join(client)
    await client.send(["11", "2", T, "phx_leave", {}])
    await client.send(["12", "3", T, "phx_join", {}])
    frames = [await client.receive() for _ in range(3)]
    assert reply("11", "2") in frames
    assert ["11", "11", T, "phx_close", {}] in frames
    assert reply("12", "3") in frames
    assert await ask(client, "12", "4", T, "ping", {}) == reply("12", "4")


async def test_case_33_a_join_that_hangs_gives_way_to_leave_and_another_join(server: Server, client: Client) -> None:
    await client.send(["11", "1", T, "phx_join", {"wait": "never"}])
    await server.room.log.wait_for("joining", T)
    await client.send(["11", "2", T, "phx_leave", {}])
    await client.send(["12", "3", T, "phx_join", {}])
    frames = [await client.receive()]
    while frames[-1] != reply("12", "3"):
        frames.append(await client.receive())
    assert reply("11", "2") in frames
    assert await ask(client, "12", "4", T, "ping", {}) == reply("12", "4")


async def test_case_34_an_event_sent_with_the_join_is_answered_after_it(client: Client) -> None:
    await client.send(["11", "1", T, "phx_join", {}])
    await client.send(["11", "2", T, "echo", {"n": 1}])
    assert await client.receive() == reply("11", "1")
    assert await client.receive() == reply("11", "2", response={"n": 1})


async def test_case_35_the_first_pattern_that_fits_serves_the_topic(client: Client) -> None:
    food, foo = await join(client, topic="food:1"), await join(client, topic="foo:1")
    assert [food[4]["response"], foo[4]["response"]] == [{"pattern": "food"}, {"pattern": "foo"}]


async def test_a_join_without_join_ref_is_answered_without_and_pushes_carry_its_ref(client: Client) -> None:
    assert await join(client, None, "5", after={"n": 1}) == reply(None, "5")
    assert await client.receive() == ["5", None, T, "joined", {"n": 1}]
    await client.send([None, "6", T, "stop", None])
    assert await client.receive() == [None, None, T, "phx_close", {}]


# --- events -------------------------------------------------------------------------------------------


async def test_case_36_ok_is_an_empty_object(client: Client) -> None:
    await join(client)
    assert await ask(client, "11", "2", T, "ping", {}) == reply("11", "2")


@pytest.mark.parametrize("response", [{"a": {"b": [1, None]}}, [1, 2], "text", 1.5, True, None])
async def test_case_37_a_reply_may_have_any_status_and_any_response(client: Client, response: Any) -> None:
    await join(client)
    answer = await ask(client, "11", "2", T, "status", {"status": "perhaps", "response": response})
    assert answer == ["11", "2", T, "phx_reply", {"status": "perhaps", "response": response}]


async def test_case_38_no_reply_is_no_frame(client: Client) -> None:
    await join(client)
    await client.send(["11", "2", T, "quiet", {}])
    await nothing_before_ping(client)


async def test_case_39_a_late_reply_carries_the_refs_of_its_message(client: Client) -> None:
    await join(client)
    await client.send(["11", "2", T, "later", {"n": 2}])
    await nothing_before_ping(client)
    assert await client.receive() == reply("11", "2", response={"n": 2})


async def test_case_40_an_event_on_a_topic_never_joined_is_unmatched(server: Server, client: Client) -> None:
    assert await ask(client, "11", "1", T, "crash", {}) == [None, "1", T, "phx_reply", UNMATCHED]
    await nothing_before_heartbeat(client)
    assert server.room.log.lines == []


async def test_case_41_an_event_after_a_leave_is_unmatched(client: Client) -> None:
    await join(client)
    await client.send(["11", "2", T, "phx_leave", {}])
    assert [await client.receive(), await client.receive()] == [reply("11", "2"), ["11", "11", T, "phx_close", {}]]
    assert await ask(client, "11", "3", T, "ping", {}) == [None, "3", T, "phx_reply", UNMATCHED]


async def test_case_42_an_event_without_join_ref_is_handled(client: Client) -> None:
    await join(client)
    assert await ask(client, None, "2", T, "echo", {"n": 1}) == reply(None, "2", response={"n": 1})


async def test_case_43_an_event_of_another_join_is_ignored(client: Client) -> None:
    await join(client)
    await client.send(["10", "2", T, "crash", {}])
    await nothing_before_heartbeat(client)
    await nothing_before_ping(client)


async def test_case_44_a_broadcast_reaches_all_and_broadcast_from_spares_the_sender(server: Server) -> None:
    async with server.connect() as one, server.connect() as two:
        await join(one)
        await join(two, "21")
        await one.send(["11", "2", T, "shout", {"n": 1}])
        assert await one.receive() == ["11", None, T, "shouted", {"n": 1}]
        assert await one.receive() == reply("11", "2")
        assert await two.receive() == ["21", None, T, "shouted", {"n": 1}]
        await one.send(["11", "3", T, "shout_others", {"n": 2}])
        assert await one.receive() == reply("11", "3")
        assert await two.receive() == ["21", None, T, "shouted", {"n": 2}]


async def test_case_45_a_member_may_rewrite_what_it_is_told(server: Server) -> None:
    async with server.connect() as one, server.connect() as two:
        await join(one)
        await join(two, "21")
        await one.send(["11", "2", T, "whisper", {"n": 1}])
        assert await two.receive() == ["21", None, T, "whispered", {"n": 1, "to": T}]


async def test_case_46_a_handler_that_raises_ends_its_channel_with_phx_error(client: Client) -> None:
    await join(client)
    await client.send(["11", "2", T, "crash", {}])
    assert await client.receive() == ["11", "11", T, "phx_error", {"reason": "channel_crash"}]
    await nothing_before_heartbeat(client)


async def test_case_47_other_topics_live_on_and_the_crashed_one_can_be_joined_again(client: Client) -> None:
    await join(client)
    await join(client, "12", "2", "room:2")
    await client.send(["11", "3", T, "crash", {}])
    assert (await client.receive())[3] == "phx_error"
    await nothing_before_ping(client, "12", "room:2")
    assert await join(client, "13", "4") == reply("13", "4")


async def test_case_48_a_channel_that_stops_says_phx_close_after_its_reply(client: Client) -> None:
    await join(client)
    await client.send(["11", "2", T, "stop", {"reply": True}])
    assert await client.receive() == reply("11", "2", response={"bye": True})
    assert await client.receive() == ["11", "11", T, "phx_close", {}]
    await join(client, "12", "3")
    await client.send(["12", "4", T, "stop", None])
    assert await client.receive() == ["12", "12", T, "phx_close", {}]


@pytest.mark.parametrize("event", ["push", "shout"])
@pytest.mark.parametrize("payload", [None, 1, [1]])
async def test_case_49_an_event_that_is_no_object_is_the_servers_fault(
    client: Client, event: str, payload: Any
) -> None:
    await join(client)
    await client.send(["11", "2", T, event, payload])
    assert await client.receive() == ["11", "11", T, "phx_error", {"reason": "channel_crash"}]


async def test_messages_of_one_client_are_handled_in_order_and_all(client: Client) -> None:
    await join(client)
    for n in range(300):
        await client.send(["11", str(n), T, "echo", {"n": n}])
    answers = [await client.receive() for _ in range(300)]
    assert [frame[4]["response"]["n"] for frame in answers] == list(range(300))


# --- leave --------------------------------------------------------------------------------------------


async def test_case_50_leaving_is_answered_and_then_closed(server: Server, client: Client) -> None:
    await join(client)
    assert await ask(client, "11", "2", T, "phx_leave", {}) == reply("11", "2")
    assert await client.receive() == ["11", "11", T, "phx_close", {}]
    await server.room.log.wait_for("terminated", T)


async def test_case_51_leaving_without_join_ref_closes_with_the_joins(client: Client) -> None:
    await join(client)
    assert await ask(client, None, "2", T, "phx_leave", {}) == reply(None, "2")
    assert await client.receive() == ["11", "11", T, "phx_close", {}]


async def test_case_52_leaving_another_join_does_nothing(client: Client) -> None:
    await join(client)
    await client.send(["10", "2", T, "phx_leave", {}])
    await nothing_before_ping(client)


async def test_case_53_leaving_what_is_not_joined_is_answered(client: Client) -> None:
    assert await ask(client, "11", "1", T, "phx_leave", {}) == reply("11", "1")
    await nothing_before_heartbeat(client)


# --- V1 and binary --------------------------------------------------------------------------------------


async def test_case_55_to_57_bytes_travel_in_binary_frames(client: Client) -> None:
    await join(client, "12", "123")
    head = bytes((0, 2, 3, len(T), 5))
    await client.send(head + b"12" + b"123" + T.encode() + b"bytes" + b"data")
    push = bytes((0, 2, len(T), 6)) + b"12" + T.encode() + b"pushed" + b"efg"
    broadcast = bytes((2, len(T), 7)) + T.encode() + b"shouted" + b"hij"
    answer = bytes((1, 2, 3, len(T), 2)) + b"12" + b"123" + T.encode() + b"ok" + b"klm"
    assert [await client.receive() for _ in range(3)] == [push, broadcast, answer]


async def test_case_60_a_v1_client_gets_objects_and_its_integer_ref(server: Server) -> None:
    async with server.connect("vsn=1.0.0") as client:
        await client.send({"topic": T, "event": "phx_join", "payload": {"after": {"n": 1}}, "ref": 1})
        assert await client.receive() == {"topic": T, "event": "phx_reply", "ref": 1, "payload": OK}
        assert await client.receive() == {"topic": T, "event": "joined", "ref": None, "payload": {"n": 1}}
        await client.send({"topic": T, "event": "crash", "payload": {}, "ref": 2})
        crash = {"reason": "channel_crash"}
        assert await client.receive() == {"topic": T, "event": "phx_error", "ref": None, "payload": crash}


async def test_case_61_a_v1_socket_fed_an_array_closes_with_1011(server: Server) -> None:
    async with server.connect("vsn=1.0.0") as client:
        await client.send([None, "1", "phoenix", "heartbeat", {}])
        assert await client.closed() == 1011


async def test_both_wires_meet_in_one_room(server: Server) -> None:
    async with server.connect("vsn=1.0.0") as old, server.connect() as new:
        await old.send({"topic": T, "event": "phx_join", "payload": {}, "ref": 1})
        await old.receive()
        await join(new)
        await new.send(["11", "2", T, "shout_others", {"n": 1}])
        assert await old.receive() == {"topic": T, "event": "shouted", "ref": None, "payload": {"n": 1}}


# --- the end of a socket ----------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["nonsense", "{}", '["1","1","t","e"]', b"\x09\x00\x00\x00\x00", b""])
async def test_case_65_a_malformed_frame_closes_its_own_socket_alone(server: Server, message: str | bytes) -> None:
    async with server.connect() as bad, server.connect() as good:
        await join(good)
        await bad.send(message)
        assert await bad.closed() == 1011
        await nothing_before_ping(good)
    assert server.faults.counts["malformed_frame"] == 1


async def test_case_63_when_the_client_goes_its_channels_end(server: Server) -> None:
    async with server.connect() as client:
        await join(client)
        await join(client, "12", "2", "room:2")
        assert server.joined == 2
    await server.all_gone()


async def test_a_socket_process_that_is_killed_closes_with_1011_and_takes_its_channels(server: Server) -> None:
    async with server.connect() as client:
        await join(client)
        await server.kill_sockets()
        assert await client.closed() == 1011
    await server.all_gone()


async def test_a_socket_that_is_ended_to_save_memory_tells_its_client_to_come_back_later(server: Server) -> None:
    async with server.connect() as client:
        await join(client)
        await server.kill_sockets(Shutdown("memory"))
        assert await client.closed() == 1013
    await server.all_gone()


async def test_a_channel_process_that_is_killed_is_a_crash_to_its_client(server: Server, client: Client) -> None:
    await join(client)
    server.kill_channels(T)
    assert await client.receive() == ["11", "11", T, "phx_error", {"reason": "channel_crash"}]
    assert await join(client, "12", "2") == reply("12", "2")
