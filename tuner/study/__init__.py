"""Study files: the definition, the search space, samplers, pruners, limits."""
