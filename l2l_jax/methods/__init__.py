"""Unlearning methods: a registered options class each, and the objective that it trains."""
