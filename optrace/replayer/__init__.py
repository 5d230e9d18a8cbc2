"""Recomputes recorded steps from their own inputs with a reference rule, a variant of one, or a named class."""
