"""What the pages have in common: their template environment and style sheet."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


def page_template(name: str) -> "Template":
    """Return a page's template; ``style.css`` can be included in it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("lorasmith.reports")
    # Everything is escaped: captions, tags and names are the user's, and may be anything.
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template(name)
