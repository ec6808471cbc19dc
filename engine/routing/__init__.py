"""Which back end works on a request: fail-over between models, breakers, quotas, credentials, and answers kept.

A `Routed` stands in a provider's place and is a provider itself, so that whoever runs attempts knows nothing of this.
"""

from engine.routing.routed import Routed, Routing

__all__ = ["Routed", "Routing"]
