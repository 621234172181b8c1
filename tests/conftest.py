"""What every test has."""

pytest_plugins = ["plugins.timing"]
