"""The command line: one small module a command; each parses, calls one public function and prints through views."""
