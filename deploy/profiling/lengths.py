"""How long prompts must be that are measured. Imports nothing: the command line's own check stands on it."""

SHORTEST_PROMPT = 64
"""Tokens."""

LEAST_LONGEST = 2 * SHORTEST_PROMPT
"""Two lengths are the least that a fit takes."""
