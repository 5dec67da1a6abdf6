"""Security headers of every response, which keep other sites from using our pages."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from werkzeug.datastructures import Headers
from werkzeug.wrappers import Request

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, our own forms would come from nowhere
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_FRAMED_BY_NOBODY = "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
PAGE = f"default-src 'none'; style-src 'self'; img-src 'self'; {_FRAMED_BY_NOBODY}"
DASHBOARD = (
    # What Optuna's dashboard asks for itself (plotly's WebGL figures compile code), and nothing from elsewhere.
    "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    f"img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-src 'self'; {_FRAMED_BY_NOBODY}"
)
ARTIFACT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"
"""A file that a user uploaded may be a page: it runs nothing, and is of no origin."""

REPORT = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "sandbox allow-scripts; frame-ancestors 'none'"
)
"""A report runs its own scripts alone, which its page names by their hashes, and is of no origin."""

HSTS = "max-age=31536000"


def secure(request: Request, headers: Headers) -> None:
    """Adds what protects an answer, and takes away what does not."""
    for name in ("Access-Control-Allow-Origin", "Server"):  # Optuna's dashboard lets every page read its artifacts
        headers.remove(name)
    for name, value in _protection(request):
        headers.set(name, value)


def _protection(request: Request) -> Iterator[tuple[str, str]]:
    yield from ALWAYS.items()
    yield "Content-Security-Policy", _policy(request.path)
    # A browser keeps nothing of what is behind the login; the dashboard's own program is no secret, and large.
    yield "Cache-Control", "private, no-cache" if request.path.startswith("/static/") else "no-store"
    if request.is_secure and not is_loopback(
        hostname(request.host)
    ):  # for other programs on this machine it would hold
        yield "Strict-Transport-Security", HSTS


def _policy(path: str) -> str:
    if path.startswith("/artifacts/"):
        return ARTIFACT
    if re.fullmatch(r"/tuner/[0-9]+/report", path):
        return REPORT
    return DASHBOARD if path == "/dashboard" or path.startswith("/dashboard/") else PAGE


def hostname(host: str) -> str:
    """Returns a host header without its port; nothing for nonsense."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, which no other machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
