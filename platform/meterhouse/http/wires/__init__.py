"""The wires that clients speak, a module each (``passage.ClientWire``)."""
