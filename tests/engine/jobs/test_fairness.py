"""Whose turn it is."""

from collections import Counter
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from engine.jobs.fairness import FairQueue, ahead, next_turn


def filled(users: str) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for user in users:
        queue.push(uuid4(), user, 4, user)
    return queue


def drained(queue: FairQueue[str]) -> str:
    taken = []
    while (user := queue.pop()) is not None:
        taken.append(user)
    return "".join(taken)


def test_a_newcomer_goes_before_the_second_job_of_someone_with_a_thousand() -> None:
    assert drained(filled("a" * 1000 + "b")).index("b") == 1


def test_users_with_many_jobs_take_turns() -> None:
    assert drained(filled("aaabbbccc")) == "abcabcabc"


def test_a_newcomer_does_not_overtake_those_whose_turn_it_is_now() -> None:
    queue = filled("aaaaabbbbb")
    assert [queue.pop() for _ in range(4)] == ["a", "b", "a", "b"]
    queue.push(uuid4(), "c", 4, "c")
    assert drained(queue) == "abcabab"


def test_a_more_urgent_priority_goes_first_whatever_the_turns() -> None:
    queue = filled("aaa")
    queue.push(uuid4(), "urgent", 0, "a")
    assert queue.pop() == "urgent"


def test_jobs_without_a_user_are_first_in_first_out() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(5):
        queue.push(uuid4(), number, 4, None)
    assert [queue.pop() for _ in range(6)] == [0, 1, 2, 3, 4, None]


def test_a_job_taken_out_by_id_is_gone_and_one_pushed_twice_waits_once() -> None:
    queue: FairQueue[str] = FairQueue()
    job_id: UUID = uuid4()
    queue.push(job_id, "x", 4, "a")
    queue.push(job_id, "x", 4, "a")
    assert len(queue) == 1
    assert job_id in queue
    assert queue.discard(job_id) == "x"
    assert queue.discard(job_id) is None
    assert queue.pop() is None


def test_the_first_job_of_an_empty_line_has_turn_zero() -> None:
    assert next_turn(None, None) == 0
    assert next_turn(7, None) == 7
    assert next_turn(7, 9) == 10


@given(waiting=st.text("abcd", max_size=60), newcomer=st.sampled_from("abcde"))
def test_the_predicted_place_in_line_is_the_real_one(waiting: str, newcomer: str) -> None:
    sizes = Counter(Counter(user for user in waiting if user != newcomer).values())
    predicted = ahead(waiting.count(newcomer), sizes.items())
    queue: FairQueue[str] = filled(waiting)
    queue.push(uuid4(), "me", 4, newcomer)
    place = 0
    while queue.pop() != "me":
        place += 1
    assert place == predicted
