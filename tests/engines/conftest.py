"""A real repository with a view of it, as tests of the view have."""

from __future__ import annotations

from view.conftest import built, show

__all__ = ["built", "show"]
