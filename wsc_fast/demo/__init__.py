"""The room chat that `wsc-fast demo` and `examples/chat` start; here, so that the wheel has it.

Nothing else in wsc_fast imports it.
"""

from wsc_fast.demo.chat import create_hub, main

__all__ = ["create_hub", "main"]
