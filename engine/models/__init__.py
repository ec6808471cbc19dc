"""The registry of models: what can be asked for, with which input, and who answers."""

from engine.models.models import Models
from engine.models.seeds import LOCAL, SEEDS, SIMULATE

__all__ = ["LOCAL", "SEEDS", "SIMULATE", "Models"]
