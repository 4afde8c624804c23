"""From a YAML file to checked settings: reading the file, one model for each section, and the whole configuration."""
