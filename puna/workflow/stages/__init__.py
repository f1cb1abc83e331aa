"""The stages of a recipe, each its settings and the function that carries it out.

A stage reads artifacts, writes into its folder and returns figures. Those that start from a model
are `FromModel` settings with a function ``(config, given, folder) -> figures``.
"""
