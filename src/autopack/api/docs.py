"""The pages `/docs` and `/redoc`, complete without internet."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, Response

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {
    "favicon.svg": "image/svg+xml",
    "redoc.standalone.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
# Both libraries use style attributes and data: images, and ReDoc searches in a blob: worker.
POLICY = (
    "default-src 'none'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src blob:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


router = APIRouter(include_in_schema=False)


def mount_docs(app: FastAPI) -> None:
    """Serve Swagger UI at `/docs`, ReDoc at `/redoc`, and their files at `/docs/static/`.

    The application must be made with `docs_url=None, redoc_url=None`: FastAPI's own pages, which
    load from the internet, would have precedence. Raises ValueError otherwise.
    """
    if app.docs_url is not None or app.redoc_url is not None:
        raise ValueError("make the application with docs_url=None, redoc_url=None")
    app.router.routes += router.routes


@router.get("/docs")
def swagger_ui(request: Request) -> HTMLResponse:
    app, prefix = request.app, _prefix(request)
    return _with_policy(
        get_swagger_ui_html(
            openapi_url=f"{prefix}{app.openapi_url}",
            title=f"{app.title}: API",
            swagger_js_url=f"{prefix}/docs/static/swagger-ui-bundle.js",
            swagger_css_url=f"{prefix}/docs/static/swagger-ui.css",
            swagger_favicon_url=f"{prefix}/docs/static/favicon.svg",
            swagger_ui_parameters={
                "displayRequestDuration": True,
                "tryItOutEnabled": True,
                "validatorUrl": None,  # off: it sends the service's address to swagger.io
            },
        )
    )


@router.get("/redoc")
def redoc(request: Request) -> HTMLResponse:
    app, prefix = request.app, _prefix(request)
    return _with_policy(
        get_redoc_html(
            openapi_url=f"{prefix}{app.openapi_url}",
            title=f"{app.title}: API reference",
            redoc_js_url=f"{prefix}/docs/static/redoc.standalone.js",
            redoc_favicon_url=f"{prefix}/docs/static/favicon.svg",
            with_google_fonts=False,
        )
    )


@router.get("/docs/static/{name}")
def static_file(name: str) -> Response:
    if name not in MEDIA_TYPES:
        raise HTTPException(404)
    # Starlette adds an ETag, so the browser revalidates after an update of Autopack.
    return FileResponse(
        STATIC / name,
        media_type=MEDIA_TYPES[name],
        headers={"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"},
    )


@router.get("/favicon.ico")
def favicon() -> Response:
    return static_file("favicon.svg")


def _prefix(request: Request) -> str:
    """Return the path prefix under which a proxy serves the application."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def _with_policy(page: HTMLResponse) -> HTMLResponse:
    """Allow exactly the inline scripts of this page, by their hashes."""
    scripts = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    hashes = "".join(
        f" 'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
        for script in scripts
    )
    page.headers["Content-Security-Policy"] = POLICY.format(hashes=hashes)
    return page
