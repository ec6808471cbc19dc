"""A Cog model that tells words, one at a time; its prompt says how it is to fail."""

import os
import time

from cog import BasePredictor, ConcatenateIterator


class Predictor(BasePredictor):
    def predict(self, prompt: str, steps: int = 3, pause: float = 0.05) -> ConcatenateIterator[str]:
        if path := os.environ.get("RUNS"):
            with open(path, "a") as runs:
                runs.write(f"{prompt}\n")
        if prompt == "crash":
            os._exit(3)
        if prompt == "fail":
            raise ValueError("the model is not in the mood")
        for step in range(1, steps + 1):
            print(f"{100 * step // steps}%|####| {step}/{steps}", flush=True)
            time.sleep(pause)
            yield f"word{step} "
