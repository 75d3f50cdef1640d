"""The packages hpsv2 and image-reward, each in an environment of its own: references to compare our scorers with.

Their pins cannot live beside what the rest needs. `python -m rewards.packages hpsv2 DIR` makes an environment;
`DIR/bin/python rewards/packages/worker.py --package hpsv2 --weights FOLDER` serves the package's own scores, by the
protocol that `remote(http://...)` speaks; `python -m rewards.parity` compares them with ours.
"""

from __future__ import annotations

import sys
from pathlib import Path

WORKER = Path(__file__).with_name("worker.py")


def python_of(environment: Path) -> Path:
    """Return the interpreter of an environment."""
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
