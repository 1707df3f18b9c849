"""Many records: load, build every table and the page, and say how long and how much memory it took."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from reports.paper.write import paper, write_paper
from reports.records.reading import gather
from results.published import published_cells


def main(store: Path, out: Path) -> None:
    """Build from `store` into `out` and print seconds, peak resident bytes and sizes as one JSON line."""
    start, used = time.perf_counter(), time.process_time()
    gathered = gather([store])
    loaded = time.perf_counter()
    write_paper(paper(gathered, published_cells()), out)
    found = {
        "records": len(gathered.found),
        "load_s": loaded - start,
        "render_s": time.perf_counter() - loaded,
        "cpu_s": time.process_time() - used,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "page_bytes": (out / "paper" / "index.html").stat().st_size,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
