"""Integer noise for privacy: exact tables, and randomness of the operating system alone (ADR 0006). Knows no messages."""
