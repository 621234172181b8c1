"""Translation between wires, one file per pair; pure functions and incremental parsers, no input or output."""
