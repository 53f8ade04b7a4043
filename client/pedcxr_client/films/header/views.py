"""Words and codes of views and orientations, as data. `facts` reads headers with them."""

from __future__ import annotations

from typing import Literal

Projection = Literal["frontal", "lateral", ""]

VIEWS: dict[str, tuple[Projection, tuple[str, ...]]] = {
    "DECUBITUS": ("frontal", ("LLD", "RLD", "DECUB*")),
    "OBLIQUE": ("", ("OBL", "OBLIQ*", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "DORSAL", "VENTRAL")),
    "AP": ("frontal", ("AP", "ANTEROPOSTER*", "ANTERIORPOSTER*")),
    "PA": ("frontal", ("PA", "POSTEROANTER*", "POSTERIORANTER*")),
    "FRONTAL": ("frontal", ("FRONTAL*", "LORDOTIC")),
    "LL": ("lateral", ("LL", "LLAT")),
    "RL": ("lateral", ("RL", "RLAT")),
    "LATERAL": ("lateral", ("LAT", "LATERAL*", "SEITLICH", "PROFIL*", "PERFIL")),
}
"""The views, with their projection and the words that name them; ``*`` stands for any ending.

ViewPosition has the defined terms AP, PA, LL, RL, LLD, RLD, LLO and RLO (PS3.3 C.8.1.1); devices write many others.
"""

DECISIVE = ("DECUBITUS", "OBLIQUE")
"""The views that decide whatever words are beside them: a film in lateral decubitus is a frontal projection."""

VIEW_CODES: dict[str, str] = {
    "399348003": "AP", "R-10206": "AP",
    "272479007": "PA", "R-40888": "PA", "R-10214": "PA",
    "399033003": "FRONTAL", "R-10202": "FRONTAL",
    "399173006": "LL", "R-10236": "LL",
    "399198007": "RL", "R-10232": "RL",
    "399067008": "LATERAL", "R-102CD": "LATERAL",
    "399312000": "OBLIQUE", "R-10208": "OBLIQUE",  # antero-posterior oblique
    "399059000": "OBLIQUE", "R-10216": "OBLIQUE",  # postero-anterior oblique
    "399160007": "OBLIQUE", "R-10204": "OBLIQUE",  # frontal oblique
    "260427002": "OBLIQUE", "R-40783": "OBLIQUE",  # lateral oblique
    "399182000": "OBLIQUE", "R-102C1": "OBLIQUE",
    "399135007": "OBLIQUE", "R-10220": "OBLIQUE",  # left anterior oblique
    "399006002": "OBLIQUE", "R-10212": "OBLIQUE",  # left posterior oblique
    "399184004": "OBLIQUE", "R-10238": "OBLIQUE",  # left oblique
    "399356000": "OBLIQUE", "R-40985": "OBLIQUE",  # right anterior oblique
    "399038007": "OBLIQUE", "R-10210": "OBLIQUE",  # right posterior oblique
    "399236003": "OBLIQUE", "R-10234": "OBLIQUE",  # right oblique
}  # fmt: skip
"""Code values of ViewCodeSequence (PS3.16 CID 4010, SNOMED CT and SNOMED RT). Their meanings are localised."""

ORIENTATIONS: dict[str, tuple[Projection, str]] = {
    "L\\F": ("frontal", ""),
    "A\\F": ("lateral", ""),
    "P\\F": ("lateral", ""),
    "R\\F": ("frontal", "mirrored"),
    "L\\H": ("frontal", "upside down, flipped from top to bottom"),
    "R\\H": ("frontal", "upside down, turned by 180 degrees"),
    "H\\L": ("frontal", "turned by 90 degrees clockwise"),
    "F\\R": ("frontal", "turned by 90 degrees anticlockwise"),
    "F\\L": ("frontal", "turned by 90 degrees and mirrored"),
    "H\\R": ("frontal", "turned by 90 degrees and mirrored"),
    "A\\H": ("lateral", "upside down"),
    "P\\H": ("lateral", "upside down"),
    "H\\A": ("lateral", "turned by 90 degrees"),
    "H\\P": ("lateral", "turned by 90 degrees"),
    "F\\A": ("lateral", "turned by 90 degrees"),
    "F\\P": ("lateral", "turned by 90 degrees"),
}
"""The projection of a PatientOrientation and how the image is turned; ``""`` if it is upright and not mirrored.

The keys are the first letters of the directions to the right and to the bottom of the image (PS3.3 C.7.6.1.1.1).
"""

NO_FILM_PLANE = "not the plane of a frontal or lateral film"
"""How every other pair of directions is described."""
