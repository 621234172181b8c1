"""What leaves the process for its operators: log lines, spans, metrics; never a prompt, never a secret."""
