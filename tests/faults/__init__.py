"""Small real programs, faults put into them one at a time, and what optrace says about each."""
