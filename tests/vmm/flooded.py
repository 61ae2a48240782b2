"""A QEMU that sends 100,000 events at once: how much memory that takes. Run with a path for its socket."""

import asyncio
import sys
import tracemalloc
from pathlib import Path

from tests.vmm.fake_qmp import FakeQmp, flood
from tests.vmm.following import Following, follow


async def body(following: Following) -> None:
    with FakeQmp(Path(sys.argv[1])) as fake:
        fake.devices = {"evertap-web0": {}}
        following.vmms.follow({fake.path})
        await following.running(fake.path)
        peer = fake.peer
        assert peer is not None
        tracemalloc.start()
        sending = asyncio.create_task(asyncio.to_thread(flood, peer))
        await following.not_running(fake.path, "sends more than 1000 messages a second", within=40)
        await sending
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 8 << 20, peak


if __name__ == "__main__":
    follow(body, debug=False)  # in debug mode it is too slow for a flood
