"""Score many candidate programs at once, each in a sandbox of its own: the inner loop of an evaluation or of reinforcement learning.

python examples/rollouts.py 16
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

from corral.aio import Client, CorralError

AT_ONCE = 8
CHECK = "from candidate import solve\nassert [solve(n) for n in range(10)] == [n * n for n in range(10)]\nprint('pass')\n"


def candidate(seed: int) -> str:
    """What a policy would have written."""
    return f"def solve(n):\n    return {random.Random(seed).choice(['n * n', 'n + n', 'n ** 2', 'n ** n'])}\n"


async def score(client: Client, seed: int, places: asyncio.Semaphore) -> float | None:
    """1 when the candidate passes, 0 when it does not, None when that is not known: the machine's failure is not the policy's."""
    async with places:
        try:
            async with await client.sandboxes.create("base", memory=256, timeout=120, wait=60) as sandbox:
                await sandbox.files.write("/tmp/candidate.py", candidate(seed))
                result = await sandbox.run(["python3", "-c", CHECK], cwd="/tmp", timeout=10)
                return float(result.ok)
        except TimeoutError:
            return 0.0
        except CorralError as error:
            print(f"rollout {seed}: {error}", file=sys.stderr)
            return None


async def main(count: int) -> None:
    places, began = asyncio.Semaphore(AT_ONCE), time.perf_counter()
    async with Client() as client:
        scores = await asyncio.gather(*(score(client, seed, places) for seed in range(count)))
    known = [one for one in scores if one is not None]
    print(f"{len(known)} of {count} rollouts in {time.perf_counter() - began:.1f} s, {sum(known):.0f} passed")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 16))
