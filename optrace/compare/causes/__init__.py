"""Why two traces part: families of causes, each asked what it can prove from the record."""
