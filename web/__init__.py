"""The doors: endpoint, HTTP API, sockets and channels, operators, command line, and the application itself."""
