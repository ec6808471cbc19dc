"""Chaos: a server of its own is broken at random under load, and everything that it said is held against it.

    record      what the server said, by whom it was heard, and what a crash may undo of it (data)
    judge       which promise is broken (pure functions)
    load        clients that create, repeat, cancel · watch: clients that follow tasks over many sockets
    readiness   an observer of /readyz: the moments at which nothing was in memory alone
    victim      the server under test, over all its lives · faults, moments, disk: the ways to break it
    reckoning   reads everything back in the end · table: says what was found · campaign: one whole run

Imports nothing of the server but how its folder is laid out, and the words that the model `simulate` speaks.
"""
