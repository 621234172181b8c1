"""Billing: credits, invoices, re-rating, spend alerts and exports, over the ledger and off the request path."""
