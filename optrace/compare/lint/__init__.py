"""Looking at one run for what goes wrong often: `optrace.lint`, its rules, and what they say."""
