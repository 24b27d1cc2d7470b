"""Student weights taken from a teacher."""
