"""How many parameters the parts of a pipeline have: from a table for registered models, else from heads of files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.models.layout import checked_index, has_weights, header, parts, weight_files
from bench.models.source import part_config

TABLE = "parameters.json"
"""Beside the configurations that come with the program: counts that a test takes anew from the architectures."""
PROJECTION = re.compile(r"\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)\.weight$")
"""The layers that adapters are put on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Numbers of parameters, and the configurations that activations follow from."""

    model: int
    """Of the part that is trained."""
    projections: int
    """Inputs and outputs of all its attention projections: parameters of adapters, a unit of rank."""
    vae: int
    encoders: int
    """Of texts and first frames."""
    config: Mapping[str, Any]
    """Of the part that is trained."""
    vae_config: Mapping[str, Any]


def sizes_of(folder: Path) -> Sizes | None:
    """Return the sizes of a pipeline; None where neither its weights nor a table are here to tell."""
    if not (folder / "model_index.json").is_file():
        return None
    table = folder / TABLE
    index = checked_index(folder.name, folder)
    weighed = [part for part, kind in parts(index).items() if has_weights(kind)]
    counts = json.loads(table.read_text()) if table.is_file() else {part: counted(folder / part) for part in weighed}
    if not all(counts.get(part) for part in ("transformer", "vae")):
        return None
    return Sizes(
        model=counts["transformer"]["parameters"],
        projections=counts["transformer"]["projections"],
        vae=counts["vae"]["parameters"],
        encoders=sum(counts[part]["parameters"] for part in weighed if part not in ("transformer", "vae")),
        config=part_config(folder, "transformer"),
        vae_config=part_config(folder, "vae"),
    )


def counted(part: Path) -> dict[str, int]:
    """Return a part's parameters, and inputs and outputs of its attention projections, by its files; {} without any."""
    files = [file for file in weight_files(part) if file.is_file()] if part.is_dir() else []
    heads = [head for file in files if (head := header(file)) is not None]
    shapes = {name: tensor["shape"] for tensors, _ in heads for name, tensor in tensors.items()}
    return summed(shapes) if shapes else {}


def summed(shapes: Mapping[str, list[int]]) -> dict[str, int]:
    """Return the counts of parameters of these names and shapes."""
    return {
        "parameters": sum(map(math.prod, shapes.values())),
        "projections": sum(sum(shape) for name, shape in shapes.items() if PROJECTION.search(name)),
    }
