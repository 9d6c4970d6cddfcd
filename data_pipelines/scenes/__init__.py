"""The quickstart's data: generated captioned scenes, with their label maps."""
