"""The console: pages for operators and tenants, a process of its own and a client of the public API like any other."""
