"""What every test has."""

pytest_plugins = [
    "plugins.clients",
    "plugins.garbage",
    "plugins.matrix",
    "plugins.meters",
    "plugins.order",
    "plugins.real_model",
    "plugins.servers",
    "plugins.soak",
    "plugins.timing",
    "plugins.tls",
]
