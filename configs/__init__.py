"""Recipes: model, data and optimisation of a run (YAML), evaluation protocols and cluster examples."""
