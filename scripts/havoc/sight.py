"""What one client sees of a task over many sockets, and what is wrong with it. Pure: frames in, complaints out.

The client does what docs/protocol.md tells it to: it joins with the last `seq` that no crash can undo, overwrites what
was told from memory before, and takes `task.response` as the text so far. Then nothing may be missing, doubled or
changed, but for what was said from memory by a process that died before it was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import define, field

from scripts.havoc.record import TERMINAL, Said, Timeline, Told

Payload = Mapping[str, Any]


@define
class Sight:
    """One watcher's view. `seen` is the last event shown on the present socket, `durable_seq` what is safe.

    `gone`: the server said that there is no such task. `over`: the task has ended, durably.
    """

    told: dict[int, Told] = field(factory=dict)
    seen: int = 0
    durable_seq: int = 0
    status: str = "queued"
    attempt: int = 0
    text: str = ""
    progress: float = 0.0
    gone: bool = False
    rewound: int = 0
    joins: int = 0

    @property
    def over(self) -> bool:
        return self.status in TERMINAL and self.durable_seq >= self.seen

    def resume_from(self) -> int:
        """The `last_seq` to join with: the last event that was shown and that no crash can undo."""
        return min(self.seen, self.durable_seq)

    # --- the answer to a join ---------------------------------------------------------------------------

    def joined(self, answer: Payload, said: Said, timeline: Timeline) -> Iterator[str]:
        """Takes the reply to a join that was made with `resume_from()`."""
        self.joins += 1
        task = answer["task"]
        if task is None:
            if not answer.get("unverified"):
                self.gone = True
                yield from self._vanished(0, timeline)
            return
        yield from self._vanished(answer["seq"], timeline)
        if answer["reset"]:
            self.rewound += 1
            self.told = {seq: told for seq, told in self.told.items() if seq <= self.durable_seq}
            self.seen = answer["seq"]
        else:
            self.seen = self.resume_from()
        safe = answer.get("durable_seq", answer["seq"])
        for missed in answer["events"]:
            told = Said(said.life, said.at, missed["payload"].get("durability") != "memory")
            yield from self.happened(missed["event"], missed["payload"], told, timeline)
        if not answer.get("has_more"):
            if self.seen != answer["seq"]:
                yield f"a join answered events up to {self.seen} and the seq {answer['seq']}"
            self.status = task["status"]
        self.durable_seq = max(self.durable_seq, min(safe, self.seen))
        self.attempt, self.text, self.progress = task["attempt"], task["response"], 0.0

    def _vanished(self, seq: int, timeline: Timeline) -> Iterator[str]:
        """Complaints on what was told beyond `seq`, where the log is said to end now."""
        for told in self.told.values():
            if told.seq > seq and timeline.holds(told.said):
                yield f"event {told.seq} ({told.event}) was told, and now the log ends at {seq}"

    # --- pushes -----------------------------------------------------------------------------------------

    def pushed(self, event: str, payload: Payload, said: Said, timeline: Timeline) -> Iterator[str]:
        """Takes a push of the server's."""
        match event:
            case "durable":
                self.durable_seq = max(self.durable_seq, min(payload["seq"], self.seen))
            case "text_delta":
                yield from self._text(payload)
            case "progress":
                yield from self._progress(payload)
            case "llm_response" if payload["text"] != self.text:
                yield f"the pieces of text make {self.text!r}, the whole is {payload['text']!r}"
        if event != "durable" and "seq" in payload:
            told = Said(said.life, said.at, payload.get("durability") != "memory")
            yield from self.happened(event, payload, told, timeline)

    def _text(self, payload: Payload) -> Iterator[str]:
        if (payload["attempt"], payload["offset"]) != (self.attempt, len(self.text)):
            yield (
                f"text of attempt {payload['attempt']} at {payload['offset']} came"
                f" after {len(self.text)} code points of attempt {self.attempt}"
            )
        self.text = self.text[: payload["offset"]] + payload["text"]

    def _progress(self, payload: Payload) -> Iterator[str]:
        if payload["attempt"] == self.attempt and payload["progress"] < self.progress:
            yield f"progress of attempt {self.attempt} fell from {self.progress} to {payload['progress']}"
        self.progress = payload["progress"]

    def happened(self, event: str, payload: Payload, said: Said, timeline: Timeline) -> Iterator[str]:
        """Takes a durable event, pushed or answered."""
        told = Told(payload["seq"], event, payload, said)
        if told.seq != self.seen + 1:
            yield f"event {told.seq} ({event}) came after {self.seen}"
        self.seen = told.seq
        yield from self._overwrite(told, timeline)
        if said.durable:
            self.durable_seq = max(self.durable_seq, told.seq)
        self._follow(event, payload)

    def _overwrite(self, told: Told, timeline: Timeline) -> Iterator[str]:
        before = self.told.get(told.seq)
        if before is None or not before.same(told):
            if before is not None and timeline.holds(before.said):
                yield f"event {told.seq} was {before.event} and is {told.event}: {before.payload} / {told.payload}"
            self.told = {seq: each for seq, each in self.told.items() if seq < told.seq}
        elif before.said.durable:
            return  # nothing new
        self.told[told.seq] = told

    def _follow(self, event: str, payload: Payload) -> None:
        match event:
            case "started":
                if payload["attempt"] != self.attempt:
                    self.text = ""
                self.attempt, self.progress, self.status = payload["attempt"], 0.0, "processing"
            case "reset" | "task_requeued":
                self.text, self.progress, self.status = "", 0.0, "queued"
            case "error" if payload.get("will_retry_at"):
                self.status = "queued"
            case "error" | "task_completed" | "task_cancelled":
                self.status = next(status for status, told in TERMINAL.items() if told == event)
