"""A Cog model that waits, as many predictions at once as there are slots."""

import asyncio

from cog import BasePredictor


class Predictor(BasePredictor):
    async def predict(self, prompt: str, pause: float = 0.1) -> str:
        await asyncio.sleep(pause)
        return "awaited"
