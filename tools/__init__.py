"""Tools for users, one command in each module, with packages for their engines."""
