import logging
import pytest, trio
from attrs import frozen
from engine.otp import *
import engine.otp as otp


@frozen
class Get(Request[int]):
    pass


@frozen
class Add(Request[int]):
    n: int


class Counter(GenServer[int]):
    async def init(self, start=0):
        return Ok(start)

    async def handle_call(self, request, caller, state):
        match request:
            case Get():
                return Reply(state, state)
            case Add(n):
                return Reply(state + n, state + n)
            case "boom":
                raise ValueError("boom")
            case "stop":
                return Stop(SHUTDOWN, state, answer="bye")

    async def handle_cast(self, m, state):
        if m == "boom":
            raise ValueError("boom")
        return NoReply(state + m)


async def test_counter(node):
    pid = await Counter.start(5, name="c")
    assert await call("c", Get()) == 5
    cast(pid, 3)
    assert await call(pid, Add(2)) == 10
    assert str(pid).startswith("<0.")
    with pytest.raises(CallFailed) as e:
        await call(pid, "boom")
    assert isinstance(e.value.reason, Crash)
    with pytest.raises(CallFailed) as e:
        await call(pid, Get())
    assert e.value.reason is NOPROC
    assert whereis("c") is None
    p2 = await Counter.start(name="c")
    assert await call(p2, "stop") == "bye"
    p3 = await Counter.start(name="c")
    await stop(p3)
    assert not p3.alive


async def test_sup(node):
    reg = Registry(UNIQUE, "r")
    sup = await Supervisor.start_link(
        [reg.spec(), worker(Counter, 1, id="a", name=Via(reg, "a")), worker(Counter, 2, id="b", name="b")],
        strategy=ONE_FOR_ALL,
        name="root",
    )
    a = reg.whereis("a")
    with pytest.raises(CallFailed):
        await call(a, "boom")
    while reg.whereis("a") in (None, a):
        await trio.sleep(0.001)
    assert await call("b", Get()) == 2
    dyn = await DynamicSupervisor.start_link(name="dyn")
    pids = [await start_child("dyn", worker(Counter, i)) for i in range(10)]
    assert await call(pids[3], Get()) == 3
    assert (await count_children(dyn)).active == 10
    await terminate_child(dyn, pids[3])
    assert (await count_children(dyn)).active == 9
    print(otp.introspect.tree("root"))
    print(otp.introspect.info(pids[4]))
    ts = await TaskSupervisor.start_link(name="ts")

    async def f(x):
        return x + 1

    t = await async_nolink("ts", f, 3)
    assert await await_(t) == 4
