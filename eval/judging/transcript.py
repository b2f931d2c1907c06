"""What a judge was asked and said, so that no request is paid for twice."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from tqdm import tqdm

from eval.judging.client import RECORD, BudgetSpent, JudgeClient
from eval.judging.requests import Request


class Transcript:
    """`transcript.jsonl`: a line for each request that was answered or failed for good.

    `records` holds what counts, by key: the verdict if there is one, else the last failure, else {}.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, dict] = defaultdict(dict)
        content = path.read_bytes() if path.exists() else b""
        self.end = content.rfind(b"\n") + 1  # a killed run may have left half a line after it
        for line in content[: self.end].splitlines():
            record = json.loads(line)
            if not self.records[record["key"]].get("verdict"):
                self.records[record["key"]] = record

    def append(self, request: Request, outcome: dict) -> None:
        names = ("key", "a", "b", "prompt", "reply", "order")
        record = {name: getattr(request, name) for name in names} | outcome
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.seek(self.end)
            file.truncate()
            file.write(json.dumps(record).encode() + b"\n")
            self.end = file.tell()
        self.records[record["key"]] = record


async def ask_all(client: JudgeClient, requests: Collection[Request], transcript: Transcript) -> None:
    """Ask until every request is in the transcript or the budget is spent."""
    queue = iter(requests)
    progress = tqdm(total=len(requests), desc="judge")

    async def work() -> None:
        for request in queue:
            if client.over_budget():
                return
            try:
                outcome = await client.ask(request.text)
            except BudgetSpent:
                return
            transcript.append(request, outcome)
            progress.update()

    async def crew() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(client.judge.concurrency):
                group.create_task(work())

    async with client.sdk:
        working = asyncio.create_task(crew())
        spent = asyncio.create_task(client.http.spent.wait())
        await asyncio.wait((working, spent), return_when=asyncio.FIRST_COMPLETED)
        working.cancel()  # who is left only sleeps before a retry that the budget has no room for
        (outcome,) = await asyncio.gather(working, return_exceptions=True)
    progress.close()
    if isinstance(outcome, ExceptionGroup):
        raise outcome.exceptions[0] from None


def tie_equal_replies(requests: list[Request], transcript: Transcript) -> None:
    """Take down a tie wherever the replies are equal, up to the first request of a pair that was not made: of what a
    budget cuts off, the ties alone would count."""
    unfinished = set()
    for request in requests:
        pair, record = (request.a, request.b), transcript.records[request.key]
        if not request.equal and not record:
            unfinished.add(pair)
        elif request.equal and not record.get("verdict") and pair not in unfinished:
            transcript.append(request, RECORD | {"verdict": "tie", "detail": "equal replies"})
