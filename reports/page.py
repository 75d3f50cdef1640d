"""One offline page: the template filled in, figures inlined and recoloured by the page's light or dark theme."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reports.figures import ARM_COLOURS, FAINT, INK, PHASE_COLOURS, Drawing

TEMPLATES = Path(__file__).parent / "templates"
THEMED = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    **{colour: f"var(--arm{index})" for index, colour in enumerate(ARM_COLOURS)},
    **{colour: f"var(--phase{index})" for index, colour in enumerate(PHASE_COLOURS)},
}


def html(content: Mapping[str, Any]) -> str:
    """Return the page; all text is escaped, only our own drawings are markup, and only our own script may run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = inline
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(content, script=Markup(script), script_digest=digest)


def inline(drawing: Drawing) -> Any:
    """Return a drawing as an element of the page: no document header, identifiers of its own, themed colours."""
    from markupsafe import Markup, escape

    svg = drawing.svg[drawing.svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{drawing.name}-', svg)
    svg = re.sub(r'((?:xlink:)?href="|url\()#', rf"\1#{drawing.name}-", svg)
    for colour, variable in THEMED.items():
        svg = svg.replace(colour, variable)
    label = escape(f"{drawing.title}. {drawing.caption}")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))
