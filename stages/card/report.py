"""Fills the two templates. In: facts. Out: the model card's Markdown, and one HTML page that asks nothing of the network."""

from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stages.card.words import FILTERS

if TYPE_CHECKING:
    from stages.card.facts import Facts

TEMPLATES = Path(__file__).parent / "templates"


def environment(escape: bool) -> Environment:
    """The templates of this stage; a name that is not there is an error, and with `escape` every text is HTML-escaped."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(FILTERS)
    return found


def html(facts: "Facts") -> str:
    """The HTML report."""
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return environment(escape=True).get_template("report.html.j2").render(facts=facts, style=style)


def markdown(facts: "Facts") -> str:
    """The model card's body."""
    return environment(escape=False).get_template("model_card.md.j2").render(facts=facts)
