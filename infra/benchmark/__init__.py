"""The benchmark behind ``infra/bench``."""
