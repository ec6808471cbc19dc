"""Run by an interpreter with phoenix-channels-python-client: listens on a topic, tells what happens as JSON lines."""

import asyncio
import json
import sys


def tell(**what):
    print(json.dumps(what), flush=True)


async def main(url, token, topic):
    from phoenix_channels_python_client import PHXChannelsClient
    from phoenix_channels_python_client.exceptions import PHXConnectionError

    async def on_message(message):
        tell(on="event", event=str(message.event), payload=message.payload)

    async def on_lost(topic, error):
        tell(on="lost", topic=topic)

    async def on_disconnect(error):
        tell(on="disconnect")

    async def on_reconnect():
        tell(on="reconnect")

    options = {"on_topic_lost": on_lost, "on_disconnect": on_disconnect, "on_reconnect": on_reconnect}
    try:
        async with PHXChannelsClient(url, token, **options) as client:
            tell(on="open")
            await client.subscribe_to_topic(topic, on_message)
            tell(on="joined")
            await asyncio.to_thread(sys.stdin.read)
    except PHXConnectionError as error:
        tell(on="failed", error=type(error).__name__)


asyncio.run(main(*sys.argv[1:]))
