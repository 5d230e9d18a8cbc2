"""What a trace is: its tables, how they are written and read, statistics and fingerprints (no torch)."""
