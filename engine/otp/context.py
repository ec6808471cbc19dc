"""Which node and which process the running code belongs to.

Stands below everything in this package, so it names the two classes for type checkers only.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.otp.node import Node
    from engine.otp.pid import Pid
    from engine.otp.process import Process

node_var: ContextVar[Node] = ContextVar("engine.otp.node")
process_var: ContextVar[Process | None] = ContextVar("engine.otp.process", default=None)


class NoNode(RuntimeError):
    """The code runs outside every `async with Node.open()`."""


class NoProcess(RuntimeError):
    """The code runs outside every process, where there is nobody to link to, to monitor for or to receive."""


def current_node() -> Node:
    """The node this code runs in. Raises NoNode."""
    process = process_var.get()
    if process is not None:
        return process.node
    try:
        return node_var.get()
    except LookupError:
        raise NoNode("no node is open here: run inside `async with Node.open()`") from None


def current_process() -> Process:
    """The process this code runs in; tasks that a process starts in nurseries of its own count. Raises NoProcess."""
    process = process_var.get()
    if process is None:
        raise NoProcess("not in a process: use spawn, a GenServer or a TaskSupervisor")
    return process


def self_() -> Pid:
    """The pid of the running process. Raises NoProcess."""
    return current_process().pid
