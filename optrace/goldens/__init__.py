"""Find, make, check and export golden traces."""
