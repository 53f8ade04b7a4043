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
    LoopingReport,
    NotFound,
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
from ._settings import Timeouts
from .age import Age
from .async_client import AsyncClient
from .async_stream import AsyncReportStream
from .client import Client
from .gate import Check
from .hook import Hook, Outcome
from .image import EncodedImage, Radiograph
from .order import Order
from .preparation import Preparation
from .report import DISCLAIMER, Report, Timing, Usage
from .result import Result
from .served import ServedModel
from .stream import ReportStream

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
    "LoopingReport",
    "NotFound",
    "NotText",
    "Order",
    "Outcome",
    "PedcxrError",
    "Preparation",
    "PromptEcho",
    "Radiograph",
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
]
