"""What a process does to others: send, link, monitor, exit, timers; and to itself: receive, init_ack.

Functions over the current node and the running process; all synchronous but `receive`.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from engine.otp.calls import fence
from engine.otp.context import current_node, current_process, process_var
from engine.otp.messages import Cast, Down, ExitSignal
from engine.otp.pid import Address, Pid, Ref, new_ref
from engine.otp.reasons import KILL, KILLED, NOPROC, TIMEOUT, Exit, Reason
from engine.otp.timers import Timer


def send(to: Address, message: object) -> None:
    """Puts a message into a mailbox; it arrives at `handle_info` or `receive`. Silent when nobody is there."""
    fence(process_var.get())
    process = current_node().awaken(to)
    if process is not None:
        process.offer(message)


def cast(server: Address, message: object) -> None:
    """Tells a server something; it arrives at `handle_cast`. Never blocks, never fails, never answers."""
    fence(process_var.get())
    process = current_node().awaken(server)
    if process is not None:
        process.offer(Cast(message))


def send_after(seconds: float, to: Address, message: object) -> Timer:
    """Sends `message` after `seconds`, unless the timer is cancelled first. The address is looked up then."""
    fence(process_var.get())
    node = current_node()

    def deliver() -> None:
        process = node.awaken(to)
        if process is not None:
            process.offer(message)

    return node.timers.after(seconds, deliver)


def exit(pid: Pid, reason: Reason) -> None:
    """Sends an exit signal.

    KILL ends any process. Another reason is a message to one that traps exits; NORMAL is ignored by the others,
    except by the caller itself, whom `exit(self_(), NORMAL)` ends.
    """
    sender = process_var.get()
    fence(sender)
    node = current_node()
    if node.end_sleeper(pid, KILLED if reason is KILL else reason):
        return
    process = node.awaken(pid)
    if process is None:
        return
    if reason is KILL:
        process.kill()
    elif process is not sender or process.trap_exit:
        process.signal(None if sender is None else sender.pid, reason)
    else:
        raise Exit(reason)


def link(pid: Pid) -> None:
    """Ties the running process and `pid` together, both ways; linking twice is linking once.

    Raises:
        Exit: NOPROC, when there is no such process (one that traps exits gets an ExitSignal instead).
    """
    process = current_process()
    fence(process)
    other = current_node().awaken(pid)
    if other is process:
        return
    if other is None:
        if not process.trap_exit:
            raise Exit(NOPROC)
        process.signal(pid, NOPROC)
        return
    process.link(pid)
    other.link(process.pid)


def unlink(pid: Pid) -> None:
    """Undoes a link. No ExitSignal of `pid` arrives afterwards, not even one that was already waiting."""
    process = current_process()
    process.unlink(pid)
    other = current_node().awaken(pid)
    if other is not None:
        other.unlink(process.pid)
    process.discard(lambda entry: isinstance(entry, ExitSignal) and entry.pid == pid)


def monitor(address: Address) -> Ref:
    """Has a Down with the answered reference sent to the running process when `address` ends; at once if nobody is."""
    process = current_process()
    fence(process)
    ref = new_ref()
    target = current_node().awaken(address)
    if target is None:
        process.put(Down(ref, address if isinstance(address, Pid) else None, NOPROC))
    else:
        process.monitor(target, ref)
    return ref


def demonitor(ref: Ref, flush: bool = False) -> None:
    """Ends a monitor. With `flush` also a Down of it that is already waiting goes."""
    process = current_process()
    pid = process.monitoring.pop(ref, None) if process.monitoring is not None else None
    if pid is not None:
        process.node.unwatch(pid, ref)
    if flush:
        process.discard(lambda entry: isinstance(entry, Down) and entry.ref == ref)


def trap_exits(trap: bool = True) -> bool:
    """Makes exit signals arrive as ExitSignal messages in the running process; answers how it was before."""
    process = current_process()
    before, process.trap_exit = process.trap_exit, trap
    return before


def init_ack(value: object = None) -> None:
    """Says "I am up" to the starter, who waits for it; `value` is information for it."""
    process = current_process()
    process.acknowledge(process.pid if value is None else (process.pid, value))


def _any(message: object) -> bool:
    return True


async def receive(match: Callable[[object], bool] | None = None, timeout: float | None = None) -> object:
    """The first message that matches (the oldest, without `match`); others stay where they are.

    For plain processes; a GenServer's messages come to its callbacks. `timeout` in seconds.

    Raises:
        Exit: with TIMEOUT, when nothing matched in time.
    """
    process = current_process()
    if trio.lowlevel.current_task() is not process.task:
        raise RuntimeError("only the process's own task receives, not one that it started in a nursery")
    matches = match or _any
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        process.wake()

    timer = None if timeout is None else process.node.timers.after(timeout, expire)
    seen = 0
    try:
        while True:
            queue = process.queue
            for index in range(seen, len(queue) if queue else 0):
                assert queue is not None
                if matches(queue[index]):
                    message = queue[index]
                    del queue[index]
                    process.handled += 1
                    process.last = message
                    await trio.lowlevel.checkpoint_if_cancelled()
                    return message
            seen = len(queue) if queue else 0
            if expired:
                raise Exit(TIMEOUT)
            await process.sleep()
    finally:
        if timer is not None:
            timer.cancel()
