"""OpenAI's Responses API (wire.md 1.10) over chat completions: one file per step, from the request to the events.

``shape`` is what a body must look like, ``check`` what is refused, ``items`` and ``request`` make the chat completion,
``output``, ``answer`` and ``stream`` make the response. Pure: no input or output.
"""
