"""The HTTP API: routes, validation, problem documents and the OpenAPI description. Start at `app.create_app`."""
