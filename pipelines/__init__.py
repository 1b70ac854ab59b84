"""The room that knows the others: recipes, steps on Ray, the DeepSpeed loop, sampling, reports, the command."""
