"""What a judge's requests came to: verdicts, failures, and whether more was asked after a look at the first."""

from collections import Counter, defaultdict
from typing import NamedTuple

from rlhf_trl.files import file_hash, write_json, write_jsonl
from rlhf_trl.provenance import MANIFEST, Task, read_manifest

POINTS = {"a": 1.0, "tie": 0.5, "b": 0.0}


class Request(NamedTuple):
    """One comparison in one order ("ab": `a` is shown first), the hash that its verdict is kept under, and whether its
    replies are equal."""

    key: str
    a: str
    b: str
    prompt: int
    reply: int
    order: str
    text: str
    equal: bool = False


class Tally(NamedTuple):
    """What requests came to: `rows` of `verdicts.jsonl`, requests with a verdict, failures by pair and kind; and of
    each pair the places (prompt and reply) asked for, judged in both orders, and failed in one or both."""

    rows: list[dict]
    verdicts: int
    failures: dict[str, Counter]
    planned: dict[str, set[tuple[int, int]]]
    judged: dict[str, set[tuple[int, int]]]
    failed: dict[str, set[tuple[int, int]]]


def tally(requests: list[Request], records: dict[str, dict]) -> Tally:
    """Count what is known of each request."""
    orders: dict[tuple, dict[str, str]] = {}
    failures: dict[str, Counter] = defaultdict(Counter)
    planned, judged, failed = defaultdict(set), defaultdict(set), defaultdict(set)
    for request in requests:
        pair, place, record = f"{request.a}:{request.b}", (request.prompt, request.reply), records[request.key]
        planned[pair].add(place)
        if verdict := record.get("verdict"):
            winner = "tie" if verdict == "tie" else request.order[verdict == "second"]
            orders.setdefault((request.a, request.b, *place), {})[request.order] = winner
        elif record:
            failures[pair][record["failure"]] += 1
            failed[pair].add(place)
    rows = [
        {"a": a, "b": b, "prompt": prompt, "reply": reply, "orders": [won["ab"], won["ba"]]}
        | {"score": (POINTS[won["ab"]] + POINTS[won["ba"]]) / 2}
        for (a, b, prompt, reply), won in orders.items()
        if len(won) == 2
    ]
    for row in rows:
        judged[f"{row['a']}:{row['b']}"].add((row["prompt"], row["reply"]))
    return Tally(rows, sum(map(len, orders.values())), failures, planned, judged, failed)


def publish(task: Task, requests: list[Request], before: Tally, after: Tally, manifest: dict) -> None:
    """Write `verdicts.jsonl` and `manifest.json`, and print how many requests came to a verdict.

    `looks` in the manifest tells when more was asked although some verdicts of a pair had been published. Asking again
    what failed is not more: the prompts stay those that were fixed beforehand.
    """
    folder, published = task.folder, read_manifest(task.folder) or {}
    more = [p for p in after.planned if before.judged[p] and after.judged[p] - before.judged[p] - before.failed[p]]
    looks = published.get("looks", []) if any(before.judged.values()) else []
    if more and "looks" in published:
        seen, planned = (sum(len(of[pair]) for pair in more) for of in (before.judged, after.planned))
        looks = [*looks, {"seen": seen, "planned": planned}]
    failed = sum(after.failures.values(), Counter())
    pending = len(requests) - after.verdicts - failed.total()
    write_jsonl(folder / "verdicts.jsonl", after.rows)
    manifest |= {
        "failures": after.failures,
        "failed": {pair: sorted(places) for pair, places in after.failed.items()},
        "pending": pending,
        "looks": looks,
        "unfinished": bool(pending or failed),
    }
    write_json(folder / MANIFEST, task.manifest(file_hash(folder / "verdicts.jsonl"), **manifest))

    kinds = ", ".join(f"{kind} {count}" for kind, count in failed.most_common())
    line = f"judge: {after.verdicts} of {len(requests)} requests have a verdict"
    line += f", {failed.total()} failed ({kinds})" if failed else ""
    line += f", {pending} are left (run again to go on)" if pending else ""
    print(f"{line}; verdicts are in {folder / 'verdicts.jsonl'}")
