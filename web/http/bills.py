"""What was bought for a task: its predictions as a bill would list them. `BillRoutes` is made by the application."""

from __future__ import annotations

from typing import Any

from attrs import asdict, define

from persistence.bills import Bills, Bought
from web.http.exchange import Answer, Ask, json
from web.http.house import House
from web.http.route import Route
from web.http.tasks import own_task

FIGURES = ("input_tokens", "output_tokens", "predict_seconds", "cost")


@define(eq=False)
class BillRoutes:
    """The call, over the record that answers it."""

    bills: Bills

    @property
    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET",
                "/api/tasks/<task_id>/predictions",
                self.predictions,
                "What was bought for a task",
                answer="Predictions",
                refusals=("unknown_task", "storage_down"),
            ),
        )

    async def predictions(self, house: House, ask: Ask) -> Answer:
        """One line for each attempt that called a provider, failed and cancelled ones included, and the sum."""
        task = await own_task(house, ask)
        return json(statement(await self.bills.of_task(task.id)))


def statement(bought: tuple[Bought, ...]) -> dict[str, Any]:
    """The answer's body. `open` is true until the provider's own end of it is on record."""
    lines = [asdict(line) | {"id": str(line.id)} for line in bought]
    total: dict[str, Any] = {name: _sum([line[name] for line in lines]) for name in FIGURES}
    duplicates = sum(line.duplicates for line in bought)
    return {"predictions": lines, "total": {**total, "duplicates": duplicates}}


def _sum(figures: list[Any]) -> Any:
    known = [figure for figure in figures if figure is not None]
    return sum(known) if known else None
