"""Bringing scenes to browsers: a server for a link, one page that holds a scene, a folder for a static host."""
