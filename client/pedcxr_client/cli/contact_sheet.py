"""A page with the film, the report and the warnings of each film of a run. It opens offline and has no scripts."""

from __future__ import annotations

import io
from base64 import b64decode, b64encode
from html import escape

from pedcxr_client.films.film import EncodedImage
from pedcxr_client.reports import html_head, provenance
from pedcxr_client.reports.report import DISCLAIMER, Report

TITLE = "Draft reports of chest films"
_SIDE = 320  # longest side of a thumbnail in pixels
_STYLE = """\
article { display: flex; gap: 1.5rem; border-top: 1px solid #ddd; padding: 1rem 0; break-inside: avoid }
img, .none { width: 20rem; flex: none; align-self: flex-start; background: #eee }
.none { padding: 4rem 0; text-align: center }
h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere } p { margin: .4rem 0 } .text { white-space: pre-wrap }
.warning { color: #8a3200; font-weight: 600 } .origin { color: #555; font-size: .85rem; overflow-wrap: anywhere }
@media (max-width: 45rem) { article { flex-direction: column } }"""


def start() -> str:
    """Return the start of the page."""
    heading = f"<h1>{escape(TITLE)}</h1><p class=warning>{escape(DISCLAIMER)}</p>\n"
    return html_head.head(TITLE, _STYLE, images=True) + heading


def card(report: Report, *, film_id: str | None, image: EncodedImage | None) -> str:
    """Return one film. ``image`` is the image as sent, or None if it is not known."""
    values = {"age": report.age, "sex": report.sex, "view": report.view}
    facts = ", ".join(f"{label} {value or 'unknown'}" for label, value in values.items())
    remarks = [*report.notices[:-1], *provenance.remarks(report)]  # the disclaimer is at the top and at the end
    origin = "; ".join(f"{label}: {value}" for label, value in provenance.lines(report))
    return "\n".join(
        [
            f"<article>{_thumbnail(image)}<div>",
            f"<h2>{escape(film_id or 'film without an id')}</h2><p>{escape(facts)}</p>",
            *(f"<p class=warning>{escape(remark)}</p>" for remark in remarks),
            f"<p class=text>{escape(report.text)}</p>",
            f"<p class=origin>{escape(origin)}</p>",
            "</div></article>\n",
        ]
    )


def end() -> str:
    """Return the end of the page."""
    return f"<footer><p>{escape(DISCLAIMER)}</p></footer></body></html>\n"


def _thumbnail(image: EncodedImage | None) -> str:
    if image is None:
        return "<div class=none>no film given</div>"
    from PIL import Image

    with Image.open(io.BytesIO(b64decode(image.base64))) as film:
        small = film.convert("L")
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    data = b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" width={small.width} alt="the film as sent to the model">'
