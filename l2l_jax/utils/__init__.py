"""Processes: their set-up, starting several of them, and what they tell one another."""
