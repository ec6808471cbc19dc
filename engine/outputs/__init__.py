"""From what a provider hands over to what a client may fetch: fetched safely, looked at, stored under a final name."""

from engine.outputs.errors import Cure, OutputRefused
from engine.outputs.fetch import Policy
from engine.outputs.outputs import Limits, Outputs

__all__ = ["Cure", "Limits", "OutputRefused", "Outputs", "Policy"]
