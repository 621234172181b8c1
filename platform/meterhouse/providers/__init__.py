"""Providers: rows, routes, prices, breakers, and the one client that reaches them.

Not here: what a request may cost (limits), and the translation between wires (translate).
"""
