"""The room chat that `wsc-fast demo` and `examples/chat` start; here, so that the wheel has it.

`read_page` gives a page of the application its client in JavaScript, and the look of the examples.

Nothing else in wsc_fast imports it.
"""

from wsc_fast.demo.chat import create_hub, main
from wsc_fast.demo.pages import read_page

__all__ = ["create_hub", "main", "read_page"]
