"""The ledger's way from a running request to SQL: journal, shipping, adoption, balance.

Invariant: what the journal has acknowledged ends in SQL exactly once. Not here: the tables (``db.ledger``).
"""
