"""Study files: the definition, the search space, samplers, pruners, limits."""

__all__ = ["definition", "facts", "limits", "multi_objective", "samplers", "shipped", "space"]
