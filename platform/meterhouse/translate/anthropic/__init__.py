"""Anthropic's Messages (wire.md 1.11) and OpenAI's chat completions, each as the other.

``reading`` and ``writing`` serve clients that speak Anthropic's: their request as OpenAI's, OpenAI's answer as theirs.
``asking`` and ``hearing`` serve Anthropic as a provider: OpenAI's request as its, its answer as OpenAI's. ``words`` is
what all of them share. The contract is the ``anthropic`` package, 2.14.
"""
