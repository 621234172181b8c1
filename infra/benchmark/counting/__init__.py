"""What is put on the path of a process whose calls are counted."""
