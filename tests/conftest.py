"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# The machine may be busy: an example that is slow once says nothing about the code.
settings.register_profile("l2s", deadline=None)
settings.load_profile("l2s")
