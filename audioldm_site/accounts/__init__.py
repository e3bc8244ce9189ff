"""Who may come in and what they may do: API tokens, login throttling, and sharing with the team."""
