"""Object storage further away: a proxy that waits before it passes on each request, and counts them.

`python delay_proxy.py PORT_OF_SERVER MILLISECONDS` prints its own port on the first line; a line on its standard input
makes it print the requests so far, {method: count}, and count anew.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from contextlib import suppress

METHODS = {b"GET", b"HEAD", b"PUT", b"POST", b"DELETE"}


async def main(port_of_server: int, delay: float) -> None:
    """Serve until the standard input ends."""
    counts: Counter[str] = Counter()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection("127.0.0.1", port_of_server)
        back = asyncio.ensure_future(copy(answers, writer))
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                method = data.split(b" ", 1)[0]
                if method in METHODS:
                    counts[method.decode()] += 1
                    await asyncio.sleep(delay)
                requests.write(data)
                await requests.drain()
        requests.close()
        await back

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    async with server:
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(counts), flush=True)
            counts.clear()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on an answer as it comes."""
    with suppress(ConnectionError):
        while data := await reader.read(1 << 18):
            writer.write(data)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]) / 1000))
