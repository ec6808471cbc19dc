"""What of a prediction is told, and when: the difference between what it says now and what it had said. Pure."""

from __future__ import annotations

from attrs import define

from engine.providers.protocol import (
    Finished,
    Progress,
    ProviderEvent,
    TextDelta,
    UsageReported,
)
from engine.providers.replicate_failures import failure_of, nothing_came, text_changed
from engine.providers.replicate_wire import (
    Prediction,
    counts_of,
    files_of,
    progress_in,
    structure_of,
    text_of,
    usage_of,
)
from engine.tasks.events import Usage


@define
class Story:
    """What was already told of a prediction, so that only what is new is told."""

    shown: str = ""
    progress: float = 0.0

    def tell(self, prediction: Prediction) -> list[ProviderEvent]:
        events: list[ProviderEvent] = []
        text = text_of(prediction.output)
        if text is not None and text.startswith(self.shown) and len(text) > len(self.shown):
            events.append(TextDelta(text[len(self.shown) :]))
            self.shown = text
        if not prediction.terminal:
            return events + self._progress(prediction)
        return events + self._end(prediction, text)

    def _progress(self, prediction: Prediction) -> list[ProviderEvent]:
        fraction = progress_in(prediction.logs)
        self.progress = max(self.progress, fraction or 0.0)
        return [Progress(self.progress, step=prediction.status[:64])]

    def _end(self, prediction: Prediction, text: str | None) -> list[ProviderEvent]:
        """What was used is told first: it is billed whatever comes of it, but for what never started."""
        events: list[ProviderEvent] = []
        usage = usage_of(prediction.metrics)
        if prediction.status != "aborted" and (usage or prediction.metrics):
            events.append(UsageReported(usage or Usage(), counts_of(prediction)))
        if prediction.status != "succeeded":
            return [*events, failure_of(prediction)]
        files = files_of(prediction.output) if text is None else []
        structure = structure_of(prediction.output)
        if not text and not files and not structure:
            return [*events, nothing_came()]
        if (text or "") != self.shown:
            return [*events, text_changed()]
        if structure:
            events.append(TextDelta(structure))
        return [*events, *files, Finished(prediction.status, prediction.metrics)]
