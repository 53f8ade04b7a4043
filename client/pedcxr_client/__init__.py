"""Client of a pedcxr server: draft reports of paediatric chest films. Research use only."""

from pedcxr_client.checks.inspection import Inspection, inspect
from pedcxr_client.client import AsyncClient, AsyncReportStream, Client, ReportStream
from pedcxr_client.errors import (
    AbortedReport,
    AuthenticationFailed,
    BadRequest,
    BlockedFilm,
    ConfigurationError,
    ConnectionFailed,
    EmptyReport,
    InputError,
    LoopingReport,
    MissingResource,
    NotEnglish,
    NotFound,
    NotReport,
    NotText,
    PedcxrError,
    PromptEcho,
    RateLimited,
    ReportError,
    RequestError,
    ServerFailed,
    TimedOut,
    TruncatedReport,
    Unavailable,
)
from pedcxr_client.films.age import Age
from pedcxr_client.films.film import EncodedImage, Film
from pedcxr_client.films.geometry import Preparation
from pedcxr_client.metrics.hooks import Hook, Outcome
from pedcxr_client.reports.report import DISCLAIMER, Report
from pedcxr_client.request.film_request import FilmRequest, Result
from pedcxr_client.request.settings import Timeouts
from pedcxr_client.types import Check, ServedModel, Timing, Usage, __version__

__all__ = [
    "DISCLAIMER",
    "AbortedReport",
    "Age",
    "AsyncClient",
    "AsyncReportStream",
    "AuthenticationFailed",
    "BadRequest",
    "BlockedFilm",
    "Check",
    "Client",
    "ConfigurationError",
    "ConnectionFailed",
    "EmptyReport",
    "EncodedImage",
    "Film",
    "FilmRequest",
    "Hook",
    "InputError",
    "Inspection",
    "LoopingReport",
    "MissingResource",
    "NotEnglish",
    "NotFound",
    "NotReport",
    "NotText",
    "Outcome",
    "PedcxrError",
    "Preparation",
    "PromptEcho",
    "RateLimited",
    "Report",
    "ReportError",
    "ReportStream",
    "RequestError",
    "Result",
    "ServedModel",
    "ServerFailed",
    "TimedOut",
    "Timeouts",
    "Timing",
    "TruncatedReport",
    "Unavailable",
    "Usage",
    "__version__",
    "inspect",
]
