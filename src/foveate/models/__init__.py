"""Models with their processors: loading, pictures, chat prompts. One handle, `Loaded`, travels through everything."""
