"""``meterhouse check``: what of a deployment is in order, and what to do about the rest. Changes nothing."""
