"""The house's recipes: pages of a lab book. Each function returns a value and says how to run it and what it costs."""
