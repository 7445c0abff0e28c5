"""Timings of the data layer, each side by side with a reference in the same run: the ratio is the figure.

Run with ``python tests/bench_data.py [ROWS]`` (default 1,000,000; rows go to a temporary folder). Prints a table; exits with 1
when a stated limit is passed. Timings of both sides are taken in turn, and the best of each counts, so that other work on
the machine disturbs both alike.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROWS = 1_000_000
_SKIP_ALL = ["duplicates", "personal-data", "tokens"]

_CHILD = """
import json, resource, sys, time
from tuneport.core.data.check import CheckOptions, check_data
path, skip = sys.argv[1], frozenset(json.loads(sys.argv[2]))
begin = time.perf_counter()
report = check_data(path, options=CheckOptions(skip=skip))
seconds = time.perf_counter() - begin
own, child = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
near = next((finding.count for finding in report.findings if finding.code == "near_duplicates"), 0)
print(json.dumps({"seconds": seconds, "rows": report.rows, "good": report.good_rows, "own": own, "child": child, "near": near}))
"""


class Figure(NamedTuple):
    """One line of the table. ``limit``: the ratio or value must be at least (or, with ``below``, at most) this."""

    what: str
    value: str
    ratio: float | None = None
    limit: float | None = None
    below: bool = False
    measured: float | None = None  # what the limit is held against, when that is not the ratio

    @property
    def late(self) -> bool:
        """Whether the limit is passed."""
        number = self.ratio if self.measured is None else self.measured
        if self.limit is None or number is None:
            return False
        return number > self.limit if self.below else number < self.limit


def write_rows(path: Path, count: int, near_share: float = 0.02) -> None:
    """Chat rows of about 550 bytes with a vocabulary of Zipf's law; ``near_share`` of them repeat an earlier one nearly."""
    draw = random.Random(0)
    vocabulary = ["".join(draw.choice("bcdfghklmnprstvw") + draw.choice("aeiou") for _ in range(draw.randint(1, 4))) for _ in range(30_000)]
    weights = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(vocabulary))))
    system = "You are a support agent of a telecom company. Answer briefly and politely."
    pool = draw.choices(vocabulary, cum_weights=weights, k=2_000_000)  # drawn once, sliced at random places
    last: list[list[str]] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            if last and draw.random() < near_share:
                words = list(draw.choice(last))
                words[draw.randrange(len(words))] = "changed"
            else:
                words = []
                for _ in range(draw.randint(10, 18)):  # runs of five, so that only planted rows are alike
                    start = draw.randrange(len(pool) - 5)
                    words += pool[start : start + 5]
                words[0] = f"ticket{number}"
                if number % 100 == 0:
                    words.append(f"mail{number}@corp.com")
                last = [*last[-200:], words]
            half = len(words) // 2
            question, answer = " ".join(words[:half]) + "?", " ".join(words[half:]) + "."
            turns = [{"role": "system", "content": system}, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")


def checked(path: Path, skip: list[str]) -> dict[str, float]:
    """One check in a process of its own: seconds, rows, and peak memory in MB (of the process, and of its largest worker)."""
    command = [sys.executable, "-c", _CHILD, str(path), json.dumps(skip)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def checking(path: Path, small: Path, repeats: int = 3) -> list[Figure]:
    """The structural and the full check against Together's own client-side check of the same file."""
    from together.lib.utils.files import check_file  # type: ignore[import-untyped]

    from tuneport.core.data.workers import usable_cores

    reference: list[float] = []
    structural: list[dict[str, float]] = []
    for _ in range(repeats):
        reference.append(seconds(lambda: check_file(path)))
        structural.append(checked(path, _SKIP_ALL))
    part = min(structural, key=lambda found: found["seconds"])
    little = checked(small, _SKIP_ALL)
    full = checked(path, [])
    rows, together, cores = part["rows"], min(reference), usable_cores()
    speed = rows / full["seconds"]
    peak = full["own"] + cores * full["child"]
    growth = part["own"] / little["own"]
    return [
        Figure(f"together check_file, {rows:,.0f} rows (reference)", f"{rows / together:,.0f} rows/s", 1.0),
        Figure("structural check", f"{rows / part['seconds']:,.0f} rows/s", together / part["seconds"], 1.0),
        Figure("  memory, against a tenth of the rows", f"{part['own']:,.0f} MB, workers {part['child']:,.0f} MB", growth, 1.2, below=True),
        Figure("full check with near-duplicates", f"{speed:,.0f} rows/s", together / full["seconds"], 20_000, measured=speed),
        Figure(f"  memory of all {cores + 1} processes", f"{peak:,.0f} MB", None, 1_500, below=True, measured=peak),
        Figure("  near duplicates found (2 % were planted)", f"{full['near']:,.0f}", full["near"] / rows / 0.02),
    ]


def near_duplicates(count: int = 5_000) -> list[Figure]:
    """Near duplicates against datasketch on the same texts, with recall and precision against planted pairs."""
    import numpy as np

    from tuneport.core.data.near import ShingleStore, candidate_pairs, verified_pairs
    from tuneport.core.data.shingles import bands_of, shingles_of, words_of

    draw = random.Random(1)
    vocabulary = [f"w{number}" for number in range(5_000)]
    texts = [" ".join(draw.choices(vocabulary, k=draw.randint(40, 120))) for _ in range(count)]
    for at in range(0, count, 5):
        words = texts[at].split()
        for _ in range(draw.randint(0, 5)):
            words[draw.randrange(len(words))] = draw.choice(vocabulary)
        texts.append(" ".join(words))
    sets = [{tuple(words[at : at + 3]) for at in range(len(words) - 2)} for words in map(str.split, texts)]

    def similarity(one: int, other: int) -> float:
        return len(sets[one] & sets[other]) / len(sets[one] | sets[other])

    wanted = {(at, count + at // 5) for at in range(0, count, 5) if similarity(at, count + at // 5) >= 0.8}
    found: set[tuple[int, int]] = set()

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            store, bands = ShingleStore(), []
            for at in range(0, len(texts), 2_000):
                shingled = shingles_of(words_of(texts[at : at + 2_000]))
                path = Path(folder) / str(at)
                path.write_bytes((shingled.hashes >> np.uint64(32)).astype(np.uint32).tobytes())
                store.add(path, np.diff(shingled.offsets).astype(np.uint32))
                bands.append(bands_of(shingled))
            found.update((pair.earlier, pair.later) for pair in verified_pairs(candidate_pairs(bands), store, 0.8))

    theirs_found: set[tuple[int, int]] = set()

    def theirs() -> None:
        from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]

        index = MinHashLSH(threshold=0.8, num_perm=128)
        for at, text in enumerate(texts):
            words = text.split()
            signature = MinHash(num_perm=128)
            signature.update_batch([" ".join(words[i : i + 3]).encode() for i in range(len(words) - 2)])
            theirs_found.update((int(other), at) for other in index.query(signature))
            index.insert(str(at), signature)

    try:
        import datasketch  # noqa: F401  # type: ignore[import-untyped]
    except ImportError:
        reference, line = None, Figure("datasketch (not installed: no ratio)", "")
    else:
        reference = min(seconds(theirs) for _ in range(2))
        recall = len(wanted & theirs_found) / len(wanted)
        line = Figure(f"datasketch, {len(texts):,} texts (reference)", f"{reference:.2f} s, recall {recall:.3f}", 1.0)
    own = min(seconds(ours) for _ in range(2))
    recall = len(wanted & found) / len(wanted)
    precision = sum(similarity(*pair) >= 0.8 for pair in found) / max(len(found), 1)
    return [
        line,
        Figure("near duplicates with verification", f"{own:.2f} s", reference / own if reference else None, 1.0),
        Figure(f"  recall of {len(wanted):,} planted pairs", f"{recall:.3f}", None, 0.95, measured=recall),
        Figure("  precision", f"{precision:.3f}", None, 0.95, measured=precision),
    ]


def figures(rows: int = ROWS) -> list[Figure]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "rows.jsonl", Path(folder) / "few.jsonl"
        write_rows(large, rows)
        write_rows(small, max(rows // 10, 40_000))  # enough that both are checked by workers
        return [*checking(large, small), *near_duplicates()]


def show(lines: list[Figure]) -> int:
    """Print the table; the number of limits passed."""
    print(f"{'':58}{'':>28}{'ratio':>8}{'limit':>10}")
    for line in lines:
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
        limit = "" if line.limit is None else f"{'≤' if line.below else '≥'} {line.limit:,g}"
        print(f"{line.what:58}{line.value:>28}{ratio:>8}{limit:>10}{'  passed the limit' if line.late else ''}")
    return sum(line.late for line in lines)


if __name__ == "__main__":
    sys.exit(1 if show(figures(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)) else 0)
