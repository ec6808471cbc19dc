"""The pages: static files of this package, served with the right caching and a strict content policy."""
