"""Python's garbage collector, kept from costing what many processes would make it cost.

Processes leave no cycles behind: reference counting alone frees them. So the collector need not look at them often
(thresholds: new objects a few at a time, since looking at 50,000 holds the loop for 30 ms; those that stayed hardly
ever), and not at all at those that are there to stay (`gc.freeze`): looking at 10,000 live processes takes it 100 ms.
What was frozen and becomes a cycle later, somebody else's, is found after the next thaw: when the population has
halved.
"""

from __future__ import annotations

import gc

STEP = 500
"""Processes by which the population grows between two freezes. A freeze costs nothing. What it comes before is a look
at everything that was made lately; and the youngest has been looked at a few times by then (a process and its state are
some hundred objects), so that what is frozen is mostly there to stay."""


class Collector:
    """Settings of the collector while a node is open, and its freezes. `thresholds` None: all is left alone."""

    def __init__(self, thresholds: tuple[int, int, int] | None) -> None:
        self._thresholds = thresholds
        self._before = gc.get_threshold()
        self.freeze_at = STEP
        self.thaw_at = 0

    def open(self) -> None:
        if self._thresholds is not None:
            self._before = gc.get_threshold()
            gc.set_threshold(*self._thresholds)

    def close(self) -> None:
        if self._thresholds is not None:
            gc.set_threshold(*self._before)
            if self.thaw_at:
                gc.unfreeze()

    def grown(self, population: int) -> None:
        """To be called when the population has reached `freeze_at`."""
        self.freeze_at = population + STEP
        if self._thresholds is not None:
            self.thaw_at = population // 2
            gc.freeze()

    def shrunk(self, population: int) -> None:
        """To be called when the population has fallen below `thaw_at`."""
        self.freeze_at, self.thaw_at = population + STEP, 0
        gc.unfreeze()
