"""Run by an interpreter with phxsocket: joins, pushes and leaves, and tells what happens as JSON lines."""

import json
import sys
import threading


def tell(**what):
    print(json.dumps(what), flush=True)


def main(url, topic):
    import phxsocket

    client = phxsocket.Client(url, {})
    client.connect()
    channel = client.channel(topic, {"answer": {"n": 1}})
    told = threading.Event()

    def on_shouted(payload):
        tell(on="event", payload=payload)
        told.set()

    channel.on("shouted", on_shouted)
    tell(on="joined", response=channel.join())
    answer = channel.push("echo", {"é": 2}, reply=True).wait_for_response()
    tell(on="reply", status=answer["status"], response=answer["response"])
    channel.push("shout", {"n": 3})
    told.wait(10)
    client.close()
    tell(on="closed")


main(*sys.argv[1:])
