"""The two wires, byte for byte. Numbers are those of the protocol's list of cases."""

from __future__ import annotations

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from web.sockets.event import Event
from web.sockets.frames import BadFrame, Binary, Inbound, Unencodable
from web.sockets.serializers import V1, V2, negotiate

v1, v2 = V1(), V2()
PUSH = bytes((0, 2, 3, 5, 5)) + b"12" + b"123" + b"topic" + b"event" + bytes((101, 102, 103))

refs = st.none() | st.text() | st.integers(-(2**63), 2**63 - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_case_54_a_binary_push_of_the_client_is_read() -> None:
    assert v2.decode(PUSH) == Inbound("12", "123", "topic", "event", b"efg")


def test_case_55_a_reply_with_bytes_is_binary() -> None:
    wire = v2.reply("12", "123", "topic", "ok", b"efg")
    assert isinstance(wire, Binary)
    assert wire == bytes((1, 2, 3, 5, 2)) + b"12" + b"123" + b"topic" + b"ok" + b"efg"


def test_case_56_a_push_with_bytes_carries_its_join_ref_and_no_ref() -> None:
    assert v2.push_binary("12", "topic", "event", b"efg") == bytes((0, 2, 5, 5)) + b"12topicevent" + b"efg"


def test_case_57_a_broadcast_with_bytes_carries_neither() -> None:
    wire = v2.tail("topic", "event", b"efg")
    assert isinstance(wire, Binary)
    assert wire == bytes((2, 5, 5)) + b"topicevent" + b"efg"


@pytest.mark.parametrize(
    "fields",
    [("x" * 256, "r", "t", "e"), ("j", "x" * 256, "t", "e"), ("j", "r", "x" * 256, "e"), ("j", "r", "t", "x" * 256)],
)
def test_case_58_a_header_field_of_256_bytes_is_an_error_and_not_cut(fields: tuple[str, str, str, str]) -> None:
    join_ref, ref, topic, status = fields
    with pytest.raises(Unencodable):
        v2.reply(join_ref, ref, topic, status, b"")
    if "x" * 256 not in (ref,):
        with pytest.raises(Unencodable):
            v2.push_binary(join_ref, topic, status, b"")
    assert v2.reply("x" * 255, "r", "t", "ok", b"")[1] == 255


def test_case_59_lengths_count_bytes_of_utf8() -> None:
    wire = v2.tail("room:café", "e", b"")
    assert wire[1] == 10
    incoming = bytes((0, 0, 0, 10, 1)) + "room:café".encode() + b"e" + b"data"
    assert v2.decode(incoming) == Inbound(None, None, "room:café", "e", b"data")


def test_case_60_a_v1_reply_has_four_keys_and_its_integer_ref() -> None:
    wire = v1.reply("ignored", 7, "room:1", "ok", {"a": 1})
    assert json.loads(wire) == {
        "topic": "room:1",
        "event": "phx_reply",
        "ref": 7,
        "payload": {"status": "ok", "response": {"a": 1}},
    }


@pytest.mark.parametrize(
    "message", ['["1","1","t","e",{}]', '{"topic":"t","event":"e","ref":"1"}', "{}", "nope", b"\0"]
)
def test_case_61_a_v1_socket_takes_nothing_but_its_own_objects(message: str | bytes) -> None:
    with pytest.raises(BadFrame):
        v1.decode(message)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "{}",
        "[]",
        "null",
        '["1","1","t","e"]',
        '["1","1",3,"e",{}]',
        '["1","1","t",null,{}]',
        '[{},"1","t","e",{}]',
        '["1","1","t","e",{]',
        "[" * 100_000,
        '["1","1","t","e",' + "[" * 100_000 + "]" * 100_000 + "]",
        '["1","1","t","\\ud800",{}]',
        b"",
        b"\x00\x01",
        b"\x01\x00\x00\x00\x00",
        b"\x03\x00\x00\x00\x00",
        bytes((0, 255, 0, 0, 0)) + b"short",
        bytes((0, 1, 0, 0, 0)) + b"\xff",
    ],
)
def test_case_65_what_is_not_a_frame_is_said_to_be_none(message: str | bytes) -> None:
    with pytest.raises(BadFrame) as caught:
        v2.decode(message)
    assert len(str(caught.value)) < 60


def test_further_elements_are_ignored() -> None:
    assert v2.decode('["1","2","t","e",{},"more"]') == Inbound("1", "2", "t", "e", {})


def test_the_json_is_compact_and_not_escaped() -> None:
    wire = v2.reply("1", "2", "room:café", "ok", {"a": [1, 2], "b": "é"})
    assert wire.decode() == '["1","2","room:café","phx_reply",{"status":"ok","response":{"a":[1,2],"b":"é"}}]'


@given(refs, st.text(), st.text(), st.dictionaries(st.text(), json_values))
def test_a_lead_and_a_tail_make_the_frame_of_a_push(
    join_ref: str | int | None, topic: str, event: str, payload: dict
) -> None:
    wire = v2.lead(join_ref) + v2.tail(topic, event, payload)
    assert wire == v2.frame(join_ref, None, topic, event, payload)
    assert json.loads(wire) == [join_ref, None, topic, event, payload]


@given(refs, refs, st.text(), st.text(), json_values)
def test_refs_come_back_as_they_came(join_ref: object, ref: object, topic: str, event: str, payload: object) -> None:
    frame = v2.decode(json.dumps([join_ref, ref, topic, event, payload], ensure_ascii=False))
    assert frame == Inbound(join_ref, ref, topic, event, payload)  # type: ignore[arg-type]
    echoed = json.loads(v2.reply(frame.join_ref, frame.ref, frame.topic, "ok", {}))
    assert echoed[:3] == [join_ref, ref, topic]
    assert [type(value) for value in echoed[:2]] == [type(join_ref), type(ref)]


@given(st.binary(max_size=40))
def test_any_bytes_are_a_frame_or_a_bad_frame(message: bytes) -> None:
    with contextlib.suppress(BadFrame):
        v2.decode(message)


@pytest.mark.parametrize("payload", [None, 1, "text", [1], [("a", 1)]])
def test_case_49_an_event_without_an_object_is_refused_before_it_is_sent(payload: object) -> None:
    for wire in (v1, v2):
        with pytest.raises(Unencodable):
            wire.tail("t", "e", payload)
    with pytest.raises(Unencodable):
        v2.tail("t", "e", {"a": object()})


def test_a_raw_payload_is_spliced_as_it_is() -> None:
    assert v2.tail("t", "e", msgspec.Raw(b'{"a":1}')) == b'"t","e",{"a":1}]'


def test_an_event_is_encoded_once_for_each_wire() -> None:
    event = Event("t", "e", {"a": 1})
    assert event.tail(v2) is event.tail(v2)
    assert json.loads(event.tail(v1)) == {"topic": "t", "event": "e", "payload": {"a": 1}, "ref": None}


@pytest.mark.parametrize(
    ("vsn", "version"), [("2.0.0", "2.0.0"), ("2.0.7", "2.0.0"), ("1.0.0", "1.0.0"), (None, "1.0.0")]
)
def test_case_02_the_version_decides_the_wire(vsn: str | None, version: str) -> None:
    serializer = negotiate(vsn)
    assert serializer is not None
    assert serializer.version == version


@pytest.mark.parametrize(
    "vsn", ["123.1.1", "2.0", "abc", "", "2.1.0", "3.0.0", "2.0.01", "2.0.0 ", "２.0.0", "2.0.0-rc.0"]
)
def test_case_03_other_versions_are_refused(vsn: str) -> None:
    assert negotiate(vsn) is None
