"""This machine: ``compile`` plans, ``client`` starts and watches the worker processes of ``tuneport.local_backend``."""

from tuneport.providers.local.client import LocalProvider

__all__ = ["LocalProvider"]
