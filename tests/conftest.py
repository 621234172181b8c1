"""What every test has."""

pytest_plugins = ["plugins.matrix", "plugins.meters", "plugins.servers", "plugins.timing"]
