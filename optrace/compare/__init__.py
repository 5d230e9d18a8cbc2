"""Two traces become one DiffReport: matching, alignment, tolerance, first divergence (no torch)."""
