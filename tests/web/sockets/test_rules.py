"""What a socket does with a frame, rule by rule."""

from __future__ import annotations

import pytest

from web.sockets.frames import Inbound, Ref
from web.sockets.router import Route, Router
from web.sockets.rules import Action, decide


def frame(event: str, topic: str = "room:1", join_ref: Ref = "1") -> Inbound:
    return Inbound(join_ref, "2", topic, event, {})


@pytest.mark.parametrize("join_ref", [None, "", "9", 3])
def test_case_16_a_heartbeat_is_answered_whatever_its_join_ref(join_ref: Ref) -> None:
    assert decide(frame("heartbeat", "phoenix", join_ref), False, None, False, False) is Action.HEARTBEAT


@pytest.mark.parametrize("event", ["phx_join", "phx_leave", "other"])
def test_case_18_the_phoenix_topic_knows_nothing_else(event: str) -> None:
    assert decide(frame(event, "phoenix"), False, None, True, True) is Action.UNMATCHED


def test_case_25_a_join_without_a_pattern_is_unmatched() -> None:
    assert decide(frame("phx_join"), False, None, known=False, room=True) is Action.UNMATCHED


def test_case_26_a_join_beyond_the_limit_is_refused() -> None:
    assert decide(frame("phx_join"), False, None, known=True, room=False) is Action.TOO_MANY


def test_case_31_a_rejoin_at_the_limit_is_not() -> None:
    assert decide(frame("phx_join"), True, "1", known=True, room=False) is Action.REJOIN


@pytest.mark.parametrize("join_ref", [None, "1"])
def test_case_42_events_of_the_join_or_of_none_are_delivered(join_ref: Ref) -> None:
    assert decide(frame("event", join_ref=join_ref), True, "1", False, True) is Action.DELIVER


@pytest.mark.parametrize("event", ["event", "phx_leave"])
@pytest.mark.parametrize("join_ref", ["0", "", 1])
def test_case_43_and_52_what_is_for_another_join_is_ignored(event: str, join_ref: Ref) -> None:
    assert decide(frame(event, join_ref=join_ref), True, "1", False, True) is Action.IGNORE


def test_case_53_leaving_what_is_not_joined_is_answered() -> None:
    assert decide(frame("phx_leave"), False, None, False, True) is Action.LEAVE_NOTHING


def test_case_35_the_first_pattern_that_fits_wins() -> None:
    router = Router.of(("food*", "first"), ("foo*", "second"), ("exact", "third"), ("*", "rest"))
    topics = ["food:1", "foo:1", "exact", "exactly", "foo", ""]
    assert [router.match(topic) for topic in topics] == ["first", "second", "third", "rest", "second", "rest"]


def test_a_router_without_a_fitting_pattern_says_so() -> None:
    assert Router.of(("room:*", 1)).match("rooms:1") is None


@pytest.mark.parametrize("pattern", ["", "a*b", "**"])
def test_a_star_stands_at_the_end(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        Route(pattern, 1)
