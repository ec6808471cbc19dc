"""The TaskServer: one process a task, holding the task's truth. It decides nothing itself (`decide`), it carries out.

What happens becomes a journal entry; what the journal has taken is told to subscribers, in order (`delivery`). It
lives from the task's acceptance until its end is stored and told; a crash rebuilds it from the stash.

Where several servers share a database, a task lives on one of them. On another its TaskServer is a mirror: it learns
what happens from the log and from `relay`, takes orders, and stays only while somebody here watches.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog
from attrs import evolve, frozen

from engine import telemetry
from engine.jobs import backoff
from engine.otp import (
    HIBERNATE,
    IGNORE,
    NORMAL,
    Continue,
    Down,
    From,
    GenServer,
    Hibernate,
    Ignore,
    NoReply,
    Ok,
    Pid,
    Reply,
    Request,
    Shutdown,
    Stop,
    cast,
    demonitor,
    exit,
    is_clean,
    monitor,
    reply,
    self_,
    send,
    send_after,
)
from engine.ports import Durability, Entry, StorageDown
from engine.providers import protocol as provider
from engine.runtime import Runtime
from engine.tasks import attempt as rules
from engine.tasks import decide, delivery, mirror
from engine.tasks import messages as msg
from engine.tasks.decide import Running
from engine.tasks.delivery import ReceiptCame, SubmitAgain
from engine.tasks.events import Actor, Failed, Output, TaskEvent
from engine.tasks.messages import Refusal, StepTaken
from engine.tasks.mirror import Adopted, CatchUp, Mirrored, Moved
from engine.tasks.outbox import Answer, Outbox, Pending, push
from engine.tasks.stash import Live, Subscriber, Worker
from engine.tasks.state import Status, fold

log = structlog.get_logger(__name__)

POISONED_AFTER = 4
"""A TaskServer that crashes so often within POISON_WINDOW seconds fails its task rather than crash again."""
POISON_WINDOW = 30.0
RELOAD_PAUSE = 1.0
"""Seconds until the store is asked again, when it was away."""


@frozen
class Reload:
    """To itself: the journal refused an entry, so what the store has is the truth."""


@frozen
class Rest:
    """To itself: nothing more may be wanted of it."""


class Sabotaged(Exception):
    """A step asked for this crash (the model `simulate`)."""


class TaskServer(GenServer[Live]):
    """See the module. Started with the runtime and the id of a task whose state lies in the stash."""

    hibernate_after = 5.0
    runtime: Runtime

    # --- its life ----------------------------------------------------------------------------------------

    async def init(self, runtime: Runtime, task_id: UUID) -> Ok[Live] | Ignore:
        """Starts from the stash. Without an entry there the task is none of ours: nothing is started."""
        self.runtime = runtime
        live = runtime.stash.get(task_id)
        if live is None:
            return IGNORE
        live = self._rebuilt(live) if live.started else evolve(live, started=True)
        runtime.stash.put(live)
        return Ok(live, then=_first_step(live))

    def _rebuilt(self, live: Live) -> Live:
        """After a crash: the worker and the subscribers are found again, and the latter told."""
        now = self.runtime.clock()
        crashes = (*(at for at in live.crashes if at > now - POISON_WINDOW), now)
        telemetry.TASK_RESTARTS.inc()
        log.warning("task server rebuilt", task_id=str(live.task.id), crashes=len(crashes))
        live = self._resumed(evolve(live, crashes=crashes))
        if live.worker is not None:
            live = evolve(live, worker=evolve(live.worker, ref=monitor(live.worker.pid)))
        if len(crashes) >= POISONED_AFTER and not live.task.status.terminal:
            return self._ended(live, decide.abandon(live.task, now, *TASK_CRASHED), stop="poisoned")
        return live

    def _resumed(self, live: Live) -> Live:
        pids = {pid for pid, _ in self.runtime.channels.lookup(("channel", live.task.id))}
        pids.update(subscriber.pid for subscriber in live.subscribers)
        resumed = msg.TaskResumed(live.task.id, self_(), live.outbox.told)
        for pid in pids:
            send(pid, resumed)
        return evolve(live, subscribers=tuple(Subscriber(pid, monitor(pid)) for pid in sorted(pids)))

    def format_status(self, live: Live) -> object:
        """For operators: no prompt and no output."""
        task, outbox = live.task, live.outbox
        return {
            "task": str(task.id), "status": task.status, "attempt": task.attempt, "progress": task.progress,
            "seq": task.seq, "told_seq": outbox.told.seq, "waiting": len(outbox.items),
            "unsaved": len(outbox.unsaved), "subscribers": len(live.subscribers),
            "worker": str(live.worker.pid) if live.worker else None,
        }  # fmt: skip

    # --- what it is asked and told -------------------------------------------------------------------------

    async def handle_call(self, request: Request[Any], caller: From, live: Live) -> Reply[Live] | NoReply[Live]:
        match request:
            case msg.Step():
                return self._step(request, live)
            case msg.BeginAttempt():
                return NoReply(self._kept(self._begin(request, caller, live)))
            case msg.Subscribe(subscriber, last_seq):
                live = self._kept(self._subscribed(live, subscriber))
                return Reply(view_of(live, last_seq), live)
            case msg.GetState():
                return Reply(live.outbox.told, live)
            case msg.CancelTask(actor, reason):
                return NoReply(self._kept(_answered(self._cancelled(live, actor, reason), caller)))
            case msg.RetryTask(actor, job_id):
                return NoReply(self._kept(self._requeued(live, actor, job_id, caller)))
            case msg.KeepOutput(attempt, output):
                return self._output(live, attempt, output)
            case msg.SetAside():
                return self._set_aside(live, request)
            case _:
                return Reply(Refusal("unknown_request", f"No task answers {type(request).__name__}."), live)

    async def handle_cast(self, message: object, live: Live) -> NoReply[Live] | Stop[Live]:
        match message:
            case Reload():
                live = await self._reloaded(live)
            case CatchUp(seq) if live.idle and live.task.seq == seq:
                live = await mirror.caught_up(self.runtime, live)
            case Mirrored(news) if live.idle:
                live = await mirror.learnt(self.runtime, live, news)
            case Moved() if live.idle:
                live = mirror.moved(self.runtime, live)
            case Adopted():
                live = evolve(live, mirror=False)
        return self._rest(live)

    async def handle_continue(self, message: object, live: Live) -> NoReply[Live] | Stop[Live]:
        delivery.submit_waiting(self.runtime, live.outbox)  # a crash forgets that the journal was to be asked again
        return self._rest(live)

    async def handle_info(self, message: object, live: Live) -> NoReply[Live] | Stop[Live]:
        match message:
            case Down(ref, _, reason) if live.worker is not None and ref == live.worker.ref:
                live = self._worker_ended(live, live.worker.run, reason)
            case Down(ref, _, _):
                rest = tuple(subscriber for subscriber in live.subscribers if subscriber.ref != ref)
                live = evolve(live, subscribers=rest)
            case SubmitAgain():
                delivery.submit_waiting(self.runtime, live.outbox)
            case Reload():
                live = await self._reloaded(live)
        return self._rest(live)

    # --- an attempt --------------------------------------------------------------------------------------

    def _begin(self, request: msg.BeginAttempt, caller: From, live: Live) -> Live:
        if (refusal := rules.may_begin(live, request)) is not None:
            reply(caller, refusal)
            cast(self_(), Rest())
            return live
        if live.worker is not None and live.worker.run.fence == request.fence:  # asked again after a crash of ours
            return _answered(live, caller, msg.AttemptBegun(live.task.attempt, live.task))
        now = self.runtime.clock()
        on_record = request.earlier.usage if request.earlier else None
        run = Running(request.attempt_id, request.fence, request.provider, now, on_record, on_record)
        entry = decide.begin(live.task, now, run, request.model, request.earlier)
        live = delivery.submit(self.runtime, _stopped(live, "superseded"), entry)
        live = evolve(live, worker=Worker(request.worker, monitor(request.worker), run), mirror=False)
        return _answered(live, caller, msg.AttemptBegun(entry.task.attempt, entry.task))

    def _step(self, request: msg.Step, live: Live) -> Reply[Live]:
        if (refusal := rules.may_step(live, request.attempt)) is not None:
            return Reply(refusal, live)
        now, offset, has = self.runtime.clock(), request.offset, len(live.task.text)
        if offset > has:
            return Reply(StepTaken(has), live)  # text is missing before these events: nothing is taken of them
        for event in request.events:
            if live.worker is not None:  # else the attempt ended with the event before
                live = self._happened(event, offset, live, live.worker.run, now)
            if isinstance(event, provider.TextDelta):
                offset += len(event.text)
        return Reply(StepTaken(len(live.task.text)), self._kept(live))

    def _happened(self, event: provider.ProviderEvent, offset: int, live: Live, run: Running, now: float) -> Live:
        runtime = self.runtime
        match event:
            case provider.TextDelta(text):
                step = rules.text_step(live.task, offset, text, now)
                return live if step is None else delivery.show(runtime, live, *step)
            case provider.Progress():
                return delivery.show(runtime, live, *rules.progress_step(live.task, event, now))
            case provider.UsageReported(usage):
                return rules.with_usage(live, usage)
            case provider.Accepted():
                return delivery.submit(runtime, live, decide.accepted(live.task, run, event))
            case provider.Finished():
                return self._ended(live, decide.finish(live.task, now, run, event))
            case provider.Failed():
                return self._failed(live, run, event)
            case provider.Sabotage(reason):
                raise Sabotaged(reason)
            case provider.OutputReady():
                raise TypeError("an output is kept first, and told with KeepOutput")

    def _output(self, live: Live, attempt: int, output: Output) -> Reply[Live]:
        if (refusal := rules.may_step(live, attempt)) is not None:
            return Reply(refusal, live)
        assert live.worker is not None
        entry = decide.output_stored(live.task, self.runtime.clock(), live.worker.run, output)
        live = delivery.submit(self.runtime, live, entry)
        return Reply(StepTaken(len(live.task.text)), self._kept(live))

    def _set_aside(self, live: Live, request: msg.SetAside) -> Reply[Live]:
        if (refusal := rules.may_step(live, request.attempt)) is not None:
            return Reply(refusal, live)
        live = live if request.usage is None else rules.with_usage(live, request.usage)
        assert live.worker is not None
        node = self.runtime.homes.node
        telemetry.SET_ASIDE.labels(request.failure.code).inc()
        live = self._ended(live, decide.set_aside(live.task, self.runtime.clock(), live.worker.run, request, node))
        return Reply(StepTaken(0), self._kept(live))

    def _failed(self, live: Live, run: Running, failure: provider.Failed) -> Live:
        now, most = self.runtime.clock(), live.task.max_attempts
        model = self.runtime.models.get(live.task.model_id)
        policy = backoff.policy(live.task.provider, model.settings if model else {})
        then = decide.verdict(
            failure, run.fence.attempt, most, now, lambda attempt: backoff.retry_at(attempt, most, now, policy)
        )
        return self._ended(live, decide.fail(live.task, now, run, failure, then))

    def _worker_ended(self, live: Live, run: Running, reason: object) -> Live:
        """The worker is gone in the middle of its attempt: by order, or by a crash, which fails the attempt."""
        match reason:
            case Shutdown("cancelled"):
                entry = decide.cancel(live.task, self.runtime.clock(), Actor.OPERATOR, "job cancelled", run)
                return self._ended(live, entry)
            case Shutdown("timeout"):
                return self._failed(live, run, rules.WORKER_TIMEOUT)
            case _ if is_clean(reason) and reason is not NORMAL:
                # draining, or its lease was lost: the queue gives the job away again, and this fence is stale
                return evolve(live, worker=None)
        log.error("worker crashed", task_id=str(live.task.id), attempt=live.task.attempt, reason=type(reason).__name__)
        return self._failed(live, run, rules.WORKER_CRASHED)

    def _ended(self, live: Live, entry: Entry, stop: str | None = None) -> Live:
        """The attempt is over, or the task; the worker is let go, or stopped when it does not know yet."""
        run = live.worker.run if live.worker else None
        rules.count_end(entry, run)
        if run is not None:
            self.runtime.budgets.add(live.task.user, run.usage, run.counted)
            self.runtime.budgets.learn(live.task.model, run.usage)
        if entry.task.status.terminal:
            self.runtime.budgets.release(live.task.id)
        live = delivery.submit(self.runtime, live, entry)
        return _stopped(live, stop) if stop else _let_go(live)

    # --- orders ------------------------------------------------------------------------------------------

    def _cancelled(self, live: Live, actor: Actor, reason: str) -> Live:
        if live.task.status.terminal:
            return live
        run = live.worker.run if live.worker else None
        entry = decide.cancel(live.task, self.runtime.clock(), actor, reason, run)
        return self._ended(live, entry, stop="cancelled")

    def _requeued(self, live: Live, actor: Actor, job_id: UUID, caller: From) -> Live:
        if live.task.status is not Status.FAILED:
            reply(caller, Refusal("not_failed", f"The task is {live.task.status}; only a failed one is tried again."))
            return live
        entry = decide.requeue(live.task, self.runtime.clock(), actor, job_id, self.runtime.homes.node)
        return _answered(delivery.submit(self.runtime, live, entry), caller)

    def _subscribed(self, live: Live, pid: Pid) -> Live:
        if any(subscriber.pid == pid for subscriber in live.subscribers):
            return live
        if live.mirror:
            self.runtime.relay.watch(live.outbox.told)
        return evolve(live, subscribers=(*live.subscribers, Subscriber(pid, monitor(pid))))

    # --- the end of every step -----------------------------------------------------------------------------

    def _kept(self, live: Live) -> Live:
        """What may be told is told, and the state is kept outside."""
        if live.outbox.items or live.outbox.unsaved:
            live, refused = delivery.let_go(self.runtime, live)
            if refused is not None and not _unborn(live.outbox):
                live = self._refused(live, refused)
        self.runtime.stash.put(live)
        return live

    def _rest(self, live: Live) -> NoReply[Live] | Stop[Live]:
        """As `_kept`; and once all is stored and told, or the task turns out never to have been, that is the end. So it
        is for a mirror that nobody watches.

        Only what is told ends here, never a call, whose caller has still to be answered; a receipt is always told.
        """
        live = self._kept(live)
        over = _unborn(live.outbox) or (live.task.status.terminal and live.outbox.settled)
        if not over and not (live.mirror and live.idle and not live.subscribers):
            return NoReply(live)
        self.runtime.stash.drop(live.task.id)
        self.runtime.budgets.release(live.task.id)
        if over:
            self.runtime.snapshots.forget(live.task.id)
        return Stop(NORMAL, live)

    def _refused(self, live: Live, refused: Pending) -> Live:
        """Another outcome was first, or the lease is somebody else's: what we hold is void from there on."""
        log.warning("journal entry refused", task_id=str(live.task.id), receipt=repr(refused.receipt))
        promised = delivery.refuse_waiting(live.outbox, Refusal("superseded", "The task went on elsewhere."))
        beginning = any(isinstance(answer, msg.AttemptBegun) for answer in promised.refused)
        live = _let_go(live) if beginning else _stopped(live, "lease_lost")  # one that begins hears the refusal
        cast(self_(), Reload())
        return evolve(live, task=live.outbox.told, outbox=Outbox(live.outbox.told, promised.kept))

    async def _reloaded(self, live: Live) -> Live:
        """Takes over what the store has, and tells subscribers what they missed."""
        told, store = live.outbox.told, self.runtime.store
        try:
            task = await store.load(told.id)
            missed = await store.events(told.id, after=told.seq)
        except StorageDown:
            send_after(RELOAD_PAUSE, self_(), Reload())
            return live
        if task is None:
            return self._lost(live)
        live = self._resumed(evolve(live, task=task, outbox=evolve(live.outbox, told=task)))
        for news in delivery.as_news(told, missed):
            delivery.tell(self.runtime, live, news)
        return evolve(live, log=(), log_after=task.seq)

    def _lost(self, live: Live) -> Live:
        """It was accepted in memory, and the database refused to take it when it was back: an end without a log."""
        told = live.outbox.told
        body = Failed("not_stored", "The task could not be stored.", "Send it again.", retryable=True)
        event = TaskEvent(told.id, told.seq + 1, self.runtime.clock(), told.attempt, Actor.SYSTEM, body)
        task = fold(told, event)
        delivery.tell(self.runtime, live, msg.TaskHappened(event, task, Durability.MEMORY, final=True))
        return evolve(live, task=task, outbox=Outbox(task, live.outbox.items))


TASK_CRASHED = (
    "task_crashed", "The task's process crashed again and again.", "Try again; if it stays so, report it.",
)  # fmt: skip


def _first_step(live: Live) -> Continue | Hibernate | None:
    """A receipt may have come before there was a name to send it to; one that comes later wakes us. Without anything
    to wait for, as after a recovery, the task sleeps until its worker comes."""
    items = live.outbox.items
    if any(isinstance(item, Pending) and (item.receipt is not None or not item.submitted) for item in items):
        return Continue(ReceiptCame())
    return None if items or live.worker is not None else HIBERNATE


def view_of(live: Live, last_seq: int | None) -> msg.View:
    """What a newcomer is told: the state, and the events after `last_seq` as far as they are in memory."""
    told, durable_seq = live.outbox.told, live.outbox.durable_seq
    if last_seq is None:
        return msg.View(told, (), has_more=False, reset=False, durable_seq=durable_seq)
    if not live.log_after <= last_seq <= told.seq:
        return msg.View(told, (), has_more=False, reset=True, durable_seq=durable_seq)
    events = live.log[last_seq - live.log_after :]
    return msg.View(told, events, has_more=False, reset=False, durable_seq=durable_seq)


def _answered(live: Live, caller: From, answer: object | None = None) -> Live:
    """Promises an answer, to be given once everything before it is told."""
    return evolve(live, outbox=push(live.outbox, Answer(caller, answer)))


def _let_go(live: Live) -> Live:
    """The worker knows that its attempt is over; it may be at its next job by now."""
    if live.worker is not None:
        demonitor(live.worker.ref, flush=True)
    return evolve(live, worker=None)


def _stopped(live: Live, why: str) -> Live:
    """Stops the worker, and with it the provider's work."""
    if live.worker is not None:
        exit(live.worker.pid, Shutdown(why))
    return _let_go(live)


def _unborn(outbox: Outbox) -> bool:
    """Whether the journal refused the very first entry before anybody was told of it."""
    first = outbox.items[0] if outbox.items else None
    if not isinstance(first, Pending) or not first.refused:
        return False
    return bool(first.entry.events) and first.entry.events[0].seq == 1
