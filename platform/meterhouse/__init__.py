"""Meterhouse: an API platform in front of language models that can be trusted with money."""

__version__ = "0.1.0"
