"""APIs that close what they opened, on the loop that opened it."""

from tests.dialects.conftest import make_api

__all__ = ["make_api"]
