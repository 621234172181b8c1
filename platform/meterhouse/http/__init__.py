"""The HTTP surface that tenants meet: the inference path, and the small pages around it."""
