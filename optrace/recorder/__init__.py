"""How a live run becomes a trace: hooks, names, events, launching (torch only once it is imported by the program)."""
