"""Pages of one file, for the demo and the examples: client and look are put into them.

A folder of an example holds its own page alone. The client in JavaScript and the stylesheet come
with the package, so that a copied folder runs wherever wsc_fast is installed.
"""

import base64
import hashlib
import re
from importlib import resources
from os import PathLike
from pathlib import Path

from wsc_fast import Response

# The client is that of clients/javascript, as `npm run demo` there builds it.
_INSTEAD = {
    '<script src="wsc-client.min.js">': ("<script>", "wsc-client.min.js"),
    '<link rel="stylesheet" href="look.css">': ("<style>", "look.css", "</style>"),
}


def read_page(path: str | PathLike[str]) -> Response:
    """A page as the answer of a route, under a policy that allows exactly its styles and scripts.

    Args:
        path: of an HTML file in UTF-8. Its `<script src="wsc-client.min.js">` becomes the client in
            JavaScript (`wsc.connect`), its `<link rel="stylesheet" href="look.css">` the look of
            the examples. Its other styles and scripts stand within it, in elements without
            attributes, and no element has a `style` attribute.

    Returns:
        The Response, which other servers can send too: it has `body` and `headers`.

    Raises:
        OSError: the file cannot be read.

    Thread-safety: any thread.
    """
    html = Path(path).read_text(encoding="utf-8")
    folder = resources.files("wsc_fast.demo")
    for tag, (before, name, *after) in _INSTEAD.items():
        if tag in html:
            source = folder.joinpath(name).read_text(encoding="utf-8")
            html = html.replace(tag, before + source + "".join(after))
    policy = (
        f"default-src 'none'; script-src {_hashes(html, 'script')}; "
        f"style-src {_hashes(html, 'style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
    return Response(
        body=html,
        content_type="text/html; charset=utf-8",
        headers={
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )


def _hashes(html: str, tag: str) -> str:
    """The sources of a policy that are the contents of these elements."""
    digests = [
        hashlib.sha256(source.encode()).digest()
        for source in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
    ]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
