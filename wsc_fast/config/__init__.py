"""Settings: what there is, what each may be, and how they come from code, environment or files."""

from wsc_fast.config.settings import ACKConfig, HubConfig, RetryConfig

__all__ = ["ACKConfig", "HubConfig", "RetryConfig"]
