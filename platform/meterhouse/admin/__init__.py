"""The administration API: ordinary FastAPI over the same services that the command line uses."""
