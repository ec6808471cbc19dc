"""The heart of Elwift: processes, tasks, jobs and providers. Knows neither the web nor a database.

`engine.otp` knows nothing of tasks; the other rooms stand on it. What the engine asks of the outside
is written down in `engine.ports` and implemented in `persistence`.
"""

__version__ = "0.1.0"
