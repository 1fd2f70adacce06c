"""Says whether a run of the benchmark left all of its results in a folder."""

import json
import sys
import xml.etree.ElementTree
from pathlib import Path

MEASURES = {"5b", "6b"} | {str(number) for number in range(1, 19)}
SIZES = 6

made = Path(sys.argv[1])
result = json.loads((made / "results.json").read_text())
for chart in ("results.svg", "overview.svg"):
    xml.etree.ElementTree.parse(made / chart)
measured = {row["number"] for row in result["rows"]}
complete = measured == MEASURES and len(result["growth"]) == SIZES
print("1 passed, 0 failed" if complete else "0 passed, 1 failed")
sys.exit(not complete)
