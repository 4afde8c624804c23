"""A YAML file becomes checked settings: the file and its overrides, one model for each section, and the whole."""
