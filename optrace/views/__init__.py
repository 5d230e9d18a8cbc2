"""A DiffReport or a Trace becomes text, Markdown, JSON or HTML."""
