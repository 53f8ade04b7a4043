"""pedcxr_client: draft reports of paediatric chest films from a pedcxr server. Research use only."""

from ._errors import (
    AbortedReport,
    AuthenticationFailed,
    BadRequest,
    BlockedFilm,
    ConfigurationError,
    ConnectionFailed,
    EmptyReport,
    InputError,
    NotFound,
    PedcxrError,
    RateLimited,
    ReportError,
    RequestError,
    ServerFailed,
    TimedOut,
    TruncatedReport,
    Unavailable,
)
from ._settings import Timeouts
from .age import Age
from .async_client import AsyncClient, AsyncReportStream
from .client import Client, ReportStream
from .gate import Check
from .hook import Hook, Outcome
from .image import EncodedImage, Radiograph
from .preparation import Preparation
from .report import DISCLAIMER, Report, Timing, Usage

__version__ = "0.1.0"

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
    "Hook",
    "InputError",
    "NotFound",
    "Outcome",
    "PedcxrError",
    "Preparation",
    "Radiograph",
    "RateLimited",
    "Report",
    "ReportError",
    "ReportStream",
    "RequestError",
    "ServerFailed",
    "TimedOut",
    "Timeouts",
    "Timing",
    "TruncatedReport",
    "Unavailable",
    "Usage",
    "__version__",
]
